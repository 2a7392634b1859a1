"""`pack`: one aligned buffer of views, its copies, and what it makes of arrays of any layout."""

import copy
import pickle
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from conftest import flat, leaves, params
from hypothesis import given
from test_params import FEW, arrays_of, trees

import fastopt as fo


@FEW
@given(trees)
def test_pack_is_one_aligned_buffer_of_views(tree):
    packed = fo.pack(tree)
    assert packed.flat.ndim == 1 and packed.flat.flags.c_contiguous
    assert packed.flat.size >= sum(x.size for x in arrays_of(tree))
    assert packed.flat.size == 0 or packed.flat.ctypes.data % 64 == packed.grads.flat.ctypes.data % 64 == 0
    for path, x in leaves(tree).items():
        for view, owner in [(leaves(packed)[path], packed), (leaves(packed.grads)[path], packed.grads)]:
            assert view.shape == x.shape and view.dtype == x.dtype and view.flags.writeable
            assert view.size == 0 or np.shares_memory(view, owner.flat)
        assert leaves(packed)[path].tobytes() == x.tobytes()
    assert not packed.grads.flat.any()
    packed.flat[:] = 7
    assert all((v == 7).all() for v in arrays_of(packed))


def test_a_pack_behaves_like_what_it_was_made_of():
    packed = fo.pack({"w": np.ones((2, 3), "f4"), "deep": {"b": np.zeros(3, "f4")}})
    assert isinstance(packed, Mapping) and list(packed) == ["w", "deep"] and len(packed) == 2 and "w" in packed
    assert packed["deep"]["b"].shape == (3,)
    row = fo.pack([np.ones(2, "f4"), np.zeros(3, "f4")])
    assert isinstance(row, Sequence) and len(row) == 2 and row[1].shape == (3,) and row[-1].shape == (3,)
    assert [x.shape for x in row] == [(2,), (3,)]
    with pytest.raises(KeyError):
        packed["nope"]
    with pytest.raises(IndexError):
        row[2]


def test_views_cannot_be_silently_replaced():
    """`packed["w"] = x` would part the view from the buffer: it writes through or is refused."""
    packed = fo.pack({"w": np.ones(3, "f4")})
    try:
        packed["w"] = np.full(3, 5, "f4")
    except TypeError:
        assert packed.flat[:3].tolist() == [1, 1, 1]
    else:
        assert packed.flat[:3].tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "copy", "pickle"]
)
def test_copies_of_a_pack_keep_views_and_buffer_together(duplicate):
    packed = fo.pack(params())
    packed.grads.flat[:] = 3
    twin = duplicate(packed)
    assert twin.flat.ctypes.data % 64 == 0
    assert flat(twin).tobytes() == flat(packed).tobytes() and (flat(twin.grads) == 3).all()
    assert all(v.size == 0 or np.shares_memory(v, twin.flat) for v in arrays_of(twin))
    assert all(v.size == 0 or np.shares_memory(v, twin.grads.flat) for v in arrays_of(twin.grads))
    if duplicate is not copy.copy:
        assert not np.shares_memory(twin.flat, packed.flat)
    fo.adamw(twin).step()
    assert (flat(twin) != flat(packed)).any() or duplicate is copy.copy


def test_a_deepcopy_inside_a_larger_object_keeps_one_identity():
    packed = fo.pack(params())
    two = copy.deepcopy({"a": packed, "b": packed})
    assert two["a"] is two["b"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, pickle.dumps], ids=["deepcopy", "copy", "pickle"])
def test_an_optimizer_refuses_copies_and_says_what_to_do(duplicate):
    """Its state lives in buffers whose addresses it holds: a copy would update the original's parameters."""
    with pytest.raises(TypeError, match="state_dict"):
        duplicate(fo.adamw(params()))


def test_a_pack_from_views_of_another_is_independent():
    packed = fo.pack(params())
    again = fo.pack(packed)
    assert not np.shares_memory(again.flat, packed.flat) and flat(again).tobytes() == flat(packed).tobytes()
    assert list(leaves(again)) == list(leaves(packed))


def test_pack_keeps_the_type_of_the_numbers_and_refuses_to_mix():
    assert fo.pack([np.ones(3)]).flat.dtype == "f8"
    assert fo.pack([np.ones(3, "f4")]).flat.dtype == "f4"
    with pytest.raises((fo.ArrayTypeError, fo.ConfigError), match="float32") as error:
        fo.pack({"a": np.ones(3, "f4"), "b": np.ones(3, "f8")})
    assert "float64" in str(error.value) and "dtype=" in str(error.value)
    assert fo.pack({"a": np.ones(3, "f4"), "b": np.ones(3)}, dtype="f4").flat.dtype == "f4"


@pytest.mark.parametrize("bad", [{}, [], {"a": {}}, None, 3.0, "w"], ids=str)
def test_pack_of_nothing_is_an_error(bad):
    with pytest.raises((fo.ArrayTypeError, fo.ConfigError)):
        fo.pack(bad)


def test_pack_takes_any_layout_because_it_copies():
    base = np.arange(24, dtype="f4").reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    odd = {"strided": base[::2, ::3], "fortran": np.asfortranarray(base), "frozen": frozen, "back": base[::-1]}
    packed = fo.pack(odd)
    for name, x in odd.items():
        np.testing.assert_array_equal(packed[name], x)
        assert packed[name].flags.c_contiguous and packed[name].flags.writeable


def test_a_pack_of_one_array_is_a_list_of_one():
    packed = fo.pack(np.ones((2, 3), "f4"))
    assert len(packed) == 1 and packed[0].shape == (2, 3)
    opt = fo.sgd(packed, lr=0.5)
    opt.step([np.ones((2, 3), "f4")])
    packed.grads[0][:] = 1
    opt.step()
    assert not packed.flat.any()


def test_items_of_nested_packs_are_copied_into_the_buffer_too():
    """A plain dict inside would let `p["enc"]["w"] = x` part the view from the buffer."""
    params = fo.pack({"enc": {"w": np.ones(3), "b": [np.zeros(2)]}, "out": np.ones(1)})
    params.grads["enc"]["w"] = np.arange(3)
    params.grads["enc"]["b"][0] = 7.0
    assert params.grads.flat.tolist() == [0, 1, 2, 7, 7, 0]
    params.grads["enc"] = {"w": np.full(3, 5.0), "b": [np.zeros(2)]}
    assert params.grads.flat.tolist() == [5, 5, 5, 0, 0, 0]
    with pytest.raises(fo.ConfigError, match=r"`w` has shape \(3,\); got \(2,\)"):
        params["enc"]["w"] = np.ones(2)
    with pytest.raises(fo.ConfigError, match="`enc` holds `w`, `b`; got `w`"):
        params["enc"] = {"w": np.ones(3)}
    opt = fo.sgd(params, lr=1.0)
    opt.step()
    assert params["enc"]["w"].tolist() == [-4, -4, -4]
