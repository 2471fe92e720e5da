"""The console command `tensorlite`.

Each subcommand is a function of its parsed arguments that returns the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

_EXAMPLES = """\
examples:
  tensorlite devices                     what tl.asarray(x, device=...) may name on this machine
  tensorlite kernels export steps:train steps:example --out kernels
  tensorlite kernels build kernels       compile them with the device's own compiler
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tensorlite",
        description="A small autodiff tensor engine with data-parallel training on Spark.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    listing = commands.add_parser("devices", help="list the devices of this machine")
    listing.add_argument("--json", action="store_true", help="for programs to read")
    listing.set_defaults(command=_devices)
    kernels = commands.add_parser("kernels", help="kernels for devices without a compiler")
    steps = kernels.add_subparsers(required=True, metavar="step")
    export = steps.add_parser("export", help="write the OpenCL C of a jitted function")
    export.add_argument("function", help="module:name of a function, as it is jitted")
    export.add_argument("example", help="module:name of a function that returns its arguments")
    export.add_argument("--out", required=True, help="folder to write to")
    export.add_argument("--device", default="opencl:0", help="default: opencl:0")
    export.set_defaults(command=_export)
    build = steps.add_parser("build", help="compile a folder of kernels with a device's compiler")
    build.add_argument("folder")
    build.add_argument("--device", default="opencl:0", help="default: opencl:0")
    build.set_defaults(command=_build)
    return parser


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
    if len(rows) == 1:
        from .backends.opencl.runtime import why_none

        print(f"\nNo OpenCL devices: {why_none()}.")
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
        "device": _processor(),
        "kind": "cpu",
        "units": get_num_threads(),
        "memory": memory,
        "dtypes": ["all"],
        "driver": _onednn(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else "this machine's processor"


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


def _export(arguments: argparse.Namespace) -> int:
    from .backends.opencl import export_kernels

    function = _named(arguments.function)
    example = _named(arguments.example)()
    args = example if isinstance(example, tuple) else (example,)
    entries = export_kernels(function, *args, folder=arguments.out, device=arguments.device)
    print(f"{len(entries)} programs and a manifest in {arguments.out}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from .backends.opencl.programs import build_folder
    from .backends.opencl.runtime import runtime

    at = runtime(arguments.device)
    count = build_folder(arguments.folder, at.context, at.device)
    print(f"{count} programs compiled for {at.traits.key}")
    return 0


def _named(reference: str) -> Any:
    """What `module:name` refers to; modules of the working directory are found."""
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise CommandError(f"{reference!r} is not written module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise CommandError(f"cannot import {module!r}: {error}") from error
    except AttributeError:
        raise CommandError(f"{module!r} has no {name!r}") from None
