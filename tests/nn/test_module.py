import collections
import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark import cloudpickle

import tensorlite as tl
from tensorlite import nn, tree


def activation(x):
    return tl.tanh(x)


class Leaf(nn.Module):
    def __init__(self, width=3, seed=0):
        rng = np.random.default_rng(seed)
        self.weight = tl.asarray(rng.normal(size=(2, width)))
        self.bias = rng.normal(size=width)
        self.count = nn.Buffer(tl.zeros(width))
        self.width = width
        self.shape = (2, width)
        self.activation = activation

    def __call__(self, x):
        return self.activation(x @ self.weight + self.bias)


class Net(nn.Module):
    def __init__(self):
        self.first = Leaf(seed=1)
        self.layers = [Leaf(seed=2), activation, Leaf(seed=3)]
        self.options = {"rates": [0.1, 0.2], "head": Leaf(seed=4)}


def same(a, b):
    """Whether two trees have the same structure and equal leaves."""
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


# ---- what is a child, and how it is called -------------------------------------------------------


def test_leaves_are_named_by_attribute_paths():
    assert tree.paths(Net()) == [
        f"{part}.{leaf}"
        for part in ("first", "layers.0", "layers.2", "options.head")
        for leaf in ("weight", "bias", "count")
    ]  # fmt: skip
    assert list(Leaf().parameters()) == ["weight", "bias"]
    assert list(Leaf().buffers()) == ["count"]
    assert list(Net().buffers()) == [
        "first.count",
        "layers.0.count",
        "layers.2.count",
        "options.head.count",
    ]
    assert nn.count_parameters(Net()) == 4 * (6 + 3)


def test_arrays_become_tensors():
    leaf = Leaf()
    assert isinstance(leaf.bias, tl.Tensor)
    tree.structure(leaf)
    leaf.bias = np.ones(3)
    assert isinstance(leaf.bias, tl.Tensor)


def test_static_values_are_part_of_the_structure():
    assert tree.structure(Leaf(3, seed=0)) == tree.structure(Leaf(3, seed=1))
    assert hash(tree.structure(Leaf(3, seed=0))) == hash(tree.structure(Leaf(3, seed=1)))
    assert tree.structure(Leaf(3)) != tree.structure(Leaf(4))
    one, other = Leaf(), Leaf()
    other.activation = tl.exp
    assert tree.structure(one) != tree.structure(other)


@pytest.mark.parametrize(
    ("value", "equal"), [(1, 1.0), (1, True), ((1,), [1]), ({"a": 1}, {"a": True}), ("1", b"1")]
)
def test_static_values_of_different_types_differ(value, equal):
    one, other = Leaf(), Leaf()
    one.extra, other.extra = value, equal
    assert tree.structure(one) != tree.structure(other)
    assert type(tree.map(lambda x: x, one).extra) is type(value)
    assert type(tree.map(lambda x: x, other).extra) is type(equal)


constants = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([activation, int])
)
tensors = st.integers(0, 3).map(tl.zeros)
modules = st.builds(Leaf, st.integers(1, 3))
attributes = st.recursive(
    constants | tensors | modules,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abcdef"), attributes, max_size=5))
def test_every_attribute_survives_flattening(values):
    module = nn.Module()
    for name, value in values.items():
        setattr(module, name, value)
    leaves, treedef = tree.flatten(module)
    assert all(isinstance(leaf, tl.Tensor) for leaf in leaves)
    assert len(leaves) == len(tree.paths(module)) == len(tree.parameter_mask(module))
    copied = tree.unflatten(treedef, leaves)
    assert tree.structure(copied) == treedef == tree.structure(module)
    assert all(a is b for a, b in zip(tree.leaves(copied), leaves, strict=True))
    for name, value in values.items():
        assert type(getattr(copied, name)) is type(value)
        if not tree.leaves(value, is_leaf=lambda x: isinstance(x, tl.Tensor | nn.Module)):
            assert getattr(copied, name) == value
    # Leaves of any kind: the structure stays when they are looked at again.
    for stand_in in (True, 1.5, "name", object()):
        marked = tree.unflatten(treedef, [stand_in] * len(leaves))
        assert tree.structure(marked) == treedef
        assert tree.leaves(marked) == [stand_in] * len(leaves)
        assert tree.structure(copy.deepcopy(marked)) == treedef


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Config:
    scale: tl.Tensor
    steps: int


def test_named_tuples_and_dataclasses_are_walked():
    module = nn.Module()
    module.point = Point(tl.ones(2), "label")
    module.config = Config(tl.ones(3), 7)
    assert tree.paths(module) == ["point.x", "config.scale"]
    copied = tree.map(lambda x: x + 1, module)
    assert copied.point.y == "label" and copied.config.steps == 7
    np.testing.assert_array_equal(np.asarray(copied.config.scale), [2, 2, 2])


class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right


tree.register(Pair, lambda p: ([p.left, p.right], None, ["left", "right"]), lambda _, c: Pair(*c))


def test_registered_pytrees_are_children():
    module = nn.Module()
    module.pair = Pair(tl.ones(1), tl.zeros(2))
    module.many = [Pair(tl.ones(1), tl.zeros(2)), 5]
    assert tree.paths(module) == ["pair.left", "pair.right", "many.0.left", "many.0.right"]
    assert tree.map(lambda x: x, module).many[1] == 5


# ---- changes -------------------------------------------------------------------------------------


def test_lists_that_grow_are_seen():
    net = Net()
    before = tree.structure(net)
    net.layers.append(Leaf())
    net.options["more"] = tl.zeros(2)
    assert len(tree.leaves(net)) == before.num_leaves + 4
    del net.layers[3], net.options["more"]
    assert tree.structure(net) == before
    net.options["rates"].append(0.3)
    assert tree.structure(net) != before


def test_an_attribute_may_change_its_kind():
    leaf = Leaf()
    before = tree.structure(leaf)
    leaf.bias = None
    assert tree.paths(leaf) == ["weight", "count"]
    leaf.bias = tl.zeros(3)
    leaf.width = 5
    assert tree.structure(leaf) != before
    leaf.width = 3
    assert tree.structure(leaf) == before
    del leaf.bias
    assert tree.paths(leaf) == ["weight", "count"]


def test_a_copy_does_not_share_its_containers():
    net = Net()
    copied = tree.map(lambda x: x, net)
    copied.layers.append(1)
    copied.options["rates"].append(1)
    copied.first.width = 9
    assert len(net.layers) == 3 and net.options["rates"] == [0.1, 0.2] and net.first.width == 3


def test_masks_can_be_edited():
    net = Net()
    mask = tree.map(lambda x: True, net)
    mask.first.bias = False
    mask.layers[0].weight = False
    assert tree.structure(mask) == tree.structure(net)
    assert [p for p, keep in zip(tree.paths(net), tree.leaves(mask), strict=True) if not keep] == [
        "first.bias", "layers.0.weight",
    ]  # fmt: skip


def test_shapes_in_the_place_of_leaves_round_trip():
    net = Net()
    shapes = tree.map(lambda x: x.shape, net)
    again = tree.map(lambda x: x, shapes)
    assert again.first.weight == again.layers[2].weight == (2, 3)
    assert tree.structure(again) == tree.structure(shapes)


def test_unflattening_does_not_run_init():
    class Counted(nn.Module):
        calls = 0

        def __init__(self):
            Counted.calls += 1
            self.weight = tl.zeros(1)

    tree.map(lambda x: x, Counted())
    assert Counted.calls == 1


# ---- buffers -------------------------------------------------------------------------------------


def test_a_buffer_stays_a_buffer():
    leaf = Leaf()
    assert isinstance(leaf.count, tl.Tensor)
    leaf.count = leaf.count + 1
    assert list(leaf.buffers()) == ["count"]
    copied = tree.map(lambda x: x, leaf)
    copied.count = tl.ones(3)
    assert list(copied.buffers()) == ["count"]
    leaf.weight = nn.Buffer(leaf.weight)
    assert list(leaf.parameters()) == ["bias"]


def test_everything_below_a_buffer_is_one():
    module = nn.Module()
    module.teacher = nn.Buffer(Leaf())
    module.history = nn.Buffer([tl.zeros(1), tl.zeros(2)])
    assert not module.parameters()
    assert list(module.buffers()) == [
        "teacher.weight",
        "teacher.bias",
        "teacher.count",
        "history.0",
        "history.1",
    ]


# ---- transforms ----------------------------------------------------------------------------------


def test_gradients_are_modules_with_zeros_for_buffers():
    def loss(net, x):
        y = net.layers[2](tl.matmul(net.layers[0](x), tl.ones((3, 2))))
        return tl.sum(y * net.layers[2].count) + tl.sum(y)

    net, x = Net(), tl.ones((4, 2))
    gradient = tl.grad(loss)(net, x)
    assert tree.structure(gradient) == tree.structure(net)
    assert np.any(np.asarray(gradient.layers[0].weight)) and not np.any(
        np.asarray(gradient.layers[2].count)
    )
    compiled = tl.jit(tl.grad(loss))(net, x)
    assert tree.structure(compiled) == tree.structure(gradient)
    for got, wanted in zip(tree.leaves(compiled), tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-13)


def test_assignments_inside_a_transformed_function_stay_there():
    def count(leaf, x):
        leaf.count = leaf.count + 1
        leaf.note = "seen"
        return tl.sum(leaf(x)), leaf

    leaf = Leaf()
    x = tl.ones((4, 2))
    for run in (
        tl.jit(count),
        tl.jit(tl.value_and_grad(count, has_aux=True)),
        tl.value_and_grad(count, has_aux=True),
    ):
        result = run(leaf, x)
        updated = (
            result[1]
            if isinstance(result[1], Leaf) and isinstance(result[0], tl.Tensor)
            else result[0][1]
        )
        np.testing.assert_array_equal(np.asarray(updated.count), np.ones(3))
        assert updated.note == "seen"
        assert not hasattr(leaf, "note") and not np.any(np.asarray(leaf.count))


def test_jit_traces_once_for_each_structure():
    calls = tl.jit(lambda net: net.first.weight + 1)
    calls(Net())
    calls(Net())
    assert calls.cache_info().traces == 1
    net = Net()
    net.layers.append(activation)
    calls(net)
    assert calls.cache_info().traces == 2


# ---- copies, pickles, looks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "copying",
    [
        copy.deepcopy,
        copy.copy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: pickle.loads(cloudpickle.dumps(m)),
    ],
    ids=["deepcopy", "copy", "pickle", "cloudpickle"],
)
def test_copies_are_the_same_module(copying):
    net = Net()
    same(copying(net), net)
    tree.structure(net)
    copied = copying(net)
    same(copied, net)
    assert list(copied.buffers()) == list(net.buffers())
    copied.first.weight = tl.zeros((2, 3))
    assert copied.first is net.first or np.any(np.asarray(net.first.weight))


def test_structures_can_be_pickled():
    treedef = tree.structure(Net())
    assert pickle.loads(pickle.dumps(treedef)) == treedef


def test_repr_shows_the_tree():
    class Small(nn.Module):
        def __init__(self):
            self.layers = [Leaf(), activation]
            self.sizes = [1, 2]

    assert repr(Small()) == (
        """Small(
  layers=[
    0: Leaf(
      weight=float64[2,3],
      bias=float64[3],
      count=float32[3] (buffer),
      width=3,
      shape=(2, 3),
      activation=activation,
    ),
    1: activation,
  ],
  sizes=[1, 2],
)"""
    )
    assert repr(nn.Module()) == "Module()"


# ---- errors --------------------------------------------------------------------------------------


def test_a_method_cannot_be_overwritten():
    leaf = Leaf()
    with pytest.raises(AttributeError, match="Leaf.parameters is a method; choose another name"):
        leaf.parameters = [1]
    with pytest.raises(AttributeError, match="Leaf.__call__ is a method"):
        leaf.__call__ = activation


def test_a_method_of_a_module_is_no_constant():
    leaf = Leaf()
    with pytest.raises(TypeError, match="store the module and call its method"):
        leaf.function = Leaf().parameters


def test_what_cannot_be_compared_is_refused_by_name():
    net = Net()
    net.options["raw"] = [bytearray(b"x")]
    with pytest.raises(
        TypeError, match=r"Net.options.raw.0 is a bytearray, which is neither a tensor"
    ):
        tree.leaves(net)


def test_a_module_is_no_tensor():
    with pytest.raises(TypeError):
        Leaf() + 1
    with pytest.raises(TypeError, match="asarray: cannot make a tensor of Leaf"):
        tl.asarray(Leaf())
    with pytest.raises(AttributeError, match="wieght"):
        _ = Leaf().wieght
