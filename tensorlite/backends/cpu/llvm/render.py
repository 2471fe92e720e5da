"""A planned nest as LLVM functions.

`name(buffers)` is what is called; it asks the OpenMP runtime to run `name.thread` on all threads,
which take equal shares of the units of work and run `name.units` (see `units`) on theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....compiler.axes import Canonical
from .plan import LINE, Plan, estimate, streamed_outputs
from .split import make_stages
from .text import Function, Module
from .units import Units

# Nanoseconds of work below which a second thread costs more than it saves.
PARALLEL_NANOSECONDS = 8000.0
AVX_BYTES = 32  # of vector registers, from which on it is an x86 processor with AVX


def render(module: Module, name: str, source: Canonical, register_bytes: int) -> None:
    """Add the functions of a nest to a module, the one to call as `name`."""
    nest = source.nest
    if any(n == 0 for a, n in enumerate(nest.shape) if a not in nest.reduced):
        Function(module, f"define void @{name}(ptr %buffers)").finish()  # nothing to write
        return
    stages, temporaries = make_stages(source, register_bytes)
    if not temporaries:
        _render_plan(module, name, stages[0].plan, register_bytes)
        return
    for number, stage in enumerate(stages):
        _render_plan(module, f"{name}.{number}", stage.plan, register_bytes)
    function = Function(module, f"define void @{name}(ptr %buffers)")
    count = len(nest.inputs) + len(nest.outputs)
    pointers = []
    for number in range(count):
        at = function.value(f"getelementptr ptr, ptr %buffers, i64 {number}")
        pointers.append(function.value(f"load ptr, ptr {at}"))
    pointers += [function.slot("i8", size, align=64) for size in temporaries]
    for number, stage in enumerate(stages):
        arguments = function.slot("ptr", len(stage.buffers))
        for place, buffer in enumerate(stage.buffers):
            at = function.value(f"getelementptr ptr, ptr {arguments}, i64 {place}")
            function.line(f"store ptr {pointers[buffer]}, ptr {at}")
        function.line(f"call void @{name}.{number}(ptr {arguments})")
    function.finish()


def _render_plan(module: Module, name: str, plan: Plan, register_bytes: int) -> None:
    streamed = streamed_outputs(plan) if register_bytes >= AVX_BYTES else []
    if not streamed:
        _render_units(module, name, plan, [])
        return
    _render_units(module, f"{name}.stored", plan, [])
    _render_units(module, f"{name}.streamed", plan, streamed)
    _write_choice(module, name, plan, streamed)


def _render_units(module: Module, name: str, plan: Plan, streamed: Sequence[int]) -> None:
    Units(module, name, plan, streamed).write()
    units = plan.units
    if units == 1 or estimate(plan) < PARALLEL_NANOSECONDS:
        function = Function(module, f"define void @{name}(ptr %buffers)")
        function.line(f"call void @{name}.units(ptr %buffers, i64 0, i64 {units})")
        function.finish()
        return
    write_parallel(module, name, units)


def _write_choice(module: Module, name: str, plan: Plan, streamed: Sequence[int]) -> None:
    """Add `name(buffers)`, which calls `name.streamed` if cache lines can be written whole: outputs
    begin with one, and none of them lies over an input, whose lines are in the cache anyway."""
    function = Function(module, f"define void @{name}(ptr %buffers)")
    addresses = []
    for number in range(len(plan.nest.inputs) + len(plan.nest.outputs)):
        at = function.value(f"getelementptr ptr, ptr %buffers, i64 {number}")
        addresses.append(function.value(f"load i64, ptr {at}"))
    inputs = addresses[: len(plan.nest.inputs)]
    unfit = "false"
    for output in streamed:
        address = addresses[len(inputs) + output]
        rest = function.value(f"and i64 {address}, {LINE - 1}")
        failed = [function.value(f"icmp ne i64 {rest}, 0")]
        failed += [function.value(f"icmp eq i64 {address}, {source}") for source in inputs]
        for condition in failed:
            unfit = function.value(f"or i1 {unfit}, {condition}")
    with function.when(unfit):
        function.line(f"call void @{name}.stored(ptr %buffers)")
    fit = function.value(f"xor i1 {unfit}, true")
    with function.when(fit):
        function.line(f"call void @{name}.streamed(ptr %buffers)")
    function.finish()


def write_parallel(module: Module, name: str, units: int) -> None:
    """Add `name(buffers)`, which shares `name.units(buffers, begin, end)` among all threads."""
    module.declare("void", "GOMP_parallel", "ptr, ptr, i32, i32")
    thread = Function(module, f"define internal void @{name}.thread(ptr %buffers)")
    number = thread.call("i32", "omp_get_thread_num")
    count = thread.call("i32", "omp_get_num_threads")
    number, count = (thread.value(f"sext i32 {v} to i64") for v in (number, count))
    following = thread.integer("add", number, "1")
    begin, end = (
        thread.value(f"sdiv i64 {thread.integer('mul', v, str(units))}, {count}")
        for v in (number, following)
    )
    thread.line(f"call void @{name}.units(ptr %buffers, i64 {begin}, i64 {end})")
    thread.finish()
    function = Function(module, f"define void @{name}(ptr %buffers)")
    function.line(f"call void @GOMP_parallel(ptr @{name}.thread, ptr %buffers, i32 0, i32 0)")
    function.finish()
