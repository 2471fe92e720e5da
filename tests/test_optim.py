import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import nn, optim, random, tree

# ---- models, gradients, and a plain NumPy loop ---------------------------------------------------


class Net(nn.Module):
    def __init__(self, dtype=tl.float64):
        self.first = nn.Linear(3, 4, key=random.key(0), dtype=dtype)
        self.steps = nn.Buffer(tl.asarray(7))
        self.norm = nn.BatchNorm(4, dtype=dtype)


def gradients(model, seed):
    """Some gradient for every parameter, zeros for buffers."""
    rng = np.random.default_rng(seed)
    leaves, treedef = tree.flatten(model)
    mask = tree.parameter_mask(model)
    return tree.unflatten(
        treedef,
        [
            tl.asarray(rng.normal(size=x.shape), dtype=x.dtype) if m else tl.zeros_like(x)
            for x, m in zip(leaves, mask, strict=True)
        ],
    )


def run(opt, model, steps, compiled=True):
    """The parameters after `steps` updates, by name."""

    def step(model, state, grads):
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state

    step = tl.jit(step) if compiled else step
    state = opt.init(model)
    for i in range(steps):
        model, state = step(model, state, gradients(model, i))
    return model, state


def reference(rule, model, steps):
    """The same with `rule(p, g, slots, t)`, which gives the new p; `slots` is a dict that it keeps
    values in, t counts from 1.
    """
    params = {n: np.asarray(p, np.float64) for n, p in model.parameters().items()}
    slots = {n: {} for n in params}
    for i in range(steps):
        grads = gradients(model, i).parameters()
        params = {
            n: rule(p, np.asarray(grads[n], np.float64), slots[n], i + 1) for n, p in params.items()
        }
    return params


def agree(model, expected, **tolerance):
    found = model.parameters()
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64),
            value,
            **{"rtol": 1e-10, "atol": 1e-12, **tolerance},
        )


# ---- rules against their formulas ----------------------------------------------------------------


def sgd_rule(rate, momentum, nesterov):
    # The formula of torch.optim.SGD.
    def rule(p, g, slots, t):
        lr = rate(t - 1) if callable(rate) else rate
        v = momentum * slots["v"] + g if t > 1 else g
        slots["v"] = v
        return p - lr * (g + momentum * v if nesterov else v)

    return rule


def adam_rule(rate, b1, b2, eps, decay=0.0):
    # The formulas of torch.optim.Adam and AdamW.
    def rule(p, g, slots, t):
        m = slots["m"] = b1 * slots.get("m", 0) + (1 - b1) * g
        v = slots["v"] = b2 * slots.get("v", 0) + (1 - b2) * g * g
        p = p - rate * decay * p
        return p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return rule


def rmsprop_rule(rate, decay, eps):
    def rule(p, g, slots, t):
        v = slots["v"] = decay * slots.get("v", 0) + (1 - decay) * g * g
        return p - rate * g / (np.sqrt(v) + eps)

    return rule


RULES = {
    "sgd": (optim.sgd(0.1), sgd_rule(0.1, 0, False)),
    "momentum": (optim.sgd(0.1, momentum=0.9), sgd_rule(0.1, 0.9, False)),
    "nesterov": (optim.sgd(0.1, momentum=0.9, nesterov=True), sgd_rule(0.1, 0.9, True)),
    "schedule": (
        optim.sgd(optim.exponential_decay(0.1, 7, 0.5, staircase=True), momentum=0.5),
        sgd_rule(lambda step: 0.1 * 0.5 ** (step // 7), 0.5, False),
    ),
    "adam": (optim.adam(0.01, 0.8, 0.99, 1e-6), adam_rule(0.01, 0.8, 0.99, 1e-6)),
    "adam without momentum": (optim.adam(0.01, 0.0), adam_rule(0.01, 0.0, 0.999, 1e-8)),
    "adamw": (optim.adamw(0.01, weight_decay=0.1), adam_rule(0.01, 0.9, 0.999, 1e-8, 0.1)),
    "rmsprop": (optim.rmsprop(0.01, 0.8, 1e-3), rmsprop_rule(0.01, 0.8, 1e-3)),
}


@pytest.mark.parametrize("name", RULES)
def test_many_steps_follow_the_formula(name):
    opt, rule = RULES[name]
    model, state = run(opt, Net(), 60)
    agree(model, reference(rule, Net(), 60))
    assert state["count"].item() == 60
    assert model.steps.item() == 7


@pytest.mark.parametrize("name", RULES)
def test_eager_and_compiled_agree(name):
    opt, _ = RULES[name]
    eager, _ = run(opt, Net(), 5, compiled=False)
    agree(eager, {n: np.asarray(p) for n, p in run(opt, Net(), 5)[0].parameters().items()})


@pytest.mark.parametrize("name", RULES)
def test_narrow_parameters_are_trained_in_float32(name):
    opt, rule = RULES[name]
    model, state = run(opt, Net(tl.bfloat16), 10)
    assert all(p.dtype == tl.bfloat16 for p in model.parameters().values())
    assert all(x.dtype in (tl.float32, tl.int64) for x in tree.leaves(state))
    agree(model, reference(rule, Net(tl.bfloat16), 10), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", RULES)
def test_a_quadratic_is_minimized(name):
    opt, _ = RULES[name]
    target = tl.asarray([1.0, -2.0, 0.5])

    def loss(x):
        return tl.sum((x - target) ** 2)

    @tl.jit
    def step(x, state):
        updates, state = opt.update(tl.grad(loss)(x), state, x)
        return optim.apply_updates(x, updates), state

    x = tl.zeros(3)
    state = opt.init(x)
    start = loss(x).item()
    for _ in range(400):
        x, state = step(x, state)
    assert loss(x).item() < 0.01 * start


# ---- what the state looks like, and which leaves are trained -------------------------------------


def test_states_are_named_like_the_parameters():
    opt = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1, momentum=0.9))
    assert tree.paths(opt.init(Net())) == [
        "1.count",
        "1.momentum.first.bias",
        "1.momentum.first.weight",
        "1.momentum.norm.offset",
        "1.momentum.norm.scale",
    ]
    assert list(optim.adam(0.1).init(tl.zeros(3))["m"]) == ["value"]


def test_buffers_get_zero_updates_and_stay():
    model = Net()
    model.norm.mean = tl.ones(4)
    opt = optim.chain(optim.sgd(0.1), optim.weight_decay(0.5))
    updates, _ = opt.update(gradients(model, 0), opt.init(model), model)
    assert tree.structure(updates) == tree.structure(model)
    for name, update in updates.buffers().items():
        assert not np.any(np.asarray(update)), name
    applied = optim.apply_updates(model, updates)
    assert applied.steps is model.steps and applied.norm.mean is model.norm.mean


@given(
    st.recursive(
        st.sampled_from([tl.float16, tl.bfloat16, tl.float32, tl.float64]).map(
            lambda d: tl.ones(2, dtype=d)
        ),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
    )
)
def test_any_pytree_of_floats_is_a_model(model):
    opt = optim.adam(0.5)
    updates, state = opt.update(model, opt.init(model), model)
    moved = optim.apply_updates(model, updates)
    assert tree.structure(moved) == tree.structure(model)
    for before, after in zip(tree.leaves(model), tree.leaves(moved), strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_allclose(np.asarray(after, np.float64), 0.5, rtol=1e-2)
    opt.update(model, state, model)


# ---- decay and clipping --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        lambda name: name.endswith("weight"),
        {"first.weight": True, "first.bias": False, "norm.scale": False, "norm.offset": False},
    ],
)
def test_masks_choose_what_decays(mask):
    model, _ = run(optim.chain(optim.sgd(0.1), optim.weight_decay(0.2, mask)), Net(), 3)
    expected = reference(lambda p, g, slots, t: p - 0.1 * g, Net(), 3)
    decayed = reference(lambda p, g, slots, t: p - 0.1 * g - 0.2 * p, Net(), 3)
    agree(model, {**expected, "first.weight": decayed["first.weight"]})
    adamw, _ = run(optim.adamw(0.01, weight_decay=0.1, mask=mask), Net(), 3)
    plain = reference(adam_rule(0.01, 0.9, 0.999, 1e-8), Net(), 3)
    decayed = reference(adam_rule(0.01, 0.9, 0.999, 1e-8, 0.1), Net(), 3)
    agree(adamw, {**plain, "first.weight": decayed["first.weight"]})


def test_l2_is_the_gradient_of_the_l2_loss():
    model, _ = run(optim.chain(optim.add_l2(0.2), optim.sgd(0.1, momentum=0.9)), Net(), 5)

    def rule(p, g, slots, t):
        return sgd_rule(0.1, 0.9, False)(p, g + 0.2 * p, slots, t)

    agree(model, reference(rule, Net(), 5))


def test_a_decay_rate_may_be_a_schedule():
    opt = optim.chain(optim.sgd(0.0), optim.weight_decay(optim.piecewise_constant([0], [0.5, 0.0])))
    model, _ = run(opt, Net(), 3)
    agree(model, {n: np.asarray(p) / 2 for n, p in Net().parameters().items()})


@given(st.floats(1e-3, 1e3))
def test_clipping_by_global_norm(max_norm):
    grads = {"a": tl.asarray([3.0, 4.0]), "b": tl.asarray(12.0)}
    opt = optim.clip_by_global_norm(max_norm)
    clipped, _ = opt.update(grads, opt.init(grads), grads)
    factor = min(1.0, max_norm / 13)
    np.testing.assert_allclose(np.asarray(clipped["a"]), [3 * factor, 4 * factor], rtol=1e-6)
    np.testing.assert_allclose(optim.global_norm(clipped).item(), min(13, max_norm), rtol=1e-6)


def test_clipping_leaves_zeros_and_shows_nan():
    opt = optim.clip_by_global_norm(1.0)
    zeros, _ = opt.update(tl.zeros(3), opt.init(tl.zeros(3)), tl.zeros(3))
    np.testing.assert_array_equal(np.asarray(zeros), np.zeros(3))
    bad, _ = opt.update(tl.asarray([math.nan, 1.0]), opt.init(tl.zeros(2)), tl.zeros(2))
    assert np.isnan(np.asarray(bad)).any()


def test_clipping_by_value():
    opt = optim.clip_by_value(2.0)
    clipped, _ = opt.update(tl.asarray([-5.0, 1.0, 3.0]), opt.init(tl.zeros(3)), tl.zeros(3))
    np.testing.assert_array_equal(np.asarray(clipped), [-2, 1, 2])


def test_global_norm_of_narrow_values_does_not_overflow():
    assert (
        optim.global_norm([tl.full((4,), 30_000.0, dtype=tl.float16), tl.arange(3)]).item()
        == 60_000
    )


# ---- schedules -----------------------------------------------------------------------------------

SCHEDULES = {
    "constant": (optim.constant(0.3), lambda t: 0.3),
    "exponential": (optim.exponential_decay(0.5, 10, 0.9), lambda t: 0.5 * 0.9 ** (t / 10)),
    "staircase": (
        optim.exponential_decay(0.5, 10, 0.9, staircase=True),
        lambda t: 0.5 * 0.9 ** (t // 10),
    ),
    "piecewise": (
        optim.piecewise_constant([10, 20], [1.0, 0.5, 0.1]),
        lambda t: 1.0 if t <= 10 else 0.5 if t <= 20 else 0.1,
    ),
    "polynomial": (
        optim.polynomial(1.0, 0.2, 20, power=2.0),
        lambda t: 0.2 + 0.8 * (1 - min(t, 20) / 20) ** 2,
    ),
    "cosine": (
        optim.cosine_decay(1.0, 20, end=0.1),
        lambda t: 0.1 + 0.45 * (1 + math.cos(math.pi * min(t, 20) / 20)),
    ),
    "warmup": (optim.linear_warmup(10, 0.4), lambda t: 0.4 * min(t, 10) / 10),
    "warmup, cosine": (
        optim.warmup_cosine(0.4, 10, 30),
        lambda t: 0.4 * t / 10 if t < 10 else 0.2 * (1 + math.cos(math.pi * min(t - 10, 20) / 20)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule, formula = SCHEDULES[name]
    compiled = tl.jit(schedule)
    for step in (0, 1, 5, 9, 10, 11, 20, 21, 29, 30, 100):
        for dtype, tolerance in ((tl.int64, 1e-6), (tl.float64, 1e-12)):
            value = compiled(tl.asarray(step, dtype=dtype))
            assert value.shape == () and value.dtype == (
                tl.float64 if dtype == tl.float64 else tl.float32
            )
            np.testing.assert_allclose(value.item(), formula(step), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(schedule(step).item(), formula(step), rtol=1e-6, atol=1e-6)


# ---- moving averages -----------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_moving_averages(warm_up, compiled):
    average = optim.ema(0.9, warm_up=warm_up)
    model = Net()
    state = average.init(model)
    expected = {n: np.asarray(p) for n, p in model.parameters().items()}
    update = tl.jit(average.update) if compiled else average.update
    for n in range(1, 40):
        model = gradients(model, n)
        state = update(state, model)
        decay = min(0.9, (1 + n) / (10 + n)) if warm_up else 0.9
        expected = {
            name: decay * e + (1 - decay) * np.asarray(model.parameters()[name])
            for name, e in expected.items()
        }
    model.norm.mean = tl.full((4,), 5.0)
    averaged = average.average(state, model)
    agree(averaged, expected)
    assert averaged.norm.mean is model.norm.mean
    assert tree.structure(averaged) == tree.structure(model)


def test_averages_of_narrow_parameters_are_float32():
    average = optim.ema(0.999)
    model = Net(tl.bfloat16)
    state = average.update(average.init(model), model)
    assert all(x.dtype == tl.float32 for x in state["average"].values())
    assert average.average(state, model).first.weight.dtype == tl.bfloat16


# ---- errors --------------------------------------------------------------------------------------


def test_disagreement_names_the_parameters():
    opt = optim.sgd(0.1, momentum=0.9)
    model = {"a": tl.zeros(2), "b": tl.zeros(3)}
    state = opt.init(model)
    with pytest.raises(ValueError, match=r"b: the gradient has none\n  c: the model has none"):
        opt.update({"a": tl.zeros(2), "c": tl.zeros(3)}, state, model)
    with pytest.raises(ValueError, match=r"a: the gradient has shape \(3,\), the model \(2,\)"):
        opt.update({"a": tl.zeros(3), "b": tl.zeros(3)}, state, model)
    with pytest.raises(
        ValueError, match=r"the state's momentum .*\n  b: .* shape \(3,\), the model \(4,\)"
    ):
        larger = {"a": tl.zeros(2), "b": tl.zeros(4)}
        opt.update(larger, state, larger)
    with pytest.raises(
        ValueError, match=r"the state has no 'm' \(it has \['count', 'momentum'\]\)"
    ):
        optim.adam(0.1).update(model, state, model)
    with pytest.raises(ValueError, match="one entry for each of 2 optimizers, got a dict"):
        optim.chain(optim.clip_by_value(1.0), opt).update(model, state, model)
    with pytest.raises(ValueError, match="b: updates has none"):
        optim.apply_updates(model, {"a": tl.zeros(2)})
    with pytest.raises(ValueError, match="b: the state's average has none"):
        optim.ema(0.9).update(optim.ema(0.9).init({"a": tl.zeros(2)}), model)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.sgd(0.1).init({"n": tl.arange(3)}), TypeError, "parameter 'n' is int64"),
        (lambda: optim.sgd(0.1, momentum=1.5), ValueError, r"momentum must be in \[0, 1\)"),
        (lambda: optim.sgd(0.1, nesterov=True), ValueError, "nesterov=True needs momentum"),
        (lambda: optim.adam(0.1, b2=1.0), ValueError, r"b2 must be in \[0, 1\)"),
        (lambda: optim.ema(2.0), ValueError, r"decay must be in \[0, 1\]"),
        (lambda: optim.clip_by_global_norm(0.0), ValueError, "max_norm must be positive"),
        (lambda: optim.clip_by_value(-1.0), ValueError, "limit must be positive"),
        (
            lambda: optim.weight_decay(0.1, {"b": True}).init({"a": tl.zeros(1)}),
            ValueError,
            r"missing: \['a'\], unknown: \['b'\]",
        ),
        (lambda: optim.exponential_decay(0.1, 0, 0.9), ValueError, "steps must be positive"),
        (lambda: optim.piecewise_constant([1, 2], [1.0, 2.0]), ValueError, "got 2 for 2"),
        (lambda: optim.piecewise_constant([2, 1], [1.0, 2.0, 3.0]), ValueError, "must increase"),
        (lambda: optim.warmup_cosine(0.1, 10, 10), ValueError, "must be more than"),
        (
            lambda: run(optim.sgd(lambda step: tl.ones(2)), Net(), 1),
            TypeError,
            r"a schedule returns a float .* got float32\[2\]",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("make", [optim.sgd, optim.adam, optim.rmsprop])
@pytest.mark.parametrize("rate", ["0.1", None, -1, True])
def test_a_learning_rate_is_a_number_or_a_schedule(make, rate):
    with pytest.raises(TypeError, match="learning_rate is a number of at least 0 or a schedule"):
        make(rate)


@pytest.mark.parametrize("wrong", [3, [optim.sgd(0.1)]])
def test_chain_takes_optimizers(wrong):
    with pytest.raises(TypeError, match=r"argument 1 is no optimizer .* without a list"):
        optim.chain(optim.clip_by_global_norm(1.0), wrong)
