"""The laboratory of scale-out: its arithmetic, and, for root, that it works and leaves nothing."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from benchmarks import scaleout
from benchmarks.lab import commands, hosts, network, shares
from benchmarks.lab.commands import LabError
from benchmarks.lab.figures import draw
from benchmarks.lab.points import Point, Series, load, save, table, verdicts
from benchmarks.lab.worlds import Steps, steps_of

WEAK = Series("weak", 1e9, overlap=False)
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESTS = f"tlabtest{os.getpid()}"  # the name of these tests' laboratories


def point(hosts: int, step: float, exposed: float = 0.0, series: Series = WEAK) -> Point:
    batch = 128 * hosts if series.scaling == "weak" else 128
    return Point(
        series, hosts, batch, step, 0.001, exposed, alone=0.1, alone_batch=128, compute=0.1
    )


# ---- points --------------------------------------------------------------------------------------


def test_weak_scaling_is_linear_if_steps_take_as_long_as_alone() -> None:
    assert point(4, step=0.1).speedup == pytest.approx(4.0)
    assert point(4, step=0.125).speedup == pytest.approx(3.2)


def test_strong_scaling_is_linear_if_steps_are_as_many_times_shorter() -> None:
    strong = dataclasses.replace(WEAK, scaling="strong")
    assert point(4, step=0.025, series=strong).speedup == pytest.approx(4.0)


def test_points_come_back_from_their_file(tmp_path: pathlib.Path) -> None:
    points = [point(1, 0.1), point(2, 0.11, exposed=0.01)]
    save(tmp_path / "folder" / "points.json", points, {"share": 0.2})
    assert load(tmp_path / "folder" / "points.json") == points


def test_tables_have_a_row_for_each_number_of_hosts() -> None:
    lines = table([point(8, 0.125, exposed=0.025), point(1, 0.1)]).splitlines()
    assert lines[0] == "Weak scaling, 1 Gbit/s, without overlap:"
    assert lines[-2:] == [
        "| 1 | 128 | 100.0 ± 1.0 | 1280 | 1.00 | 100.0% | 0.0% |",
        "| 8 | 1024 | 125.0 ± 1.0 | 8192 | 6.40 | 80.0% | 20.0% |",
    ]


def test_bars_hold_for_weak_scaling_at_one_gigabit_with_the_best_that_there_is() -> None:
    fast = dataclasses.replace(WEAK, rate=10e9)
    overlapped = dataclasses.replace(WEAK, overlap=True)
    points = [
        point(2, 0.1015, exposed=0.005),
        point(8, 0.112, exposed=0.002),
        point(2, 0.2, 0, fast),
    ]
    assert [met for met, _ in verdicts(points)] == [True, True, False, True]
    assert verdicts(points)[2][1] == "8 hosts: 7.14x, bar 7.2x, MISSED"
    points.append(point(2, 0.11, exposed=0.006, series=overlapped))
    assert [line for _, line in verdicts(points)] == [
        "2 hosts: 1.82x, bar 1.97x, MISSED",
        "2 hosts: 5.5% of a step is exposed communication, bar 5%, MISSED",
    ]


def test_without_points_that_have_a_bar_there_is_no_verdict() -> None:
    assert verdicts([point(1, 0.1)]) == []


def test_the_picture_is_written(tmp_path: pathlib.Path) -> None:
    strong = Series("strong", 10e9, overlap=True)
    points = [point(1, 0.1), point(2, 0.11), point(1, 0.1, 0, strong), point(2, 0.06, 0, strong)]
    draw(points, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_what_lies_between_two_messages() -> None:
    heard = [
        [{"at": 1.0, "communication": 5.0}, {"at": 2.0, "communication": 5.25}],
        [{"at": 0.0, "communication": 0.0}, {"at": 3.0, "communication": 0.75}],
    ]
    assert steps_of(heard) == Steps([1.0, 3.0], [0.25, 0.75])


def test_a_point_is_in_the_time_of_its_hosts() -> None:
    steps = Steps([1.0, 1.0, 1.5, 1.0], [0.5, 0.5, 0.5, 0.5])
    alone = Steps([0.7, 0.8, 0.9], [0.0, 0.0, 0.0])
    found = scaleout.point_of(WEAK, 2, scaleout.Timed(256, steps, alone, alone), share=0.2)
    assert (found.step, found.exposed, found.alone) == pytest.approx((0.2, 0.1, 0.16))
    assert found.speedup == pytest.approx(1.6)


# ---- options and what the machine must have ------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts", "two"], "numbers with commas between them"),
        (["--hosts", "0,1"], "--hosts: between 1 and 128"),
        (["--rates", "0"], "--rates must be positive"),
        (["--scaling", "medium"], "--scaling: weak or strong, not 'medium'"),
        (["--overlap", "yes"], "--overlap: on or off, not 'yes'"),
        (["--steps", "1"], "--steps must be at least 2, not 1"),
        (["--share", "2"], "--share is a part of a core"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scaleout.parse(arguments)
    assert message in capsys.readouterr().err


def test_quick_is_less_of_everything_unless_said_otherwise() -> None:
    args = scaleout.parse(["--quick", "--rates", "10", "--latency", "50"])
    assert (args.hosts, args.rates, args.scaling) == ([1, 2, 8], [10e9], ["weak"])
    assert args.overlap == [True]
    assert args.latency == pytest.approx(50e-6)


def test_a_user_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run it as root"):
        commands.require()


def test_missing_commands_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands.shutil, "which", lambda name: None if name == "tc" else "/bin/x")
    with pytest.raises(LabError, match=r"no tc; on Debian and Ubuntu: apt install iproute2"):
        commands.require()


def test_more_than_the_processors_cannot_be_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "require", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with pytest.raises(
        LabError, match=r"of the 2 here 1.7 can be given away; take a share of 0.21"
    ):
        hosts.Laboratory(8, 0.25)


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        (
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0",
            ("/sys/fs/cgroup/cpu,cpuacct", True),
        ),
        ("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0", ("/sys/fs/cgroup", False)),
        (
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
            "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0",
            ("/sys/fs/cgroup/cpu", True),
        ),
        ("tmpfs / tmpfs rw 0 0", None),
    ],
)
def test_the_cpu_controller_is_found(mounts: str, found: tuple[str, bool] | None) -> None:
    expected = found and (pathlib.Path(found[0]), found[1])
    assert shares.find_controller(mounts) == expected


@pytest.mark.parametrize("first_generation", [True, False])
def test_a_share_is_a_quota_in_a_period(
    first_generation: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "controller", lambda: (tmp_path, first_generation))
    share = shares.Share("host0")
    share.limit(0.2)
    texts = {path.name: path.read_text() for path in share.folder.iterdir()}
    if first_generation:
        assert texts == {"cpu.cfs_period_us": "5000", "cpu.cfs_quota_us": "1000"}
    else:
        assert texts == {"cpu.max": "1000 5000"}
    share.limit(None)
    name = "cpu.cfs_quota_us" if first_generation else "cpu.max"
    assert (share.folder / name).read_text() == ("-1" if first_generation else "max 100000")


def test_a_bucket_lets_a_whole_packet_pass() -> None:
    command = network.bucket("eth0", 0.2e9)
    assert command[command.index("rate") + 1] == "200000000bit"
    headers = 66 * (network.LARGE_PACKET // 1448 + 1)
    assert int(command[command.index("burst") + 1]) >= network.LARGE_PACKET + headers


# ---- with root -----------------------------------------------------------------------------------


def can_build() -> bool:
    try:
        commands.require()
        shares.controller()
    except LabError:
        return False
    return True


needs_root = pytest.mark.skipif(not can_build(), reason="needs root, cgroups, ip and tc")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test that fails has started."""
    yield
    for process in started:
        process.kill()
        process.wait()  # its output may be held open by what it has started
    started.clear()
    if left_over():
        code = "from benchmarks.lab.hosts import remove; remove()"
        environment = os.environ | {"TENSORLITE_LAB": TESTS}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


started: list[subprocess.Popen[str]] = []


def in_laboratory(code: str, name: str = TESTS) -> subprocess.Popen[str]:
    """A process that runs `code`, in which `lab` is a laboratory of two hosts."""
    script = (
        "import subprocess, os, signal, sys, time\n"
        "from benchmarks.lab.hosts import Laboratory\n"
        "with Laboratory(2, 0.1) as lab:\n" + textwrap.indent(textwrap.dedent(code), "    ")
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TENSORLITE_LAB": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def left_over(name: str = TESTS) -> list[str]:
    if not can_build():
        return []
    root, _ = shares.controller()
    places = [*root.glob(f"{name}-*"), *pathlib.Path("/run/netns").glob(f"{name}-*")]
    return [str(place) for place in places]


def runs(process: int) -> bool:
    """Whether there is such a process, and not only its exit status that nobody has read."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@needs_root
def test_hosts_reach_each_other_and_nothing_else() -> None:
    code = """
    serve = "import socket; s = socket.create_server(('', 700)); s.accept()[0].sendall(b'hello')"
    first = lab.hosts[0].start([sys.executable, "-c", serve])
    ask = '''
    import os, socket, time
    while True:
        try:
            link = socket.create_connection(("10.99.0.10", 700))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    print(link.recv(5).decode(), socket.gethostname(), sorted(os.listdir("/dev/shm")))
    print(open("/proc/net/route").read().count(chr(10)) - 1, "routes")
    '''
    import textwrap
    second = lab.hosts[1].start([sys.executable, "-c", textwrap.dedent(ask)])
    assert second.wait(30) == 0
    """
    process = in_laboratory(code)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.split("\n")[:2] == [f"hello {TESTS}-host1 []", "1 routes"]
    assert left_over() == []


@needs_root
def test_links_and_processors_are_limited() -> None:
    code = """
    lab.links(1e9)
    lab.throttle(True)
    report = subprocess.run(
        ["ip", "netns", "exec", f"{os.environ['TENSORLITE_LAB']}-host0", "tc", "qdisc", "show"],
        capture_output=True, text=True, check=True).stdout
    print("rate 100Mbit" in report)
    spin = "import time; began = time.monotonic()\\nwhile time.monotonic() < began + 1: pass\\n"
    spin += "print(time.process_time())"
    spinning = lab.hosts[0].start([sys.executable, "-c", spin], stdout=subprocess.PIPE)
    print(spinning.communicate()[0].decode())
    """
    process = in_laboratory(code)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    limited, used = output.split()
    assert limited == "True"
    assert float(used) < 0.5  # of a second; a whole one without the quota


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    process = in_laboratory("""
    lab.hosts[0].start(["sleep", "600"])
    print("ready", flush=True)
    time.sleep(600)
    """)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert left_over() != []
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert left_over() == []


@needs_root
def test_the_next_one_removes_what_a_killed_one_has_left() -> None:
    process = in_laboratory("""
    sleeper = lab.hosts[0].start(["sleep", "600"])
    print(sleeper.pid, flush=True)
    time.sleep(600)
    """)
    assert process.stdout is not None
    sleeper = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert left_over() != [] and runs(sleeper)
    _, errors = (following := in_laboratory("pass")).communicate(timeout=60)
    assert following.returncode == 0, errors
    assert left_over() == [] and not runs(sleeper)


@needs_root
def test_there_is_one_laboratory_at_a_time() -> None:
    first = in_laboratory("print('ready', flush=True); sys.stdin.read(); time.sleep(600)")
    try:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        _, errors = in_laboratory("pass").communicate(timeout=60)
        assert "a laboratory is running already" in errors
        _, errors = (other := in_laboratory("pass", f"{TESTS}b")).communicate(timeout=60)
        assert other.returncode == 0, errors
    finally:
        first.terminate()
        first.communicate(timeout=30)
    assert left_over() == []
