"""The console command `tensorlite`.

Each subcommand is a function of its parsed arguments that returns the exit status.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from . import tree
from ._version import __version__
from .bench import (
    PARTS,
    Measurement,
    busy,
    described,
    has_bfloat16,
    machine,
    machine_measurements,
    measured,
    model_measurements,
    processor,
)
from .completions import SHELLS, script
from .device import get_device
from .ops.creation import asarray

_EXAMPLES = """\
examples:
  tensorlite doctor                      what is missing on this machine, and how to mend it
  tensorlite devices                     what tl.asarray(x, device=...) may name on this machine
  tensorlite completions bash            what completes this command in a shell
  tensorlite bench                       how fast this machine multiplies, copies and trains
  tensorlite train mymodels:Net --data digits --workers 2 --report runs/net
  tensorlite report runs/net             the page about a run
  tensorlite kernels tune steps:train steps:example --device opencl:0
  tensorlite kernels export steps:train steps:example --out kernels
  tensorlite kernels build kernels       compile them with the device's own compiler
"""
_FUNCTION = """\
FUNCTION is module:name of a function, jitted or not; EXAMPLE is module:name of a function without
parameters that returns its arguments, as a tuple, or the only one. Modules of the working directory
are found. Shapes and dtypes of the arguments count, values do not; nothing of FUNCTION is run.
"""
_TUNE = (
    _FUNCTION
    + """
For each class of matrix products and convolutions (one operation and dtype, sizes up to the same
powers of two) some ten kernels are tried, which takes seconds. The fastest is kept below
~/.cache/tensorlite/tuned (TENSORLITE_CACHE), for every process that uses this device and driver.
With TENSORLITE_TUNE=0 a process leaves that aside; with TENSORLITE_TUNE=1 it tunes what it meets.

example:
  tensorlite kernels tune steps:train steps:example --device opencl:0
"""
)
_EXPORT = (
    _FUNCTION
    + """
example:
  tensorlite kernels export steps:train steps:example --out kernels
"""
)
_BUILD = """\
A process with TENSORLITE_OPENCL_KERNELS=FOLDER takes its programs from there and compiles none.

example:
  tensorlite kernels build kernels --device opencl:0
"""
_KERNELS = """\
examples:
  tensorlite kernels tune steps:train steps:example
  tensorlite kernels export steps:train steps:example --out kernels
  tensorlite kernels build kernels
"""
_COMPLETIONS = """\
Prints a script; where a shell looks for it:

examples:
  tensorlite completions bash > ~/.local/share/bash-completion/completions/tensorlite
  tensorlite completions zsh > ~/.zfunc/_tensorlite
  tensorlite completions fish > ~/.config/fish/completions/tensorlite.fish

bash needs its package bash-completion for that folder; without it, have ~/.bashrc run
`source <(tensorlite completions bash)`. zsh needs `fpath+=(~/.zfunc)` before compinit in ~/.zshrc.
After an update of tensorlite, print it again.
"""
_DEVICES = """\
Parts of a device have names, too: opencl:0/2:1 is the second of two equal parts of opencl:0.

examples:
  tensorlite devices
  tensorlite devices --json
"""
_DOCTOR = """\
The exit status is 1 if something is wrong.

examples:
  tensorlite doctor
  tensorlite doctor --ports 7000-7099
"""
_BENCH = """\
Without MODEL it is the machine that is measured: matrix products, a copy, a convolution and a
training step of the network of TensorFlow's CIFAR-10 tutorial; with --workers also the all-reduce
of float32 among processes. MODEL is module:Net, as `tensorlite train` takes it, and is measured
instead: forward, and a step of SGD with momentum. Modules of the working directory are found.

Each number is a median. After it stand the time of a run, within how many percent of that the
middle half of the runs lies, and how many runs there were.

examples:
  tensorlite bench
  tensorlite bench --device opencl:0 --json
  tensorlite bench --workers 2 --only all-reduce
  tensorlite bench mymodels:Net --input 32,32,3 --batch 128
"""


class CommandError(Exception):
    """What was typed cannot be done; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, those of the process by default; the exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except (CommandError, ValueError, OSError) as error:
        print(f"tensorlite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tensorlite",
        description="A small autodiff tensor engine with data-parallel training on Spark.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tensorlite {__version__}")
    parser.set_defaults(command=_help_of(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    listing = _added(commands, "devices", "list the devices of this machine", _devices, _DEVICES)
    listing.add_argument("--json", action="store_true", help="for programs to read; bytes, not GiB")
    summary = "examine this machine: what is wrong, and the cure"
    doctor = _added(commands, "doctor", summary, _doctor, _DOCTOR)
    doctor.add_argument(
        "--ports", metavar="FIRST-LAST", help="workers' ports, as in launch(port_range=...)"
    )
    bench = _added(commands, "bench", "measure how fast this machine is", _bench, _BENCH)
    bench.add_argument("model", metavar="MODEL", nargs="?", help="module:Net of your own")
    bench.add_argument("--input", metavar="SHAPE", help="of a row for MODEL, such as 32,32,3")
    bench.add_argument("--batch", type=int, default=128, help="rows, default: %(default)s")
    bench.add_argument("--device", default="cpu", help="default: %(default)s")
    bench.add_argument("--workers", type=int, help="measure the all-reduce of so many processes")
    bench.add_argument(
        "--only", action="append", choices=(*PARTS, _ALL_REDUCE), help="a part; may be repeated"
    )
    bench.add_argument("--json", action="store_true", help="for programs to read; seconds")
    # The runtime's commands; the command line stands above both, and only it takes from there.
    from .distributed.commands import add_commands

    add_commands(commands, _added, _named)
    summary = "print what completes this command in a shell"
    completions = _added(commands, "completions", summary, _completions, _COMPLETIONS)
    completions.add_argument("shell", choices=SHELLS)
    kernels = _added(commands, "kernels", "tune, export or build OpenCL kernels", None, _KERNELS)
    kernels.set_defaults(command=_help_of(kernels))
    steps = kernels.add_subparsers(title="commands", metavar="COMMAND")
    tune = _added(
        steps, "tune", "find the fastest products and convolutions for a device", _tune, _TUNE
    )
    export = _added(steps, "export", "write the OpenCL C that a function needs", _export, _EXPORT)
    for taking in (tune, export):
        taking.add_argument("function", metavar="FUNCTION")
        taking.add_argument("example", metavar="EXAMPLE")
    export.add_argument("--out", required=True, metavar="FOLDER", help="folder to write to")
    summary = "compile an exported folder with a device's compiler"
    build = _added(steps, "build", summary, _build, _BUILD)
    build.add_argument("folder", metavar="FOLDER", help="what `kernels export` has written")
    for using in (tune, export, build):
        using.add_argument("--device", default="opencl:0", help="default: %(default)s")
    return parser


def _added(
    commands: Any, name: str, summary: str, command: Callable[..., int] | None, epilog: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _help_of(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """A command for those who have named none."""

    def show(arguments: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    return show


# ---- completions ---------------------------------------------------------------------------------


def _completions(arguments: argparse.Namespace) -> int:
    print(script(_parser(), arguments.shell))
    return 0


# ---- doctor --------------------------------------------------------------------------------------


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine, report

    ports: tuple[int, int] | None = None
    if arguments.ports is not None:
        first, dash, last = arguments.ports.partition("-")
        if not (first.isdigit() and (last if dash else first).isdigit()):
            raise CommandError(
                f"--ports is written FIRST-LAST, such as 7000-7099, got {arguments.ports!r}"
            )
        ports = int(first), int(last if dash else first)
        if not 0 < ports[0] <= ports[1] < 65536:
            raise CommandError(
                f"--ports lie within 1 and 65535, first before last, got {arguments.ports!r}"
            )
    return 0 if report(examine(ports), print) else 1


# ---- bench ---------------------------------------------------------------------------------------


_ALL_REDUCE = "all-reduce"


def _bench(arguments: argparse.Namespace) -> int:
    shape = _checked(arguments)
    device = str(get_device(arguments.device))
    about, warning = machine(device), busy()
    if not arguments.json:
        threads = f", {_threads(about['threads'])}" if device == "cpu" else ""
        print(
            f"{device}: {about['name']}{threads}, {about['driver']}, tensorlite "
            f"{about['tensorlite']}, on {about['host']}"
        )
        if warning:
            print(f"Note: {warning}")
        if device == "cpu" and not has_bfloat16():
            print("Note: this processor has no instructions for bfloat16, which is left out")
    rows = []
    for row in _measurements(arguments, device, shape):
        rows.append(row)
        if not arguments.json:
            print(described(row), flush=True)
    if arguments.json:
        found = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({"machine": about, "note": warning, "measurements": found}, indent=1))
    return 0


def _checked(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The shape of a row, once the options go together; () without a model.

    Raises:
        CommandError: they do not.
    """
    if arguments.workers is not None and arguments.workers < 2:
        raise CommandError(
            f"--workers is how many processes all-reduce, 2 or more, got {arguments.workers}"
        )
    if arguments.workers is None and _ALL_REDUCE in (arguments.only or ()):
        raise CommandError(f"--only {_ALL_REDUCE} needs --workers, such as --workers 2")
    if arguments.batch < 1:
        raise CommandError(f"--batch is a number of rows, 1 or more, got {arguments.batch}")
    if arguments.model is None:
        if arguments.input is not None:
            raise CommandError("--input is the shape of MODEL's rows; name a MODEL, as module:Net")
        return ()
    if arguments.only:
        raise CommandError("--only chooses parts of the machine's measurement; leave MODEL out")
    sizes = (arguments.input or "").split(",")
    if not all(size.strip().isdigit() and int(size) for size in sizes):
        got = repr(arguments.input) if arguments.input else "nothing"
        raise CommandError(f"--input is the shape of one row of MODEL, such as 32,32,3; got {got}")
    return tuple(int(size) for size in sizes)


def _measurements(
    arguments: argparse.Namespace, device: str, shape: tuple[int, ...]
) -> Iterator[Measurement]:
    from .distributed.commands import network_of
    from .distributed.measuring import all_reduce_times, bus_bytes

    if arguments.model is not None:
        network = network_of(_named, arguments.model, seed=0)
        yield from model_measurements(network, shape, arguments.batch, device)
    else:
        yield from machine_measurements(device, tuple(arguments.only or PARTS))
    workers = arguments.workers
    if workers is None or (arguments.only and _ALL_REDUCE not in arguments.only):
        return
    for shared, where in ((True, "shared memory"), (False, "TCP on this machine")):
        for nbytes, times in all_reduce_times(workers, shared).items():
            what = f"all-reduce {_bytes(nbytes)} among {workers} processes, {where}"
            amount = 1e-9 * bus_bytes(nbytes, workers)
            yield measured(what, amount, "GB/s bus", times)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


# ---- devices -------------------------------------------------------------------------------------


def _devices(arguments: argparse.Namespace) -> int:
    rows = [_host(), *_opencl()]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = ["name", "device", "kind", "units", "memory", "dtypes", "driver"]
    table = [columns, *[[_shown(column, row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
    from .backends.opencl.runtime import problems, why_none

    if len(rows) == 1:
        print(f"\nNo OpenCL devices: {why_none()}.")
    elif problems():
        print("\nNot listed: " + "; ".join(problems()) + ".")
    return 0


def _shown(column: str, value: Any) -> str:
    if column == "memory":
        return f"{value / 2**30:.1f} GiB"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _host() -> dict[str, Any]:
    from .threads import get_num_threads

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": "cpu",
        "device": processor(),
        "kind": "cpu",
        "units": get_num_threads(),
        "memory": memory,
        "dtypes": ["all"],
        "driver": _onednn(),
    }


def _onednn() -> str:
    from .backends.cpu.onednn import load

    return "oneDNN" if load() is not None else "NumPy"


def _opencl() -> list[dict[str, Any]]:
    from .backends.opencl.runtime import find_all

    rows = []
    for found in find_all():
        traits = found.traits
        lacking = [] if traits.float64 else ["float64"]
        rows.append(
            {
                "name": found.name,
                "device": found.device.name.strip(),
                "kind": traits.kind,
                "units": traits.units,
                "memory": found.device.global_mem_size,
                "dtypes": [f"all but {name}" for name in lacking] or ["all"],
                "driver": f"{found.device.platform.name.strip()} {found.device.driver_version}",
            }
        )
    return rows


# ---- kernels -------------------------------------------------------------------------------------


def _tune(arguments: argparse.Namespace) -> int:
    from .backends.opencl import tune_kernels
    from .backends.opencl.products.choices import path
    from .backends.opencl.runtime import find

    place = path(find(arguments.device).traits)
    if place is None:
        raise CommandError("TENSORLITE_CACHE is set to nothing, so what is found cannot be kept")
    function, args = _call_of(arguments)
    before = after = 0.0
    for tuned in tune_kernels(function, *args, device=arguments.device, report=print):
        before, after = before + tuned.before, after + tuned.after
    if not after:
        print(f"{arguments.function} has no products or convolutions to tune")
        return 0
    print(f"one of each: {before * 1e3:.2f} ms, tuned {after * 1e3:.2f} ms; kept in {place}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from .backends.opencl import export_kernels

    function, args = _call_of(arguments)
    entries = export_kernels(function, *args, folder=arguments.out, device=arguments.device)
    print(f"{len(entries)} programs and a manifest in {arguments.out}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from .backends.opencl.programs import BuildError, MissingKernelError
    from .backends.opencl.runtime import runtime

    at = runtime(arguments.device)
    try:
        count = at.programs.build_folder(arguments.folder)
    except (BuildError, MissingKernelError) as error:
        raise CommandError(str(error)) from error
    print(f"{count} programs compiled for {at.traits.key}")
    return 0


def _call_of(arguments: argparse.Namespace) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function that was named, and the arguments that its example returns."""
    function, example = _named(arguments.function), _named(arguments.example)
    made = example()
    args = made if isinstance(made, tuple) else (made,)
    for leaf in tree.leaves(args):
        try:
            asarray(leaf)
        except TypeError as error:
            raise CommandError(
                f"{arguments.example} returned {type(leaf).__name__} among the arguments of "
                f"{arguments.function}, which are arrays or structures of arrays: {error}"
            ) from error
    return function, args


def _named(reference: str) -> Callable[..., Any]:
    """The function that `module:name` refers to; modules of the working directory are found."""
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise CommandError(f"{reference!r} is not written module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise CommandError(f"cannot import {module!r}: {error}") from error
    except AttributeError:
        raise CommandError(f"{module!r} has no {name!r}") from None
    if not callable(found):
        raise CommandError(f"{reference} is {type(found).__name__}, not a function")
    return cast("Callable[..., Any]", found)
