"""The command line as such: completions, and the examples of its help."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tensorlite import cli
from tensorlite.completions import SHELLS

# Where bash puts what it would offer: the function that the script has registered is called with
# the words typed so far, the last of them unfinished.
COMPLETE = r"""
source {script}
COMP_WORDS=({words} {last})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
function=$(complete -p tensorlite | sed 's/.*-F \([^ ]*\).*/\1/')
"$function" tensorlite {last} "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"""


def parsers(
    parser: argparse.ArgumentParser, name: str = "tensorlite"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command's name and parser."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, inner in action.choices.items():
                yield from parsers(inner, f"{name} {below}")


COMMANDS = dict(parsers(cli._parser()))


@pytest.fixture
def script(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> pathlib.Path:
    assert cli.main(["completions", "bash"]) == 0
    path = tmp_path / "tensorlite.bash"
    path.write_text(capsys.readouterr().out)
    return path


def offered(script: pathlib.Path, typed: str) -> list[str]:
    """What a real bash offers behind what was typed, whose last word is unfinished."""
    *words, last = typed.split(" ")
    program = COMPLETE.format(script=script, words=" ".join(words), last=shlex.quote(last))
    run = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, cwd=script.parent
    )
    assert not run.stderr
    return [line for line in run.stdout.splitlines() if line]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
class TestInBash:
    def test_commands(self, script: pathlib.Path) -> None:
        tops = {name.split()[1] for name in COMMANDS if " " in name}
        assert set(offered(script, "tensorlite ")) >= tops
        assert offered(script, "tensorlite ben") == ["bench"]
        assert set(offered(script, "tensorlite kernels ")) >= {"tune", "export", "build"}

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_all_options_of_all_commands(self, name: str, script: pathlib.Path) -> None:
        options = {o for a in COMMANDS[name]._actions for o in a.option_strings if o[:2] == "--"}
        assert set(offered(script, f"{name} --")) == options

    def test_values(self, script: pathlib.Path) -> None:
        (script.parent / "run_one").mkdir()
        (script.parent / "run_two.npz").touch()
        assert offered(script, "tensorlite completions z") == ["zsh"]
        assert set(offered(script, "tensorlite bench --only ")) >= {"products", "all-reduce"}
        assert "run_two.npz" in offered(script, "tensorlite train x:Net --data run")
        assert [f.rstrip("/ ") for f in offered(script, "tensorlite report run")] == ["run_one"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completions", shell]) == 0
    made = capsys.readouterr().out
    assert "completions" in made and "all-reduce" in made


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_of_the_help_can_be_typed(name: str) -> None:
    epilog = (COMMANDS[name].epilog or "").replace("\\\n", "")
    lines = re.findall(r"^  (tensorlite .*)$", epilog, re.M)
    assert re.search(r"^examples?:$", epilog, re.M) and lines
    for line in lines:
        # Behind two blanks or more stands what an example is for; behind > where output goes.
        typed = re.split(r" {2,}(?!-)| > ", line)[0]
        assert typed.startswith(name)
        cli._parser().parse_args(shlex.split(typed)[1:])
