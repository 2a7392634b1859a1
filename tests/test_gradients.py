"""The gradients of a step: what is refused whole, what works, what None means, and the counter behind them."""

import weakref
from collections.abc import Mapping

import numpy as np
import pytest
from conftest import flat, gradient, leaves, leaves_bytes, params, refused, snapshot, trained, unflat

import fastopt as fo


def edited(path, new):
    """The gradients of params() with one leaf replaced, or removed where `new` is KeyError."""
    grads = unflat(params(), gradient(5))
    *outer, last = path.split(".")
    node = grads
    for key in outer:
        node = node[key]
    if new is KeyError:
        del node[last]
    else:
        node[last] = new
    return grads


def test_gradients_that_do_not_fit():
    opt = trained()
    path, place = "layer.1.weight", "`layer.1.weight`"
    ones = np.ones((3, 5, 2), "f4")
    cases = [
        (np.ones((3, 5, 3), "f4"), ["(3, 5, 3)", "(3, 5, 2)"]),
        (np.ones(30, "f4"), ["(30,)", "(3, 5, 2)"]),
        (np.ones((5, 3, 2), "f4"), ["(5, 3, 2)", "(3, 5, 2)"]),
        (np.ones((3, 5, 1), "f4"), ["(3, 5, 1)", "(3, 5, 2)"]),
        (np.array(1.0, "f4"), ["()", "(3, 5, 2)"]),
        (ones.astype(int), ["int64", "float32"]),
        (ones.astype(bool), ["bool"]),
        (ones.astype(object), ["object"]),
        (ones.astype(complex), ["complex128"]),
        (ones.astype("i2"), ["int16"]),
        (np.ma.masked_array(ones, ones > 0), ["MaskedArray"]),
        (ones.tolist(), ["list"]),
        (1.0, ["float"]),
        ("g", ["str"]),
        ({"a": ones}, ["dict"]),
    ]
    for new, says in cases:
        refused(opt, fo.GradientError, lambda new=new: opt.step(edited(path, new)), place, *says)
    refused(opt, fo.GradientError, lambda: opt.step(edited(path, KeyError)), "`layer.1`", "`weight`")
    refused(
        opt, fo.GradientError, lambda: opt.step(edited("layer.1.weigth", ones)), "`layer.1`", "Did you mean `weight`"
    )
    refused(opt, fo.GradientError, lambda: opt.step([*leaves(edited("scale", np.array(1, "f4"))).values()]))
    refused(opt, fo.GradientError, lambda: opt.step(), "grads")  # loose parameters have none of their own
    refused(opt, fo.GradientError, lambda: opt.step({}))
    refused(opt, fo.GradientError, lambda: opt.step(ones))


def test_wrong_counts_for_lists_and_single_arrays():
    opt = fo.adamw([np.ones(3, "f4"), np.ones(4, "f4")])
    three, four = np.ones(3, "f4"), np.ones(4, "f4")
    for bad in [[three], [three, four, four], [four, three], three, {"0": three}, []]:
        before = snapshot(opt)
        with pytest.raises(fo.GradientError):
            opt.step(bad)
        assert snapshot(opt) == before
    opt.step([three, four])
    opt.step((three, four))
    single = fo.adamw(np.ones(3, "f4"))
    for bad in [[three], {"params": three}, four]:
        before = snapshot(single)
        with pytest.raises(fo.GradientError):
            single.step(bad)
        assert snapshot(single) == before


def test_read_only_gradients_work():
    p, q = flat(params()), flat(params())
    g = gradient(1)
    fo.adamw(p).step(g)
    g.flags.writeable = False
    fo.adamw(q).step(g)
    assert p.tobytes() == q.tobytes()


def test_a_step_without_any_gradient_changes_nothing():
    opt = trained(lr=lambda t: 1 / t)
    before = snapshot(opt)
    nothing = unflat(params(), gradient(1))
    nothing = {**dict.fromkeys(nothing), "layer": {k: dict.fromkeys(v) for k, v in nothing["layer"].items()}}
    for grads in [nothing, dict.fromkeys(opt.params)]:  # None in place of a branch: nothing below it has a gradient
        opt.step(grads)
        assert snapshot(opt) == before
    refused(opt, fo.GradientError, lambda: opt.step(None), "grads")  # but a forgotten argument is a mistake


def test_a_gradient_that_shares_memory_with_what_the_step_writes_is_refused():
    opt = trained()
    for source in [opt.params, opt.state["m"], opt.state["v"]]:
        refused(opt, fo.GradientError, lambda source=source: opt.step(source), "`embed.weight`", "memory", "copy")
    base = flat(params())
    shifted = fo.sgd(base[:-1], lr=1.0)
    refused(shifted, fo.GradientError, lambda: shifted.step(base[1:]), "`params`", "memory")
    two = fo.sgd({"a": base[:10], "b": base[20:30]}, lr=1.0)
    refused(two, fo.GradientError, lambda: two.step({"a": base[25:35], "b": base[30:40]}), "`a`", "memory")
    two.step({"a": base[10:20], "b": base[30:40]})  # neighbours
    packed = fo.pack(params())
    refused(fo.adam(packed), fo.GradientError, lambda: fo.adam(packed).step(packed), "memory")


class Made(Mapping):
    """Gradients made when they are asked for, and held by nobody else. Remembers whether they live."""

    def __init__(self, like, value=1.0):
        self.like, self.value, self.made = like, value, []

    def __getitem__(self, key):
        g = np.full_like(self.like[key], self.value)
        self.made.append(weakref.ref(g))
        return g

    def __contains__(self, key):
        return key in self.like

    def __iter__(self):
        return iter(self.like)

    def __len__(self):
        return len(self.like)


def test_gradients_that_nobody_else_holds_live_until_the_kernel_has_read_them():
    p = {"a": np.zeros(1000, "f4"), "b": np.zeros(100), "c": np.zeros(10, "f4")[::1]}
    grads = Made(p)
    alive = []
    opt = fo.sgd(p, lr=lambda t: alive.append([r() is not None for r in grads.made]) or 1.0)
    del alive[:]
    opt.step(grads)
    assert alive and all(map(all, alive))
    assert all((x == -1).all() for x in p.values())


def test_a_new_array_in_the_place_of_a_dead_one_is_looked_at_again():
    """Addresses are kept while the same arrays come again. An array that died, or None, is not the same array."""
    p = {"a": np.zeros(1000, "f4"), "b": np.zeros(1000)}
    opt = fo.sgd(p, lr=1.0)
    done = {"a": 0.0, "b": 0.0}
    for t in range(40):
        grads = {k: None if (t >> i) % 3 == 1 else np.full_like(x, t) for i, (k, x) in enumerate(p.items())}
        opt.step(grads)
        if t % 5 == 0:
            opt.step(grads)  # the same arrays again
        for k, g in grads.items():
            done[k] -= 0 if g is None else t * (2 if t % 5 == 0 else 1)
        del grads, g
        assert {k: {*x.tolist()} for k, x in p.items()} == {k: {v} for k, v in done.items()}, t


def test_the_buffers_of_a_pack_cannot_be_exchanged():
    """`params.flat = x`, meant as `params.flat[:] = x`, would part the buffer from the views that a step updates."""
    packed = fo.pack(params())
    opt = fo.adamw(packed)
    for assign in ["flat", "grads"]:
        with pytest.raises((AttributeError, TypeError, fo.FastoptError)):
            setattr(packed, assign, np.zeros_like(packed.flat))
    with pytest.raises((AttributeError, TypeError, fo.FastoptError)):
        packed.grads.flat = np.ones_like(packed.flat)
    opt.step()
    assert opt.t == 1


def test_numbers_that_overflow_the_compute_type_together():
    """lr and weight_decay fit in float32, their product does not: parameters would turn to -inf without a word."""
    opt = fo.adamw([np.ones(3, "f4"), np.ones(3)])
    grads = [np.ones(3, "f4"), np.ones(3)]
    opt.step(grads)
    opt.set(lr=1e20, weight_decay=1e20)
    before = leaves_bytes(opt)
    with pytest.raises(fo.ConfigError, match="lr=1e"):
        opt.step(grads)
    assert leaves_bytes(opt) == before and opt.t == 1
    opt.set(lr=1e-3)
    opt.step(grads)
    assert opt.t == 2


@pytest.mark.parametrize("t", [2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**53 - 1])
def test_the_step_counter_is_an_integer_at_any_size(t):
    """float32(2**24) + 1 is 2**24, int32 ends at 2**31: late in a run Adam is the plain ratio m / (sqrt(v) + eps)."""
    p = flat(params("float64"))
    opt = fo.adamw(p, lr=0.1)
    opt.step(gradient(1, "float64"))
    saved = opt.state_dict()
    late = with_t(saved, t)
    opt.load_state_dict(late)
    before, m, v = p.copy(), opt.state["m"].copy(), opt.state["v"].copy()
    g = gradient(2, "float64")
    opt.step(g)
    assert opt.t == t + 1
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    np.testing.assert_allclose(p, before * (1 - 0.1 * 0.01) - 0.1 * m / (np.sqrt(v) + 1e-8), rtol=1e-12, atol=1e-12)


def with_t(saved, t):
    """A state_dict in which every step count (the optimizer's and each parameter's) is t."""
    return {**saved, "t": t, "steps": dict.fromkeys(saved["steps"], t)}
