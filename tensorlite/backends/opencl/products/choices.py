"""Which tiles a device uses for a problem: what was tuned, else a sane default.

What `tune` has found is kept below tensorlite's cache folder, one JSON file for each device and
driver: `{"device": ..., "choices": {class: {"rows": 5, ...}}}`. Problems of one class, which are of
one operation and dtype and of about the same size, share a choice, so that a file stays small and
serves shapes that nobody tuned. TENSORLITE_TUNE=0 leaves the files aside, TENSORLITE_TUNE=1 tunes
whatever is planned and has no choice yet; else nothing is tuned while a program runs.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile
from typing import Any

from ... import cache
from ..runtime import Traits
from .blocks import Block
from .contraction import Contraction
from .problem import Problem
from .tiles import Tile

Choice = Tile | Block


def default(traits: Traits, contraction: Contraction) -> Choice:
    """What serves most problems. Five rows of two vectors are ten sums, which with what they are
    made of fit 16 vector registers."""
    if traits.kind == "cpu":
        return Tile()
    rows, columns = contraction.count("row"), contraction.count("column")
    block = Block()
    groups = -(-rows // block.rows) * -(-columns // block.columns) * contraction.count("batch")
    return block if groups >= 2 * traits.units else Block(64, 64, 16, 4, 4)


def class_of(problem: Problem, contraction: Contraction) -> str:
    """The name of the problems that share a choice: `conv float32 2^15 x 2^7 x 2^11`."""
    counts = [contraction.count(role) for role in ("row", "column", "sum")]
    size = " x ".join(f"2^{(count - 1).bit_length()}" for count in counts)
    batches = contraction.count("batch")
    name = problem.op
    if isinstance(problem.options[0], bool):
        name += " " + "".join("t" if turned else "n" for turned in problem.options[:2])
    many = f" x 2^{(batches - 1).bit_length()} of them" if batches > 1 else ""
    return f"{name} {problem.out.dtype} {size}{many}"


def wish() -> str:
    """What TENSORLITE_TUNE says: "0", "1", or "" if it is not set.

    Raises:
        ValueError: it says something else.
    """
    text = os.environ.get("TENSORLITE_TUNE", "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"TENSORLITE_TUNE is 0 or 1, got {text!r}")
    return text


def known(traits: Traits, problem: Problem, contraction: Contraction) -> Choice | None:
    """What has been tuned for such problems on this device."""
    if wish() == "0":
        return None
    place = path(traits)
    if place is None:
        return None
    try:
        stamp = place.stat().st_mtime_ns
    except OSError:
        return None
    return _read(place, stamp, traits.kind).get(class_of(problem, contraction))


def keep(traits: Traits, found: dict[str, Choice]) -> None:
    """Add choices to those of the device. Readers see all of the file before or after.

    Raises:
        OSError: the folder cannot be written to.
    """
    place = path(traits)
    if place is None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    choices = _content(place, traits.kind) | found
    content = {
        "device": traits.key,
        "choices": {name: choices[name]._asdict() for name in sorted(choices)},
    }
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix="new-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=2)
        os.replace(temporary, place)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def path(traits: Traits) -> pathlib.Path | None:
    """Where the choices of a device are, or would be; None if nothing is to be kept on disk."""
    folder = cache.folder("tuned")
    return None if folder is None else folder / f"{cache.key(traits.key)}.json"


@functools.lru_cache(maxsize=16)
def _read(place: pathlib.Path, stamp: int, kind: str) -> dict[str, Choice]:
    return _content(place, kind)


def _content(place: pathlib.Path, kind: str) -> dict[str, Choice]:
    """The choices of a file; what is missing, damaged or of another version counts as not there."""
    try:
        content: Any = json.loads(place.read_text())["choices"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: choice for name, value in content.items() if (choice := _choice(value, kind))}


def _choice(value: Any, kind: str) -> Choice | None:
    made = Tile if kind == "cpu" else Block
    fields = made._field_defaults
    if not isinstance(value, dict) or set(value) != set(fields):
        return None
    if any(type(value[name]) is not type(fields[name]) or value[name] < 0 for name in fields):
        return None
    choice = made(**value)
    return choice if all(n > 0 for n in choice if not isinstance(n, bool)) else None
