"""Mixed precision: what becomes bfloat16 and what does not, beside float32 and under every
transform."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import tensorlite as tl
import tensorlite.distributed  # registers the primitives of the whole project
from tensorlite import dtypes, nn, optim, random
from tensorlite.core import bind, primitives
from tensorlite.precision import active
from tests.ops.sampling import all_strategies, has_floats

EPS = 2.0**-8  # of bfloat16: to the next number above 1 it is twice this far


def normal(*shape: int, seed: int = 0) -> tl.Tensor:
    return tl.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def numbers(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def close(a: Any, b: Any, steps: float = 8) -> None:
    """Whether `a` is `b` up to some roundings to bfloat16, relative to the largest of `b`."""
    a, b = numbers(a), numbers(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max(initial=0) <= steps * EPS * max(np.abs(b).max(initial=0), 1e-6)


def all_close(a: Any, b: Any, steps: float = 8) -> None:
    for x, y in zip(tl.tree.leaves(a), tl.tree.leaves(b), strict=True):
        close(x, y, steps)


# ---- the policy itself ---------------------------------------------------------------------------


def test_blocks_nest_and_end_with_an_error_too() -> None:
    assert active() == "f32"
    with pytest.raises(KeyError), tl.precision("bf16"):
        assert active() == "bf16"
        with tl.precision("f32"):
            assert active() == "f32"
            with tl.precision("bf16"):
                assert active() == "bf16"
        assert active() == "bf16"
        raise KeyError
    assert active() == "f32"


def test_one_policy_can_be_entered_twice() -> None:
    policy = tl.precision("bf16")
    with policy, tl.precision("f32"), policy:
        assert active() == "bf16"
    assert active() == "f32"


@pytest.mark.parametrize("name", ["fp16", "bfloat16", "", None, tl.bfloat16])
def test_unknown_names_are_refused_with_the_list(name: Any) -> None:
    with pytest.raises(ValueError, match=r"there is no .*; it is one of 'f32', 'bf16'"):
        tl.precision(name)


def test_as_a_decorator_it_is_active_in_every_call() -> None:
    @tl.precision("bf16")
    def name_and_factorial(n: int) -> tuple[str, int]:
        """Documented."""
        below = name_and_factorial(n - 1)[1] if n else 1
        return active(), max(n, 1) * below

    assert name_and_factorial(4) == ("bf16", 24)
    assert name_and_factorial.__doc__ == "Documented."
    assert active() == "f32"


def test_functions_that_run_after_their_call_are_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def coroutine() -> None:
        pass

    for function in (generator, coroutine):
        with pytest.raises(TypeError, match="is a generator or coroutine"):
            tl.precision("bf16")(function)


def test_threads_have_their_own() -> None:
    policy, seen, entered, done = tl.precision("bf16"), {}, threading.Event(), threading.Event()

    def other() -> None:
        seen["at first"] = active()
        with policy:
            seen["inside"] = active()
            entered.set()
            done.wait(30)
        seen["after"] = active()

    with policy:
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
    seen["here"] = active()
    done.set()
    thread.join(30)
    assert seen == {"at first": "f32", "inside": "bf16", "here": "f32", "after": "f32"}


# ---- what becomes bfloat16 -----------------------------------------------------------------------

X, W = normal(4, 6), normal(6, 5, seed=1)
IMAGES, KERNEL = normal(2, 7, 7, 3), normal(3, 3, 3, 4, seed=1)
PRODUCTS: dict[str, Callable[[], tl.Tensor]] = {
    "matmul": lambda: tl.matmul(X, W),
    "operator": lambda: X @ W,
    "of an array": lambda: np.asarray(X) @ W,
    "of a vector": lambda: X @ W[:, 0],
    "linalg": lambda: tl.linalg.matmul(X, W),
    "tensordot": lambda: tl.tensordot(IMAGES, W[:3], axes=1),
    "conv": lambda: nn.conv(IMAGES, KERNEL, stride=2),
    "conv_transpose": lambda: nn.conv_transpose(IMAGES, KERNEL.mT, stride=2),
    "attention": lambda: nn.attention(X, X, normal(4, 3, seed=2), causal=True),
    "Linear": lambda: nn.Linear(6, 5, key=random.key(0))(X),
    "Conv": lambda: nn.Conv(3, 4, 3, key=random.key(0))(IMAGES),
    "ConvTranspose": lambda: nn.ConvTranspose(3, 4, 3, key=random.key(0))(IMAGES),
    "grouped": lambda: nn.Conv(3, 6, 3, groups=3, key=random.key(0))(IMAGES),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_bfloat16_and_close_to_float32(name: str) -> None:
    product = PRODUCTS[name]
    exact = product()
    with tl.precision("bf16"):
        result = product()
        with tl.precision("f32"):
            again = product()
    assert (exact.dtype, result.dtype, again.dtype) == (tl.float32, tl.bfloat16, tl.float32)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(exact))
    close(result, exact)
    assert np.any(numbers(result) != numbers(exact))


def test_sums_are_made_in_float32() -> None:
    # In bfloat16, 256 + 1 is 256.
    x, w = tl.ones((1, 4096)), tl.ones((4096, 1))
    with tl.precision("bf16"):
        assert float((x @ w)[0, 0]) == 4096
        assert float(nn.conv(tl.ones((1, 1, 4096)), tl.ones((1, 4096, 1)))[0, 0, 0]) == 4096


@pytest.mark.parametrize("dtype", [tl.float64, tl.float16, tl.int32], ids=str)
def test_other_dtypes_are_left_alone(dtype: Any) -> None:
    x, w = X.astype(dtype), W.astype(dtype)
    with tl.precision("bf16"):
        assert (x @ w).dtype == dtype
        assert (x @ W).dtype == tl.result_type(dtype, tl.float32)


def test_mixed_operands_do_not_promote_back() -> None:
    with tl.precision("bf16"):
        y = X @ W
        assert y.dtype == (y @ W.mT).dtype == nn.attention(y, y, normal(4, 5)).dtype == tl.bfloat16
    assert (y @ W.mT).dtype == tl.float32


def test_dtypes_along_a_network() -> None:
    seen: dict[str, Any] = {}

    def note(name: str, x: tl.Tensor) -> tl.Tensor:
        seen[name] = x.dtype
        return x

    keys = random.split(random.key(0), 4)
    conv, linear = nn.Conv(3, 8, 3, key=keys[0]), nn.Linear(8, 4, key=keys[1])
    batch_norm, layer_norm = nn.BatchNorm(8), nn.LayerNorm(8)
    with tl.precision("bf16"):
        x = note("conv", conv(IMAGES))
        x = note("batch norm", batch_norm(x, training=True))
        x = note("relu", nn.relu(x))
        x = note("max pool", nn.max_pool(x, 2))
        x = note("average pool", nn.avg_pool(x, 2, stride=1))
        x = note("response norm", nn.local_response_norm(x, 3))
        x = note("gelu", nn.gelu(x))
        x = note("dropout", nn.dropout(x, 0.5, keys[2]))
        x = note("mean", tl.mean(x, axis=(1, 2)))
        x = note("layer norm", layer_norm(x))
        logits = note("linear", linear(x))
        sums = {
            "softmax": nn.softmax(logits),
            "log softmax": nn.log_softmax(logits),
            "loss": nn.softmax_cross_entropy(logits, tl.asarray([1, 3])),
            "loss of shares": nn.softmax_cross_entropy(logits, nn.one_hot(tl.asarray([1, 3]), 4)),
        }
    assert set(seen.values()) == {tl.bfloat16}, seen
    assert {name: y.dtype for name, y in sums.items()} == dict.fromkeys(sums, tl.float32)
    assert batch_norm.mean.dtype == batch_norm.variance.dtype == tl.float32
    assert nn.softmax(logits).dtype == tl.bfloat16


def test_algorithms_of_linear_algebra_keep_float32() -> None:
    a = X @ X.mT + 4 * tl.eye(4)
    plain = [tl.linalg.matrix_power(a, 3), tl.linalg.pinv(X), tl.linalg.inv(a)]
    with tl.precision("bf16"):
        under = [tl.linalg.matrix_power(a, 3), tl.linalg.pinv(X), tl.linalg.inv(a)]
    for x, y in zip(plain, under, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# ---- rules of primitives never ask ---------------------------------------------------------------

# Their parameters are graphs, devices or functions.
ELSEWHERE = {"call", "checkpoint", "transfer", "cond", "while_loop", "scan"}
RULED = [n for n in sorted(set(primitives) - ELSEWHERE) if has_floats(n)]


@pytest.mark.parametrize("name", RULED)
@settings(max_examples=2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_rule_of_a_primitive_depends_on_it(name: str, data: Any) -> None:
    """Graphs derived from a graph are kept by that graph, so they may not depend on it."""
    sample, prim = data.draw(all_strategies()[name]), primitives[name]
    floats = [i for i, a in enumerate(sample.args) if a.dtype == np.float64]
    arrays = [a.astype(np.float32) if i in floats else a for i, a in enumerate(sample.args)]
    args = [tl.asarray(a) for a in arrays]

    def total(*xs: tl.Tensor) -> tl.Tensor:
        results = bind(prim, *xs, **sample.params)
        results = results if isinstance(results, tuple) else (results,)
        parts = [tl.sum(r.astype(tl.float32)) for r in results if dtypes.is_float(r.dtype)]
        return sum(parts, tl.zeros(()))

    forms = [total]
    if floats and prim.differentiable:
        forms.append(tl.grad(total, argnums=tuple(floats)))
    with tl.precision("bf16"):
        for form in forms:
            assert "bfloat16" not in tl.make_graph(form)(*args).to_text()


def test_batching_does_not_depend_on_it() -> None:
    for graph in (
        tl.make_graph(tl.vmap(tl.linalg.inv)),
        tl.make_graph(tl.vmap(lambda x: nn.local_response_norm(x, 3))),
    ):
        with tl.precision("bf16"):
            assert "bfloat16" not in graph(normal(2, 3, 3)).to_text()


# ---- networks: forward and gradient --------------------------------------------------------------


class Convolutional(nn.Module):
    """Convolution, batch norm, pooling, response norm, and a dense layer."""

    def __init__(self, key: tl.Tensor):
        keys = random.split(key)
        self.conv = nn.Conv(3, 8, 3, key=keys[0])
        self.norm = nn.BatchNorm(8)
        self.head = nn.Linear(8, 4, key=keys[1])

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = nn.relu(self.norm(self.conv(x), training=True))
        x = nn.local_response_norm(nn.max_pool(x, 2), 3)
        return self.head(tl.mean(x, axis=(1, 2)))


class Attentive(nn.Module):
    """Attention between layer norms, with a residual, and gelu."""

    def __init__(self, key: tl.Tensor):
        keys = random.split(key, 3)
        self.norm = nn.LayerNorm(6)
        self.mix, self.head = nn.Linear(6, 18, key=keys[0]), nn.Linear(6, 4, key=keys[1])

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        q, k, v = tl.unstack(tl.reshape(self.mix(self.norm(x)), (*x.shape[:-1], 3, 6)), axis=-2)
        return self.head(nn.gelu(tl.mean(x + nn.attention(q, k, v), axis=1)))


NETWORKS = {
    "convolutional": (Convolutional, normal(8, 6, 6, 3, seed=5)),
    "attentive": (Attentive, normal(8, 5, 6, seed=6)),
}
LABELS = tl.asarray(np.arange(8) % 4)


def loss_of(model: Any, x: tl.Tensor) -> tl.Tensor:
    return tl.mean(nn.softmax_cross_entropy(model(x), LABELS))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("compile_", [lambda f: f, tl.jit], ids=["eager", "jit"])
def test_networks_train_as_in_float32(name: str, compile_: Callable[[Any], Any]) -> None:
    network, x = NETWORKS[name]
    model = network(random.key(1))
    differentiate = compile_(tl.value_and_grad(loss_of))
    loss, gradients = differentiate(model, x)
    with tl.precision("bf16"):
        rounded_loss, rounded = differentiate(model, x)
    assert rounded_loss.dtype == tl.float32
    assert [g.dtype for g in tl.tree.leaves(rounded)] == [p.dtype for p in tl.tree.leaves(model)]
    close(rounded_loss, loss, steps=4)
    scale = max(np.abs(numbers(g)).max() for g in tl.tree.leaves(gradients))
    for g, r in zip(tl.tree.leaves(gradients), tl.tree.leaves(rounded), strict=True):
        assert np.abs(numbers(g) - numbers(r)).max() <= 8 * EPS * scale
    assert any(
        np.any(numbers(g) != numbers(r))
        for g, r in zip(tl.tree.leaves(gradients), tl.tree.leaves(rounded), strict=True)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_jit_agrees_with_eager(name: str) -> None:
    network, x = NETWORKS[name]
    model = network(random.key(1))
    with tl.precision("bf16"):
        eager = tl.value_and_grad(loss_of)(model, x)
        all_close(tl.jit(tl.value_and_grad(loss_of))(model, x), eager, steps=12)
        all_close(tl.value_and_grad(tl.jit(loss_of))(model, x), eager, steps=12)


def test_parameters_and_state_stay_float32_over_steps() -> None:
    network, x = NETWORKS["convolutional"]
    model, optimizer = network(random.key(1)), optim.adam(0.01)
    state = optimizer.init(model)
    before = [leaf.dtype for leaf in tl.tree.leaves((model, state))]

    @tl.jit
    @tl.precision("bf16")
    def step(model: Any, state: Any) -> tuple[Any, Any, tl.Tensor]:
        loss, gradients = tl.value_and_grad(loss_of)(model, x)
        updates, state = optimizer.update(gradients, state, model)
        return optim.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(12):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert [leaf.dtype for leaf in tl.tree.leaves((model, state))] == before
    assert losses[-1] < losses[0]


# ---- transforms ----------------------------------------------------------------------------------


def product(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    return tl.tanh(x @ w)


def test_a_jitted_function_is_traced_for_each_precision() -> None:
    f = tl.jit(product)
    expected = np.dtype(np.float32)
    assert f(X, W).dtype == expected
    with tl.precision("bf16"):
        assert f(X, W).dtype == tl.bfloat16
        assert f.cache_info() == (2, 0)
        with tl.precision("f32"):
            assert f(X, W).dtype == expected
        assert f(X, W).dtype == tl.bfloat16
    with tl.precision("f32"):
        assert f(X, W).dtype == expected
    assert f.cache_info() == (2, 3)


def test_a_block_inside_of_a_traced_function() -> None:
    @tl.jit
    def f(x: tl.Tensor, w: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        with tl.precision("bf16"):
            inside = x @ w
        return inside, x @ w

    assert [y.dtype for y in f(X, W)] == [tl.bfloat16, tl.float32]
    assert f.cache_info().traces == 1


def test_a_derivative_taken_outside_of_the_block_has_the_same_products() -> None:
    def rounded(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
        with tl.precision("bf16"):
            return tl.sum(product(x, w).astype(tl.float32))

    inside = tl.grad(rounded, argnums=(0, 1))(X, W)
    with tl.precision("bf16"):
        outside = tl.grad(lambda x, w: tl.sum(product(x, w).astype(tl.float32)), (0, 1))(X, W)
    for a, b in zip(inside, outside, strict=True):
        assert a.dtype == b.dtype == tl.float32
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def scanned(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    return tl.scan(
        lambda c, row: (c + tl.sum(product(row[None], w)).astype(c.dtype), None), 0.0, x
    )[0]


def looped(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    def body(state: tuple[tl.Tensor, tl.Tensor]) -> tuple[tl.Tensor, tl.Tensor]:
        i, y = state
        return i + 1, product(y, w @ w.mT).astype(tl.float32)

    return tl.sum(tl.while_loop(lambda s: s[0] < 2, body, (tl.asarray(0), x))[1])


def chosen(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    return tl.sum(tl.cond(tl.sum(x) > 0, product, lambda x, w: -product(x, w), x, w))


COMPOSED: dict[str, tuple[Callable[..., Any], bool]] = {  # and whether reverse mode goes through
    "checkpoint": (lambda x, w: tl.sum(tl.checkpoint(product)(x, w)), True),
    "scan": (scanned, True),
    "while_loop": (looped, False),
    "cond": (chosen, True),
    "vmap": (lambda x, w: tl.sum(tl.vmap(product, (0, None))(x, w)), True),
    "jit": (lambda x, w: tl.sum(tl.jit(product)(x, w)), True),
    "grad": (lambda x, w: tl.sum(tl.grad(lambda x: tl.sum(product(x, w)))(x)), True),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("compile_", [lambda f: f, tl.jit], ids=["eager", "jit"])
def test_transforms_inside_take_part(name: str, compile_: Callable[[Any], Any]) -> None:
    f, is_differentiable = COMPOSED[name]
    form: Any = tl.value_and_grad(f, argnums=(0, 1)) if is_differentiable else f
    form = compile_(form)
    plain = form(X, W)
    with tl.precision("bf16"):
        assert "bfloat16" in tl.make_graph(f)(X, W).to_text()
        rounded = form(X, W)
    assert "bfloat16" not in tl.make_graph(f)(X, W).to_text()
    all_close(rounded, plain, steps=16)
    all_close(form(X, W), plain, steps=0)
    assert any(
        np.any(numbers(a) != numbers(b))
        for a, b in zip(tl.tree.leaves(rounded), tl.tree.leaves(plain), strict=True)
    )


def test_traces_of_composites_are_not_shared() -> None:
    # attention is a composite, whose graph is kept by shapes and dtypes.
    q = normal(2, 4, 6)
    texts = []
    for policy in ("f32", "bf16", "f32"):
        with tl.precision(policy):
            texts.append(tl.make_graph(tl.grad(lambda q: tl.sum(nn.attention(q, q, q))))(q))
    first, middle, last = (text.to_text() for text in texts)
    assert first == last and "bfloat16" not in first and "bfloat16" in middle


def test_custom_derivatives_take_part() -> None:
    @tl.custom_vjp
    def f(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
        return x @ w

    f.defvjp(
        lambda x, w: (x @ w, (x, w)),
        lambda kept, g: (
            (g @ kept[1].mT).astype(kept[0].dtype),
            (kept[0].mT @ g).astype(kept[1].dtype),
        ),
    )
    with tl.precision("bf16"):
        value, gradients = tl.value_and_grad(lambda x, w: tl.sum(f(x, w)), (0, 1))(X, W)
    assert value.dtype == tl.bfloat16
    assert [g.dtype for g in gradients] == [tl.float32, tl.float32]


def test_one_module_may_have_a_precision_of_its_own() -> None:
    class Rounded(nn.Linear):
        @tl.precision("bf16")
        def __call__(self, x: tl.Tensor) -> tl.Tensor:
            return super().__call__(x)

    layers = [nn.Linear(6, 6, key=random.key(0)), Rounded(6, 6, key=random.key(1))]
    dtypes_ = [layer(X).dtype for layer in layers]
    assert dtypes_ == [tl.float32, tl.bfloat16]
    model = nn.Sequential(*layers)
    gradient = tl.grad(lambda model: tl.sum(model(X).astype(tl.float32)))(model)
    assert {g.dtype for g in tl.tree.leaves(gradient)} == {np.dtype(np.float32)}


# ---- without oneDNN ------------------------------------------------------------------------------

WITHOUT_ONEDNN = """
import warnings; warnings.simplefilter("ignore")
import numpy as np, tensorlite as tl
from tensorlite import nn
from tensorlite.backends.cpu.onednn import library
assert library.load() is None
rng = np.random.default_rng(0)
x, w = (tl.asarray(rng.normal(size=s).astype("f")) for s in ((8, 12, 12, 16), (3, 3, 16, 16)))
def f(x, w):
    y = nn.conv(x, w).reshape(8, -1, 16) @ w[0, 0]
    return tl.mean(tl.square(y.astype(tl.float32)))
for form in (tl.value_and_grad(f, (0, 1)), tl.jit(tl.value_and_grad(f, (0, 1)))):
    plain = tl.tree.leaves(form(x, w))
    with tl.precision("bf16"):
        rounded = tl.tree.leaves(form(x, w))
    for a, b in zip(plain, rounded, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert b.dtype == np.float32 and 0 < np.abs(a - b).max() <= 0.03 * np.abs(a).max()
"""


@pytest.mark.parametrize("compiler", ["llvm", "numpy"])
def test_without_onednn(compiler: str) -> None:
    environment = {
        **os.environ,
        "TENSORLITE_ONEDNN": "/nowhere/libdnnl.so",
        "TENSORLITE_COMPILER": compiler,
    }
    subprocess.run([sys.executable, "-c", WITHOUT_ONEDNN], check=True, env=environment, timeout=120)
