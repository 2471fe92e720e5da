"""Libraries that are written against the Python array API standard, on tensors: they must not
notice that these are ours. Each result is compared with what the library makes of NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl

RNG = np.random.default_rng(0)
X, Y = RNG.random((30, 4)), RNG.random((20, 4))
TARGET, GUESS = RNG.random(30) + 0.1, RNG.random(30) + 0.1
LABELS, PREDICTED = RNG.integers(0, 3, 30), RNG.integers(0, 3, 30)


class TestEinops:
    """`einops.array_api`, einops for whatever namespace its arguments name."""

    einops = pytest.importorskip("einops.array_api")
    x = np.arange(24.0).reshape(2, 3, 4)

    @pytest.mark.parametrize(
        ("function", "pattern", "options"),
        [
            ("rearrange", "a b c -> c (a b)", {}),
            ("rearrange", "a (b1 b2) c -> b1 a c b2", {"b1": 3}),
            ("reduce", "a b c -> b", {"reduction": "mean"}),
            ("reduce", "a b (c1 c2) -> a c1", {"reduction": "max", "c1": 2}),
            ("repeat", "a b c -> a b d c", {"d": 2}),
        ],
    )
    def test_patterns(self, function: str, pattern: str, options: dict[str, Any]) -> None:
        f = getattr(self.einops, function)
        result = f(tl.asarray(self.x), pattern, **options)
        assert isinstance(result, tl.Tensor)
        np.testing.assert_allclose(result.numpy(), f(self.x, pattern, **options))

    def test_pack_and_unpack(self) -> None:
        x = tl.asarray(self.x)
        packed, shapes = self.einops.pack([x, x[:, 0]], "a * c")
        assert packed.shape == (2, 4, 4)
        again = self.einops.unpack(packed, shapes, "a * c")
        np.testing.assert_array_equal(again[0].numpy(), self.x)
        np.testing.assert_array_equal(again[1].numpy(), self.x[:, 0])

    def test_under_grad_and_jit(self) -> None:
        def loss(x: tl.Tensor) -> tl.Tensor:
            return tl.sum(self.einops.reduce(x, "a b c -> b", reduction="mean") ** 2)

        x = tl.asarray(self.x)
        expected = np.broadcast_to(self.x.mean((0, 2))[None, :, None] / 4, self.x.shape)
        np.testing.assert_allclose(tl.jit(tl.grad(loss))(x).numpy(), expected)


def estimators() -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics.pairwise import linear_kernel
    from sklearn.preprocessing import KernelCenterer, LabelEncoder

    return {
        "PCA": lambda a: PCA(2, svd_solver="full").fit(a(X)).components_,
        "PCA randomized": lambda a: (
            PCA(2, svd_solver="randomized", power_iteration_normalizer="QR", random_state=0)
            .fit(a(X))
            .explained_variance_
        ),
        "RidgeCV": lambda a: RidgeCV().fit(a(X), a(TARGET)).predict(a(X)),
        "KernelCenterer": lambda a: KernelCenterer().fit_transform(linear_kernel(a(X))),
        "LabelEncoder": lambda a: LabelEncoder().fit_transform(a(LABELS)),
    }


def metrics() -> dict[str, Any]:
    from sklearn import metrics as m
    from sklearn.metrics import pairwise

    return {
        "accuracy": lambda a: m.accuracy_score(a(LABELS), a(PREDICTED)),
        "balanced accuracy": lambda a: m.balanced_accuracy_score(a(LABELS), a(PREDICTED)),
        "confusion": lambda a: m.confusion_matrix(a(LABELS), a(PREDICTED)),
        "hamming": lambda a: m.hamming_loss(a(LABELS), a(PREDICTED)),
        "squared error": lambda a: m.mean_squared_error(a(TARGET), a(GUESS)),
        "median error": lambda a: m.median_absolute_error(a(TARGET), a(GUESS)),
        "Poisson deviance": lambda a: m.mean_poisson_deviance(a(TARGET), a(GUESS)),
        "Euclidean distances": lambda a: pairwise.euclidean_distances(a(X), a(Y)),
        "RBF kernel": lambda a: pairwise.rbf_kernel(a(X), a(Y)),
        "chi-squared kernel": lambda a: pairwise.additive_chi2_kernel(a(X), a(Y)),
    }


@pytest.fixture(scope="module")
def dispatch() -> Any:
    """scikit-learn with `array_api_dispatch`, which wants SciPy to have it from the start."""
    sklearn = pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCIPY_ARRAY_API", "1")
        yield lambda: sklearn.config_context(array_api_dispatch=True)


@pytest.mark.parametrize(
    "name", ["PCA", "PCA randomized", "RidgeCV", "KernelCenterer", "LabelEncoder"]
)
def test_estimators_of_scikit_learn(name: str, dispatch: Any) -> None:
    f = estimators()[name]
    with dispatch():
        result = f(tl.asarray)
    assert isinstance(result, tl.Tensor)
    np.testing.assert_allclose(np.abs(result.numpy()), np.abs(f(np.asarray)), rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "balanced accuracy",
        "confusion",
        "hamming",
        "squared error",
        "median error",
        "Poisson deviance",
        "Euclidean distances",
        "RBF kernel",
        "chi-squared kernel",
    ],
)
def test_metrics_of_scikit_learn(name: str, dispatch: Any) -> None:
    f = metrics()[name]
    with dispatch():
        result = f(tl.asarray)
    np.testing.assert_allclose(np.asarray(result), f(np.asarray), rtol=1e-6)


def test_what_scikit_learn_writes_to_is_refused_with_a_hint(dispatch: Any) -> None:
    from sklearn.preprocessing import StandardScaler

    with dispatch(), pytest.raises(TypeError, match=r"tensors are immutable.*x\.at\[i\]\.set"):
        StandardScaler().fit(tl.asarray(X))
