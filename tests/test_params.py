"""pack, structures and paths: what may be optimised, under which names, and that it is updated in place."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
from conftest import LAYOUTS, flat, gradient, leaves, params, unflat
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo

FEW = settings(derandomize=True, max_examples=60, deadline=None)

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
arrays = st.builds(
    lambda shape, seed: np.random.default_rng(seed).standard_normal(shape).astype("f4"), shapes, st.integers(0, 99)
)
keys = st.text("abcxyz_01", min_size=1, max_size=4)


def containers(inner):
    return (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(keys, inner, min_size=1, max_size=3)
        | st.tuples(inner)
    )


trees = containers(st.recursive(arrays, containers, max_leaves=8))


def arrays_of(tree):
    return list(leaves(tree).values())


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (np.zeros(3), ("params",)),
        ([np.zeros(3), np.zeros(2)], ("0", "1")),
        ((np.zeros(3),), ("0",)),
        ({"w1": np.zeros(3), "b1": np.zeros(2)}, ("w1", "b1")),
        ({"layer": [{"bias": np.zeros(1)}, {"bias": np.zeros(1)}]}, ("layer.0.bias", "layer.1.bias")),
        (OrderedDict(z=np.zeros(1), a=np.zeros(1)), ("z", "a")),
        ({1: np.zeros(1), "b": np.zeros(1)}, ("1", "b")),
    ],
    ids=str,
)
def test_names_are_paths_in_order(tree, names):
    assert fo.sgd(tree).names == names


@FEW
@given(trees)
def test_any_nesting_is_updated_in_place_loose_and_packed_alike(tree):
    loose, packed = copy.deepcopy(tree), fo.pack(tree)
    before = copy.deepcopy(tree)
    grads = unflat(tree, flat(tree) + 1)
    opt, opt_packed = fo.sgd(loose, lr=0.5), fo.sgd(packed, lr=0.5)
    opt.step(grads)
    opt_packed.step(grads)
    expected = [p - np.float32(0.5) * g for p, g in zip(arrays_of(tree), arrays_of(grads), strict=True)]
    for ours, also, right in zip(arrays_of(loose), arrays_of(packed), expected, strict=True):
        assert ours.tobytes() == also.tobytes() == right.tobytes()
        assert ours.shape == also.shape == right.shape
    assert flat(tree).tobytes() == flat(before).tobytes()  # pack copied
    assert opt.names == opt_packed.names == tuple(leaves(tree))
    assert opt.num_parameters == sum(x.size for x in arrays_of(tree))


def test_params_is_the_object_given():
    tree = params()
    assert fo.sgd(tree).params is tree
    packed = fo.pack(tree)
    assert fo.sgd(packed).params is packed


def test_state_has_the_structure_of_the_parameters():
    for name, layout in LAYOUTS.items():
        held = layout(params())
        opt = fo.adamw(held)
        opt.step(unflat(held, gradient(1)))
        for part in ("m", "v"):
            assert leaves(opt.state[part]).keys() == leaves(held).keys(), name
            for path, x in leaves(opt.state[part]).items():
                assert x.shape == leaves(held)[path].shape and x.dtype == "f4"
    held = params()
    opt = fo.adamw(held)
    assert not opt.state["m"]["layer"]["0"]["bias"].any()


def test_gradients_may_come_in_any_container_of_the_same_paths():
    """A list where the parameters are a list, a dict in another order: what counts is the path."""
    one, two = params(), params()
    opt_one, opt_two = fo.adam(one), fo.adam(two)
    grads = unflat(one, gradient(1))
    opt_one.step(grads)
    opt_two.step({k: grads[k] for k in reversed(grads)})
    assert flat(one).tobytes() == flat(two).tobytes()


def unaligned(dtype="f4"):
    return np.zeros(4 * 10 + 1, "u1")[1:].view(dtype)[:10]


def frozen_array():
    x = np.zeros(10, "f4")
    x.flags.writeable = False
    return x


REFUSED = {  # what an in-place kernel cannot update -> what the message must say
    "int": (lambda: np.zeros(10, int), "int64"),
    "bool": (lambda: np.zeros(10, bool), "bool"),
    "object": (lambda: np.zeros(10, object), "object"),
    "complex": (lambda: np.zeros(10, complex), "complex128"),
    "structured": (lambda: np.zeros(10, [("a", "f4")]), "a"),
    "uint16": (lambda: np.zeros(10, "u2"), "uint16"),
    "swapped half": (lambda: np.zeros(10, ">f2"), "byte"),
    "longdouble": (lambda: np.zeros(10, "g"), np.dtype("g").name),
    "swapped": (lambda: np.zeros(10, np.dtype("f4").newbyteorder()), "byte"),
    "read-only": (frozen_array, "read-only|writ"),
    "masked": (lambda: np.ma.masked_array(np.zeros(10, "f4"), np.arange(10) > 5), "Mask"),
    "scalar": (lambda: np.float32(1), "float32|scalar|array"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_arrays_that_cannot_be_updated_are_refused_by_name(kind):
    make, says = REFUSED[kind]
    with pytest.raises(fo.ArrayTypeError, match=says) as error:
        fo.sgd({"layer": [np.ones(3, "f4"), make()]})
    assert "`layer.1`" in str(error.value)


@pytest.mark.parametrize("bad", [1.0, "w", b"w", None, {1, 2}, range(0)], ids=str)
def test_leaves_that_are_no_arrays_are_refused_by_name(bad):
    with pytest.raises(fo.ConfigError, match="array") as error:
        fo.sgd({"layer": [np.ones(3, "f4"), bad]})
    assert "`layer.1`" in str(error.value) and type(bad).__name__ in str(error.value)


ODD = {  # each either works, exactly, or is refused by name and with a remedy
    "strided": lambda: np.zeros(20, "f4")[::2],
    "reversed": lambda: np.zeros(10, "f4")[::-1],
    "column": lambda: np.zeros((10, 3), "f4")[:, 1],
    "fortran": lambda: np.zeros((5, 2), "f4", order="F"),
    "transposed": lambda: np.zeros((2, 5), "f4").T,
    "broadcast": lambda: np.broadcast_to(np.float32(0), (10,)),
    "unaligned": unaligned,
    "subclass": lambda: np.zeros(10, "f4").view(type("Mine", (np.ndarray,), {})),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_parameters_work_or_are_refused_by_name(kind):
    x = ODD[kind]()
    base = x if x.base is None else x.base
    before = np.array(base).tobytes()
    try:
        opt = fo.sgd({"w": np.ones(3, "f4"), "odd": x}, lr=1.0)
    except fo.ArrayTypeError as error:
        assert "`odd`" in str(error) and ("copy" in str(error) or "numpy" in str(error))
        assert np.array(base).tobytes() == before
    else:
        opt.step({"w": np.ones(3, "f4"), "odd": np.arange(10, dtype="f4").reshape(x.shape)})
        np.testing.assert_array_equal(x, -np.arange(10, dtype="f4").reshape(x.shape))


@pytest.mark.parametrize("kind", ODD)
def test_odd_gradients_work_or_are_refused_by_name(kind):
    g = ODD[kind]()
    if g.flags.writeable:
        g[...] = np.arange(10).reshape(g.shape)
    p = {"w": np.ones(3, "f4"), "odd": np.zeros(g.shape, "f4")}
    opt = fo.sgd(p, lr=1.0)
    try:
        opt.step({"w": np.ones(3, "f4"), "odd": g})
    except fo.GradientError as error:
        assert "`odd`" in str(error) and opt.t == 0
        assert not p["odd"].any() and (p["w"] == 1).all()
    else:
        np.testing.assert_array_equal(p["odd"], -g)
        assert not p["w"].any()


def test_torch_tensors_on_the_cpu_are_updated_in_place():
    import torch

    weight, plain = torch.nn.Parameter(torch.ones(4, 3)), torch.ones(5, dtype=torch.float64)
    opt = fo.sgd({"weight": weight, "plain": plain}, lr=0.5)
    opt.step({"weight": torch.ones(4, 3), "plain": torch.ones(5, dtype=torch.float64)})
    assert (weight == 0.5).all() and (plain == 0.5).all()
    with pytest.raises(fo.ArrayTypeError, match="`whole`"):
        fo.sgd({"whole": torch.ones(3, dtype=torch.int16)})
    with pytest.raises(fo.ArrayTypeError, match="`t`"):
        fo.sgd({"t": torch.ones(4, 3).t()})


def test_zero_d_and_empty_arrays_work():
    tree = {"scale": np.array(2.0, "f4"), "none": np.zeros((3, 0), "f4"), "w": np.ones(2, "f4")}
    opt = fo.sgd(tree, lr=1.0)
    opt.step({"scale": np.array(1.0, "f4"), "none": np.zeros((3, 0), "f4"), "w": np.ones(2, "f4")})
    assert tree["scale"] == 1 and not tree["w"].any() and opt.num_parameters == 3
    only = fo.adamw(np.zeros(0, "f4"))
    only.step(np.zeros(0, "f4"))
    assert only.t == 1


def test_memory_maps_are_updated_on_disk(tmp_path):
    file = tmp_path / "w.bin"
    np.ones(100, "f4").tofile(file)
    x = np.memmap(file, "f4", "r+")
    fo.sgd(x, lr=1.0).step(np.full(100, 0.25, "f4"))
    x.flush()
    assert (np.fromfile(file, "f4") == 0.75).all()
    with pytest.raises(fo.ArrayTypeError, match="`params`"):
        fo.sgd(np.memmap(file, "f4", "r"))


def test_the_same_memory_twice_is_refused_by_both_names():
    x = np.zeros(10, "f4")
    grid = np.zeros((4, 4), "f4")
    for pair in [(x, x), (x, x[:]), (x[:6], x[5:]), (grid, grid[1]), (x, x[4:5].reshape(()))]:
        with pytest.raises(fo.ConfigError, match="`a`") as error:
            fo.sgd({"a": pair[0], "w": np.zeros(3, "f4"), "b": pair[1]})
        assert "`b`" in str(error.value) and "memory" in str(error.value)
    fo.sgd({"a": x[:5], "b": x[5:]})  # neighbours do not overlap
    fo.sgd({"a": x[:0], "b": x[:0], "c": x})  # nothing overlaps nothing


def test_paths_must_be_unique():
    with pytest.raises(fo.ConfigError, match=r"`a\.b`"):
        fo.sgd({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)})
    with pytest.raises(fo.ConfigError, match="`1`"):
        fo.sgd({1: np.zeros(1), "1": np.zeros(1)})


@pytest.mark.parametrize("nothing", [{}, [], (), {"a": []}], ids=str)
def test_nothing_to_optimise_is_an_error(nothing):
    with pytest.raises(fo.ConfigError, match="empty"):
        fo.sgd(nothing)


def test_unordered_and_consumable_containers_are_refused():
    """A set has no order, and a generator would be gone before the first gradient could be matched to it."""
    for bad in [{1, 2}, (x for x in [np.zeros(1)]), iter([np.zeros(1)]), "params", 3, None]:
        with pytest.raises(fo.ConfigError, match=r"list or tuple"):
            fo.sgd(bad)


@FEW
@given(st.integers(0, 300), st.integers(1, 8), st.data())
def test_neighbours_of_a_parameter_are_never_written(size, pad, data):
    """Kernels have no net: guard numbers around each array survive any length and offset."""
    wide = np.full(size + 2 * pad, 7, "f4")
    inner = wide[pad : pad + size]
    inner[:] = 1
    opt = fo.adamw(inner, lr=0.5)
    for _ in range(data.draw(st.integers(1, 3))):
        opt.step(np.ones(size, "f4"))
    assert (wide[:pad] == 7).all() and (wide[pad + size :] == 7).all()
    assert size == 0 or ((inner < 1).all() and (inner == inner[0]).all())


def test_a_parameter_replaced_in_its_container_is_noticed():
    """`params["w"] = params["w"] * 2` is a NumPy user's first habit; the optimizer would go on training the orphan."""
    params = {"w": np.ones(3), "layers": [np.ones(2)]}
    opt = fo.sgd(params, lr=0.1)
    grads = {"w": np.ones(3), "layers": [np.ones(2)]}
    opt.step(grads)
    params["layers"][0] = params["layers"][0] * 2
    with pytest.raises(fo.ConfigError, match=r"parameter `layers\.0` was replaced by another array.*x\[\.\.\.\] = new"):
        opt.step(grads)
    assert opt.t == 1 and params["w"].tolist() == [0.9] * 3


def test_attributes_of_an_optimizer_are_not_for_assignment():
    opt = fo.adam(np.ones(3))
    with pytest.raises(fo.ConfigError, match=r"`lr` of an optimizer cannot be set: use opt\.set\(lr=\.\.\.\)"):
        opt.lr = 5
    with pytest.raises(fo.ConfigError, match="`state` of an optimizer cannot be set"):
        opt.state = {}


def test_hyperparameters_of_a_parameter_can_be_asked_for_by_its_path():
    opt = fo.adam({"w": np.ones(1), "b": np.ones(1)}, groups=[fo.Group("b*", lr=0.5)])
    assert opt.hyper("b")["lr"] == 0.5 and opt.hyper("w")["lr"] == 1e-3
    with pytest.raises(fo.ConfigError, match="is one parameter of the group"):
        opt.set("b", lr=1.0)
    with pytest.raises(fo.ConfigError, match="`frozen` decides which state exists"):
        opt.set("b*", frozen=True)


def test_fields_of_a_namedtuple_are_names():
    from collections import namedtuple

    pair = namedtuple("pair", "w b")(np.ones(1), np.ones(1))
    assert fo.sgd(pair, lr=0.1).names == ("w", "b")


def test_parameter_groups_of_torch_are_pointed_to_groups():
    with pytest.raises(fo.ConfigError, match="PyTorch's parameter groups"):
        fo.sgd([{"params": [np.ones(1)], "lr": 0.1}])
