import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import nn, optim, random

KEY = random.key(0)


def normal(*shape, seed=1, dtype=tl.float32):
    return random.normal(random.key(seed), shape, dtype)


def close(x, y, **tolerance):
    np.testing.assert_allclose(
        np.asarray(x), np.asarray(y), **{"rtol": 1e-5, "atol": 1e-6, **tolerance}
    )


# ---- the example of the documentation ------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, key):
        k1, k2 = random.split(key)
        self.conv = nn.Conv(3, 8, 5, key=k1)
        self.norm = nn.BatchNorm(8)
        self.head = nn.Linear(8, 10, key=k2)

    def __call__(self, x, training=False):
        x = nn.relu(self.norm(self.conv(x), training=training))
        return self.head(tl.mean(x, axis=(1, 2)))


def loss_fn(model, images, labels):
    return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model


@pytest.mark.parametrize("compiled", [True, False])
def test_a_model_trains(compiled):
    opt = optim.chain(
        optim.clip_by_global_norm(1.0),
        optim.sgd(optim.exponential_decay(0.1, 1000, 0.96), momentum=0.9),
    )

    def step(model, state, images, labels):
        (loss, model), grads = tl.value_and_grad(loss_fn, has_aux=True)(model, images, labels)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    run = tl.jit(step) if compiled else step
    model = Net(KEY)
    untouched = Net(KEY)
    state = opt.init(model)
    images, labels = normal(16, 6, 6, 3), random.randint(random.key(2), (16,), 0, 10)
    losses = []
    trained = model
    for _ in range(15):
        trained, state, loss = run(trained, state, images, labels)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert np.any(np.asarray(trained.norm.mean)) and not np.any(np.asarray(model.norm.mean))
    for name, value in model.parameters().items():
        close(value, untouched.parameters()[name], rtol=0, atol=0)
    if compiled:
        assert run.cache_info().traces == 1
    assert trained(images).shape == (16, 10)


# ---- layers with weights -------------------------------------------------------------------------


def test_linear():
    layer = nn.Linear(3, 4, key=KEY, bias_init=nn.init.constant(0.5))
    x = normal(2, 5, 3)
    close(layer(x), np.asarray(x) @ np.asarray(layer.weight) + 0.5)
    assert list(layer.parameters()) == ["weight", "bias"]
    plain = nn.Linear(3, 4, key=KEY, bias=False, dtype=tl.float64)
    assert list(plain.parameters()) == ["weight"] and plain.weight.dtype == tl.float64


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.sampled_from(["same", "valid", 1]),
    st.sampled_from([1, 2]),
)
def test_conv_is_the_function_plus_bias(dims, stride, padding, groups):
    options = {"stride": stride, "padding": padding, "dilation": 1, "groups": groups}
    layer = nn.Conv(4, 6, 3, dims=dims, key=KEY, bias_init=nn.init.ones, **options)
    assert layer.weight.shape == (*[3] * dims, 4 // groups, 6)
    x = normal(2, *[5] * dims, 4)
    close(layer(x), np.asarray(nn.conv(x, layer.weight, **options)) + 1)


@given(
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.sampled_from(["same", "valid"]),
    st.sampled_from([1, 2]),
)
def test_conv_transpose_undoes_the_shape_of_conv(dims, stride, padding, groups):
    options = {"stride": stride, "padding": padding, "groups": groups, "dims": dims, "key": KEY}
    small, large = (
        (2, *[3] * dims, 4),
        (2, *[3 * stride + (max(3 - stride, 0) if padding == "valid" else 0)] * dims, 6),
    )
    layer = nn.ConvTranspose(4, 6, 3, **options)
    assert layer.weight.shape == (*[3] * dims, 6 // groups, 4)
    assert layer(normal(*small)).shape == large
    assert nn.Conv(6, 4, 3, **options)(normal(*large)).shape == small


def test_conv_transpose_draws_as_conv_does():
    conv = nn.Conv(4, 6, (1, 2), groups=2, key=KEY)
    transposed = nn.ConvTranspose(4, 6, (1, 2), groups=2, key=KEY)
    w, t = np.asarray(conv.weight), np.asarray(transposed.weight)
    for group in range(2):
        np.testing.assert_array_equal(
            t[:, :, :, 2 * group : 2 * group + 2],
            np.swapaxes(w[:, :, :, 3 * group : 3 * group + 3], -1, -2),
        )


def test_window_sizes():
    assert nn.Conv(1, 1, 5, key=KEY).weight.shape == (5, 5, 1, 1)
    assert nn.Conv(1, 1, (3,), key=KEY).weight.shape == (3, 1, 1)
    assert nn.Conv(1, 1, (3, 2, 1), key=KEY).weight.shape == (3, 2, 1, 1, 1)


def test_embedding():
    layer = nn.Embedding(5, 3, key=KEY)
    ids = tl.asarray([[1, 4], [0, 1]])
    close(layer(ids), np.asarray(layer.weight)[np.asarray(ids)])


# ---- normalization -------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_norm_in_training_and_after(axis):
    layer = nn.BatchNorm(4, momentum=0.75, axis=axis)
    layer.scale, layer.offset = normal(4, seed=2), normal(4, seed=3)
    x = normal(5, 4, 4, seed=4)
    array = np.asarray(x, np.float64)
    others = tuple(a for a in range(3) if a != axis % 3)
    place = tuple(4 if a == axis % 3 else 1 for a in range(3))
    mean, variance = array.mean(others), array.var(others)
    scale, offset = (np.asarray(v).reshape(place) for v in (layer.scale, layer.offset))

    def normalized(mean, variance):
        return (array - mean.reshape(place)) / np.sqrt(
            variance.reshape(place) + 1e-5
        ) * scale + offset

    close(layer(x, training=True), normalized(mean, variance), atol=1e-5)
    close(layer.mean, 0.25 * mean)
    close(layer.variance, 0.75 + 0.25 * variance)
    close(layer(x), normalized(0.25 * mean, 0.75 + 0.25 * variance), atol=1e-5)
    assert list(layer.buffers()) == ["mean", "variance"]


def test_batch_norm_keeps_statistics_of_narrow_inputs_in_float32():
    layer = nn.BatchNorm(3, dtype=tl.bfloat16)
    y = layer(normal(8, 3, dtype=tl.bfloat16), training=True)
    assert y.dtype == tl.bfloat16 and layer.mean.dtype == layer.variance.dtype == tl.float32
    assert layer(normal(8, 3, dtype=tl.bfloat16)).dtype == tl.bfloat16


def test_running_statistics_carry_no_gradient():
    def f(x, layer):
        layer(x, training=True)
        return tl.sum(layer.mean)

    assert not np.any(np.asarray(tl.grad(f)(normal(4, 3), nn.BatchNorm(3))))


def test_layer_norm_and_local_response_norm():
    x = normal(2, 3, 6)
    array = np.asarray(x, np.float64)
    expected = (array - array.mean(-1, keepdims=True)) / np.sqrt(
        array.var(-1, keepdims=True) + 1e-5
    )
    close(nn.LayerNorm(6)(x), expected, atol=1e-5)
    layer = nn.LocalResponseNorm(3, alpha=0.1, beta=0.5, k=2.0)
    close(layer(x), nn.local_response_norm(x, 3, alpha=0.1, beta=0.5, k=2.0))
    assert not layer.parameters()


# ---- pooling, dropout, sequences -----------------------------------------------------------------


def test_pooling():
    x = normal(2, 6, 6, 3)
    close(nn.MaxPool(3, stride=2, padding="same")(x), nn.max_pool(x, 3, stride=2, padding="same"))
    close(nn.AvgPool([2, 3])(x), nn.avg_pool(x, (2, 3)))
    counted = nn.AvgPool(3, padding="same", count_include_pad=True)
    close(counted(x), nn.avg_pool(x, 3, padding="same", count_include_pad=True))


def test_dropout():
    layer = nn.Dropout(0.25)
    x = tl.ones((100, 100))
    assert layer(x) is x
    dropped = np.asarray(layer(x, KEY, training=True))
    close(np.unique(dropped), [0, 1 / 0.75])
    assert abs((dropped == 0).mean() - 0.25) < 0.02
    assert nn.Dropout(0.0)(x, training=True) is x
    with pytest.raises(ValueError, match=r"Dropout\(0.25\): training=True needs a key"):
        layer(x, training=True)


def test_sequential_hands_on_what_layers_take():
    model = nn.Sequential(
        nn.Linear(4, 8, key=KEY),
        nn.BatchNorm(8),
        nn.relu,
        nn.Dropout(0.5),
        nn.Sequential(nn.Dropout(0.5), lambda x: x + 1),
    )
    x = normal(32, 4)
    assert (
        len(model) == 5
        and model[2] is nn.relu
        and [type(m) for m in model[:2]] == [nn.Linear, nn.BatchNorm]
    )
    assert list(model.parameters()) == [
        "layers.0.weight", "layers.0.bias", "layers.1.scale", "layers.1.offset",
    ]  # fmt: skip
    y = model(x, training=True, key=KEY)
    assert np.any(np.asarray(model[1].mean))
    first, second = random.split(KEY)
    z = model[:3](x, training=True)
    z = model[3](z, first, training=True)
    close(y, model[4](z, training=True, key=second))
    close(model(x), np.asarray(model[:3](x)) + 1)


def test_sequential_takes_a_list_and_may_grow():
    model = nn.Sequential([nn.relu])
    model.layers.append(nn.Linear(3, 2, key=KEY))
    assert tl.jit(lambda m, x: m(x))(model, normal(4, 3)).shape == (4, 2)


def test_models_with_functions_can_be_pickled():
    model = nn.Sequential(nn.Linear(3, 4, key=KEY), nn.relu, nn.BatchNorm(4), tl.tanh)
    copied = pickle.loads(pickle.dumps(model))
    assert tl.tree.structure(copied) == tl.tree.structure(model)
    close(copied(normal(2, 3)), model(normal(2, 3)), rtol=0, atol=0)


# ---- initial values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        (nn.init.zeros, 0),
        (nn.init.constant(2.0), 0),
        (nn.init.normal(0.3), 0.3),
        (nn.init.truncated_normal(0.05), 0.05 * 0.8796),
        (nn.init.uniform(0.3), 0.3 / math.sqrt(3)),
        (nn.init.glorot_uniform, math.sqrt(2 / (9 * 40 + 9 * 60))),
        (nn.init.he_normal, math.sqrt(2 / (9 * 40))),
        (nn.init.lecun_normal, math.sqrt(1 / (9 * 40))),
    ],
)
@pytest.mark.parametrize("dtype", [tl.float32, tl.float64])
def test_initial_values(initializer, deviation, dtype):
    drawn = initializer(KEY, (3, 3, 40, 60), dtype)
    assert drawn.dtype == dtype and drawn.shape == (3, 3, 40, 60)
    close(np.asarray(drawn).std(), deviation, rtol=0.02)


def test_truncated_normal_ends_at_two_deviations():
    drawn = np.abs(np.asarray(nn.init.truncated_normal(0.05)(KEY, (10_000,), tl.float32)))
    assert 0.0995 < drawn.max() <= 0.1 + 1e-7


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nn.Linear(3, 4, key=KEY)(tl.ones((2, 5))),
            r"Linear\(3, 4\): x must have 3 features .* \(2, 5\)",
        ),
        (lambda: nn.Linear(0, 4, key=KEY), "Linear: in_features must be a positive integer"),
        (lambda: nn.Linear(3, 2.5, key=KEY), "out_features must be a positive integer, got 2.5"),
        (
            lambda: nn.Conv(3, 4, 5, key=KEY)(tl.ones((2, 8, 8, 4))),
            r"Conv\(3, 4, \(5, 5\)\): x must have shape \(N, height, width, 3\), got \(2, 8,",
        ),
        (
            lambda: nn.Conv(3, 4, 5, key=KEY)(tl.ones((8, 8, 3))),
            r"Conv\(3, 4, \(5, 5\)\): x must have shape",
        ),
        (
            lambda: nn.Conv(3, 4, 5, key=KEY, groups=2),
            r"Conv\(3, 4, 5\): groups=2 must divide both",
        ),
        (
            lambda: nn.Conv(3, 4, (5, 5), key=KEY, dims=3),
            r"window \(5, 5\) has 2 sizes, but dims=3",
        ),
        (lambda: nn.Conv(3, 4, (5, 0), key=KEY), "Conv: window must be a positive integer, got 0"),
        (lambda: nn.Conv(3, 4, (1, 1, 1, 1), key=KEY), "1 to 3 spatial dimensions"),
        (
            lambda: nn.ConvTranspose(3, 4, (2,), key=KEY)(tl.ones((2, 8, 4))),
            r"ConvTranspose\(3, 4, \(2,\)\): x must have shape \(N, length, 3\)",
        ),
        (
            lambda: nn.BatchNorm(3)(tl.ones((2, 4))),
            r"BatchNorm\(3\): x must have 3 channels in axis -1",
        ),
        (lambda: nn.BatchNorm(3, axis=2)(tl.ones((2, 3))), "x must have 3 channels in axis 2"),
        (lambda: nn.BatchNorm(3, momentum=1.5), r"momentum must be in \[0, 1\], got 1.5"),
        (lambda: nn.LayerNorm(3)(tl.ones((2, 4))), r"LayerNorm\(3\): x must have 3 features"),
        (lambda: nn.Dropout(1.0), r"Dropout: rate must be in \[0, 1\), got 1.0"),
        (lambda: nn.Embedding(0, 3, key=KEY), "num_embeddings must be a positive integer"),
    ],
)
def test_errors_name_the_layer(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_kinds_of_arguments():
    with pytest.raises(TypeError, match="Sequential: layer 1 is a int, which cannot be called"):
        nn.Sequential(nn.relu, 3)
    with pytest.raises(TypeError, match="did you pass a seed"):
        nn.Linear(3, 4, key=0)
    with pytest.raises(TypeError, match="key"):
        nn.Linear(3, 4)
