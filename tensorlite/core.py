"""The heart of tensorlite: abstract values, tensors, primitives, and the stack of traces.

Everything that can be computed is a `Primitive`, and every computation goes through `bind`. With
nothing to trace, `bind` hands the primitive to the device that holds its arguments. While a
transform runs, some arguments are *tracers*: tensors that stand for a value in that transform.
`bind` then gives the primitive to the innermost trace concerned, which applies its own rule (a
derivative, a batching rule, an equation in a graph) and binds again one level further out.

This file knows no op and no device. Ops attach the operators and methods of `Tensor`; a device is
whatever a tensor carries.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

Rule = Callable[..., Any]


class TracerError(TypeError):
    """A traced value was used where a concrete one is needed, or outlived the transform that made
    it."""


class Aval(NamedTuple):
    """An abstract value: what is known of a tensor before it is computed."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


class Tensor:
    """An immutable n-dimensional array on a device.

    `data` is the device's own buffer (a NumPy array on the CPU); it has a `shape` and a `dtype`.
    Make tensors with `tl.asarray`; operators, indexing and methods such as `sum` or `reshape` are
    attached by `tensorlite.ops.methods`.

    Example:
        >>> x = tl.asarray([[1.0, 2.0], [3.0, 4.0]])
        >>> x.shape, x.dtype, x.sum(axis=0)
        ((2, 2), dtype('float32'), Tensor([4., 6.], dtype=float32, device=cpu))
        >>> print(x.at[0].set(0.0))  # a copy; x stays as it is
        [[0. 0.]
         [3. 4.]]
        >>> print(np.asarray(x) - x)
        [[0. 0.]
         [0. 0.]]
    """

    __slots__ = ("__weakref__", "data", "device")
    trace: Trace | None = None  # tracers set it; None means concrete
    weak = False  # a Python scalar that jit traces: it takes the dtype of what it meets
    __array_ufunc__ = None  # so that `ndarray + tensor` reaches Tensor.__radd__

    def __init__(self, data: Any, device: Any):
        self.data = data
        self.device = device

    if TYPE_CHECKING:  # attached by tensorlite.ops.methods
        at: Any
        T: Tensor
        mT: Tensor

        def __getitem__(self, key: Any, /) -> Tensor: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __lshift__(self, other: Any) -> Tensor: ...
        def __rshift__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __rlshift__(self, other: Any) -> Tensor: ...
        def __rrshift__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def astype(self, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor: ...
        def to_device(self, device: Any, /, *, stream: None = None) -> Tensor: ...
        def reshape(self, *sizes: Any) -> Tensor: ...
        def sum(self, axis: Any = None, **options: Any) -> Tensor: ...
        def mean(self, axis: Any = None, **options: Any) -> Tensor: ...
        def prod(self, axis: Any = None, **options: Any) -> Tensor: ...
        def max(self, axis: Any = None, **options: Any) -> Tensor: ...
        def min(self, axis: Any = None, **options: Any) -> Tensor: ...
        def var(self, axis: Any = None, **options: Any) -> Tensor: ...
        def std(self, axis: Any = None, **options: Any) -> Tensor: ...
        def argmax(self, axis: Any = None, **options: Any) -> Tensor: ...
        def argmin(self, axis: Any = None, **options: Any) -> Tensor: ...
        def all(self, axis: Any = None, **options: Any) -> Tensor: ...
        def any(self, axis: Any = None, **options: Any) -> Tensor: ...
        def squeeze(self, axis: Any = None, **options: Any) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def aval(self) -> Aval:
        data = self.data
        return Aval(data.shape, data.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def concrete(self, wanted: str) -> Tensor:
        """The concrete tensor below, or `TracerError`: `wanted` says who asks, e.g. "bool()"."""
        return self

    def delete(self) -> None:
        """Give the buffer back now. Later uses of this tensor raise `RuntimeError`."""
        self.data = _GONE

    def numpy(self) -> np.ndarray:
        """A read-only NumPy array of the values, without a copy where the device shares memory with
        the host."""
        host = self.concrete("conversion to NumPy")
        array = np.asarray(host.device.to_numpy(host.data)).view()
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"np.asarray: {self.dtype} to {np.dtype(dtype)} needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def item(self) -> Any:
        """The value of a tensor with one element as a Python scalar."""
        if self.size != 1:
            raise ValueError(
                f"item: only a tensor with one element is a scalar, got shape {self.shape}"
            )
        return self._scalar("item()")

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers; a number for a 0-d tensor."""
        return self.numpy().tolist()

    def _scalar(self, what: str) -> Any:
        if self.size != 1:
            raise TypeError(
                f"{what}: only a tensor with one element converts, got shape {self.shape}; "
                "reduce it first, e.g. with tl.all, tl.any or tl.sum"
            )
        host = self.concrete(what)
        return np.asarray(host.device.to_numpy(host.data)).reshape(()).item()

    def __bool__(self) -> bool:
        return bool(self._scalar("bool()"))

    def __int__(self) -> int:
        return int(self._scalar("int()"))

    def __float__(self) -> float:
        return float(self._scalar("float()"))

    def __complex__(self) -> complex:
        return complex(self._scalar("complex()"))

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"a tensor of dtype {self.dtype} is no index; only integers are")
        return int(self._scalar("index()"))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __hash__(self) -> int:
        raise TypeError(
            "tensors are not hashable: == compares elementwise; use id(t) or a name as the key"
        )

    def __setitem__(self, key: Any, value: Any, /) -> None:
        raise TypeError(
            "tensors are immutable: instead of x[i] = v write x = x.at[i].set(v) (also .add, "
            ".multiply, .min, .max)"
        )

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=1000)
        return f"Tensor({values}, dtype={self.dtype}, device={self.device})"

    def __str__(self) -> str:
        return str(self.numpy())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)


class _Gone:
    """The buffer of a tensor that was donated: whatever is asked of it is an error, and asking a
    real buffer costs nothing."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            "this tensor was donated to a jitted function (donate_argnums) and its memory is gone; "
            "use the function's result instead, or do not donate it"
        )


_GONE = _Gone()


class Tracer(Tensor):
    """A tensor that stands for a value inside a transform; every kind of trace has its own kind of
    tracer."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.aval.dtype

    @property
    def data(self) -> Any:
        raise TracerError(
            f"{type(self).__name__} of {self.aval} is traced and holds no data of its own"
        )

    def __repr__(self) -> str:
        return f"Traced({self.aval}, {self.trace})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self) if not spec else format(self._scalar(f"format {spec!r}"), spec)


class Primitive:
    """An operation and everything that is true of it on every device.

    The rules are attached with decorators, in this order:

    - `shape(*avals, **params) -> Aval or tuple of Avals`: also the place where arguments are
      checked;
    - `numpy(*arrays, **params) -> array or tuple of arrays`: the reference implementation;
    - `vjp(ans, *args, **params) -> pull or tuple of pulls`: one function from the cotangent of
      `ans` to the cotangent of each argument, None for an argument without derivative. Pulls are
      linear, since forward mode is the pullback of the pullback. A single argument may return its
      pull bare.
    - `fwd(needs, *args, **params) -> (ans, pull)` instead of `vjp` where the differentiated forward
      differs or the pulls share work: `needs[i]` says whether argument i is differentiated,
      `pull(ct)` gives a tuple with one entry per argument (of several results, `ct` is a tuple in
      which None stands for zero);
    - `batch(args, batched, **params) -> result`: `batched[i]` says whether axis 0 of argument i is
      the batch; every result has the batch at axis 0.

    Parameters must be hashable. Heavy device kernels are registered by backends, not here.
    """

    body: Rule | None = None  # a composite's decomposition into primitives

    def __init__(self, name: str, *, differentiable: bool = True):
        self.name = name
        self.differentiable = differentiable
        self.shape_rule: Rule | None = None
        self.numpy_rule: Rule | None = None
        self.vjp_rule: Rule | None = None
        self.fwd_rule: Rule | None = None
        self.batch_rule: Rule | None = None
        self.register()

    def register(self) -> None:
        if self.name in primitives:
            raise ValueError(f"there is already a primitive named {self.name!r}")
        primitives[self.name] = self

    def shape(self, rule: Rule) -> Rule:
        self.shape_rule = rule
        return rule

    def numpy(self, rule: Rule) -> Rule:
        self.numpy_rule = rule
        return rule

    def vjp(self, rule: Rule) -> Rule:
        self.vjp_rule = rule
        return rule

    def fwd(self, rule: Rule) -> Rule:
        self.fwd_rule = rule
        return rule

    def batch(self, rule: Rule) -> Rule:
        self.batch_rule = rule
        return rule

    def abstract(self, *avals: Aval, **params: Any) -> Aval | tuple[Aval, ...]:
        """Shapes and dtypes of the results; raises what the shape rule raises for bad arguments."""
        if self.shape_rule is None:
            raise NotImplementedError(f"{self.name} has no shape rule")
        return self.shape_rule(*avals, **params)

    def title(self, params: dict[str, Any]) -> str:
        """What people see in profiles and logs: the name, and those of the graphs it runs."""
        names = [str(p.name) for p in params.values() if hasattr(p, "equations")]
        return " ".join([self.name, *names])

    def __call__(self, *args: Tensor, **params: Any) -> Any:
        return bind(self, *args, **params)

    def __reduce__(self) -> Any:
        """A registered primitive is pickled as its name: there is one of it in each process."""
        if primitives.get(self.name) is self:
            return _primitive_named, (self.name,)
        return super().__reduce__()

    def __repr__(self) -> str:
        return self.name


primitives: dict[str, Primitive] = {}  # every primitive by name: tests and backends walk it


def _primitive_named(name: str) -> Primitive:
    if name not in primitives:
        raise LookupError(
            f"there is no primitive {name!r} in this process; import the module that makes it "
            "before unpickling"
        )
    return primitives[name]


def exactly(value: Any) -> Any:
    """A key that is equal only for values that compute alike: `1 == True == 1.0` and `0.0 == -0.0`
    do not count as equal here, inside tuples neither."""
    if isinstance(value, tuple):
        return type(value), tuple(map(exactly, value))
    if isinstance(value, frozenset):
        return type(value), frozenset(map(exactly, value))
    if isinstance(value, float):
        return type(value), math.copysign(1.0, value), value
    return type(value), value


class Trace:
    """One running transform. Traces nest; a higher `level` is further in."""

    name = "trace"

    def __init__(self, level: int):
        self.level = level
        self.alive = True

    def process(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        """Apply `prim` under this trace. Arguments of other traces are constants to it."""
        raise NotImplementedError

    def made(self, tracer: Tensor) -> str:
        """Where in the user's code `tracer` was made, as an addition to an error; empty if that
        is not known."""
        return ""

    def __str__(self) -> str:
        return self.name


class _Traces(threading.local):
    """The traces running in this thread. `floor` is the innermost graph trace: it captures even
    operations on constants."""

    level: int = 0
    floor: Trace | None = None


traces = _Traces()


@contextlib.contextmanager
def new_trace(make: Callable[..., Any], *args: Any, is_floor: bool = False) -> Iterator[Any]:
    """Run the body under a new innermost trace `make(level, *args)`, which is dead afterwards."""
    level, floor = traces.level, traces.floor
    trace = make(level + 1, *args)
    traces.level = level + 1
    if is_floor:
        traces.floor = trace
    try:
        yield trace
    finally:
        trace.alive = False
        traces.level, traces.floor = level, floor


def tracing_graph() -> Trace | None:
    """The innermost graph trace running in this thread, or None."""
    return traces.floor


def bind(prim: Primitive, *args: Tensor, **params: Any) -> Any:
    """Apply `prim` to tensors: by the innermost trace among them, else by the device that holds
    them."""
    top = traces.floor
    for arg in args:
        trace = arg.trace
        if trace is not None and (top is None or trace.level > top.level):
            top = trace
    if top is None:
        device = args[0].device if args else params["device"]
        return device.run(prim, args, params)
    if not top.alive:
        raise leaked(top, prim, next(arg for arg in args if arg.trace is top))
    return top.process(prim, args, params)


def leaked(
    trace: Trace, prim: Primitive | None = None, tracer: Tensor | None = None
) -> TracerError:
    """The error for a tracer that is used after its transform has ended."""
    where = f"{prim.name}: " if prim is not None else ""
    made = trace.made(tracer) if tracer is not None else ""
    return TracerError(
        f"{where}got a value traced by {trace}, which has already ended{made}; the value leaked "
        "out of the transformed function "
        "through a global, an attribute or a closure. Return it from the function instead (a "
        "module that updates itself, "
        "such as BatchNorm, is returned by the loss: `return loss, model` with has_aux=True)"
    )


def captured(trace: Trace, prim: Primitive) -> TypeError:
    """The error for a function with rules of its own that closes over what `trace` traces, which
    its rules cannot see."""
    return TypeError(
        f"{prim.name}: the function closes over a value that {trace} traces; "
        "pass it as an argument instead"
    )
