"""The code of the documentation's pages, as programs.

A block ```` ```python ```` of a page runs after those above it. Comments, which no reader sees,
say what is special about the block below them:

    <!-- not run: why -->      it needs what a test does not have
    <!-- run with Spark -->    it starts Spark, so only the test that may do so runs it
    <!-- run first             code that the page leaves out, up to the end of the comment
    model = ...
    -->

A block ```` ```text ```` right below one of Python is what that prints, with `...` for what differs
from run to run; numbers with a decimal point may be off by a twentieth, since processors round
differently and a training carries that on.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>[^\n]*?) *-->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```\n"
    r"|^<!-- run first\n(?P<hidden>.*?)^-->\n",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
BETWEEN = "\x1e"  # printed before each block


@dataclass
class Block:
    """Code on a page.

    Attributes:
        line: of the page, where the code begins, counted from 0.
        mark: the comment above it; "run first" for code in a comment.
        prints: what it prints, where the page says so.
    """

    code: str
    line: int
    mark: str = ""
    prints: str | None = None

    @property
    def runs(self) -> bool:
        """Whether a test runs it, with Spark or without."""
        return not self.mark.startswith("not run: ")

    @property
    def needs_spark(self) -> bool:
        """Whether it runs with Spark only."""
        return self.mark == "run with Spark"


def blocks(page: str) -> Iterator[Block]:
    """The Python of a page's text, in order."""
    for match in BLOCK.finditer(page):
        if match["hidden"] is not None:
            start = page.count("\n", 0, match.start("hidden"))
            yield Block(match["hidden"], start, "run first")
        elif match["language"] == "python":
            start = page.count("\n", 0, match.start("code"))
            after = BLOCK.match(page, match.end() + 1)  # behind an empty line
            shown = after["code"] if after and after["language"] == "text" else None
            yield Block(match["code"], start, match["mark"] or "", shown)


def program(page: str, spark: bool) -> str:
    """The page as a program whose lines have the numbers that they have on the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in chosen(page, spark):
        code = block.code.splitlines()
        lines[block.line - 1] = f"print({BETWEEN!r})"
        lines[block.line : block.line + len(code)] = code
    return "\n".join(lines) + "\n"


def chosen(page: str, spark: bool) -> list[Block]:
    """The blocks that run."""
    return [b for b in blocks(page) if b.runs and (spark or not b.needs_spark)]


def run(path: Path, folder: Path, spark: bool) -> int:
    """Run the code of a page in `folder`, and compare what it prints: the number of blocks."""
    page = path.read_text()
    script = folder / f"{path.stem}.py"
    script.write_text(program(page, spark))
    quiet = "--conf spark.ui.enabled=false --conf spark.log.level=OFF pyspark-shell"
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": quiet,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, script.name], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{path}:\n{done.stdout}\n{done.stderr}"
    printed = done.stdout.split(f"{BETWEEN}\n")[1:]
    ran = chosen(page, spark)
    for block, got in zip(ran, printed, strict=True):
        if block.prints is not None:
            problem = difference(block.prints, got)
            assert not problem, f"{path}:{block.line}:\n{problem}"
    return len(ran)


def difference(wanted: str, got: str) -> str:
    """How `got` differs from what a page shows, or nothing."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    checker = doctest.OutputChecker()
    numbers, found = NUMBER.findall(wanted), NUMBER.findall(got)
    if len(numbers) == len(found):
        pairs = zip(numbers, found, strict=True)
        near = [abs(float(a) - float(b)) <= 0.05 * abs(float(a)) for a, b in pairs]
        if all(near) and checker.check_output(
            NUMBER.sub("#", wanted), NUMBER.sub("#", got), options
        ):
            return ""
    elif checker.check_output(wanted, got, options):
        return ""
    return checker.output_difference(doctest.Example("", wanted), got, options)
