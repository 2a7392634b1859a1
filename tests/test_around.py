"""What a step does besides its rule, in the same pass: gradients set to 0, a second array written; what it moves."""

import re

import ml_dtypes
import numpy as np
import pytest

import fastopt as fo
from fastopt.rules import CATALOGUE

RULES = {"adamw": fo.adamw, "clipped": fo.clip_norm(fo.ema(fo.adamw), 1.0), "lamb": fo.lamb, "adafactor": fo.adafactor}
SHAPES = {"a": (6, 50), "b": (7,), "c": (0, 3)}


def tree(rng, dtype=np.float32):
    return {n: rng.normal(size=s).astype(dtype) for n, s in SHAPES.items()}


@pytest.mark.parametrize(
    ("name", "dtype"), [("adamw", np.float64), ("adamw", np.float16), *((name, np.float32) for name in RULES)]
)
def test_both_change_nothing_else(name, dtype):
    rng = np.random.default_rng(0)
    p = tree(rng)
    q = {n: a.copy() for n, a in p.items()}
    out = {
        "a": np.empty(SHAPES["a"], np.float16),
        "b": np.empty(SHAPES["b"], ml_dtypes.bfloat16),
        "c": np.empty(SHAPES["c"], np.float64),
    }
    opt, twin = RULES[name](p, zero_grads=True, copy_out=out, lr=0.1), RULES[name](q, lr=0.1)
    for _ in range(3):
        g = tree(rng, dtype)
        twin.step(g)
        opt.step(g)
        assert not any(a.any() for a in g.values())
        assert all(p[n].tobytes() == q[n].tobytes() for n in p)
        assert all(out[n].tobytes() == p[n].astype(out[n].dtype).tobytes() for n in p)
    assert all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for s in opt.state
        for a, b in zip(opt.state[s].values(), twin.state[s].values(), strict=True)
        if a is not None
    )


def test_copies_may_be_left_out_and_follow_rows():
    p = {"table": np.ones((4, 2), np.float32), "b": np.ones(3, np.float32)}
    out = {"table": np.zeros((4, 2), np.float16), "b": None}
    opt = fo.sgd(p, lr=0.5, copy_out=out, zero_grads=True)
    rows = fo.rows([1, 1], np.ones((2, 2), np.float32))
    opt.step({"table": rows, "b": np.ones(3, np.float32)})
    np.testing.assert_array_equal(out["table"], [[0, 0], [0, 0], [0, 0], [0, 0]])  # 1 - 0.5 * 2, and not touched
    np.testing.assert_array_equal(p["table"], [[1, 1], [0, 0], [1, 1], [1, 1]])
    opt.step({"table": fo.rows([2], np.ones((1, 2), np.float32)), "b": None})
    np.testing.assert_array_equal(out["table"], [[0, 0], [0, 0], [0.5, 0.5], [0, 0]])


def test_packed_gradients_become_0_and_a_skipped_step_zeroes_too():
    p = fo.pack({"a": np.ones(3, np.float32)})
    opt = fo.adamw(p, zero_grads=True, nonfinite="skip")
    p.grads["a"] = [1, np.nan, 2]
    opt.step()
    assert opt.last.skipped and not p.grads.flat.any()
    p.grads["a"] = [1, 1, 2]
    opt.step()
    assert not p.grads.flat.any() and opt.t == 1
    q = {"a": np.ones(3, np.float32)}
    opt = fo.adamw(q, zero_grads=True, nonfinite="skip")
    g = {"a": np.array([1, np.inf, 1], np.float32)}
    for _ in range(2):  # new arrays, and the same again
        g["a"][:] = np.inf
        opt.step(g)
        assert not g["a"].any()


def test_gradients_that_cannot_be_set_to_0():
    p = {"a": np.ones((3, 2)), "b": np.ones((3, 2))}
    opt = fo.sgd(p, lr=0.1, zero_grads=True)
    fixed, g = np.ones((3, 2)), np.ones((3, 2))
    fixed.flags.writeable = False
    for bad in (fixed, np.ones((2, 3)).T, g[:, ::-1], np.ones((3, 2), ">f8")):
        with pytest.raises(fo.GradientError, match="gradient of `a` cannot be set to 0"):
            opt.step({"a": bad, "b": np.ones((3, 2))})
    with pytest.raises(fo.GradientError, match="gradients of `a` and `b` share memory"):
        opt.step({"a": g, "b": g})
    assert all((x == 1).all() for x in p.values()) and (g == 1).all()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"a": np.zeros(3)}, "copy_out: arrays: `b` is missing"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, r"copy_out of `b`: float64 \(4,\); expected a writable"),
        ({"a": np.zeros(3), "b": np.zeros(3, int)}, "copy_out of `b`: int64"),
        ({"a": np.zeros(6)[::2], "b": np.zeros(3)}, "copy_out of `a`"),
        ({"a": 3.0, "b": None}, "copy_out of `a`: float"),
    ],
)
def test_wrong_copies_are_refused(out, message):
    with pytest.raises(fo.ConfigError, match=message):
        fo.sgd({"a": np.ones(3), "b": np.ones(3)}, lr=0.1, copy_out=out)


def test_copies_share_no_memory():
    p = {"a": np.ones(3), "b": np.ones(3)}
    x = np.zeros(3)
    for out in ({"a": x, "b": x}, {"a": p["b"], "b": None}):
        with pytest.raises(fo.ConfigError, match="share memory"):
            fo.sgd(p, lr=0.1, copy_out=out)
    out = {"a": x, "b": None}
    opt = fo.sgd(p, lr=0.1, copy_out=out)
    with pytest.raises(fo.GradientError, match="shares memory with a parameter"):
        opt.step({"a": x, "b": np.ones(3)})


# ---------------------------------------------------------------- what it moves
def counted(text):
    """Loads and stores of single elements in generated loops, of buffers of the parameter's shape."""
    loads = re.findall(r"= (?:scale \* )?(?:real\()?(?:from_\w+\()?(\w+)_at\[i\]", text)
    stores = re.findall(r"^ +(\w+)_at\[i\] = ", text, re.M)
    return len(loads), len(stores)


@pytest.mark.parametrize("name", CATALOGUE)
def test_traffic_is_what_the_kernels_say(name):
    rule = CATALOGUE[name]
    for wrapped in (rule, fo.ema(fo.clip_norm(rule, 1.0))):
        found = fo.traffic(wrapped)
        assert (found.loads, found.stores) == counted(fo.source(wrapped)), wrapped.name
        assert found.bytes == 4 * (found.loads + found.stores)


def test_traffic_of_dtypes_and_of_what_is_done_besides():
    assert fo.traffic(fo.adamw).bytes == 28
    assert fo.traffic(fo.adamw, gradient="bfloat16").bytes == 26
    assert fo.traffic(fo.adamw, dtype=np.float64).bytes == 56
    assert fo.traffic(fo.adamw, zero_grads=True).bytes == 32
    assert fo.traffic(fo.adamw, copy_out=np.float16).bytes == 30
    assert fo.traffic(fo.adamw, copy_out="bfloat16").bytes == 30
    assert fo.traffic(fo.adamw, amsgrad=True).bytes == 36
    assert fo.traffic(fo.ema(fo.clip_norm(fo.adamw, 1.0)), zero_grads=True).bytes == 4 + 28 + 8 + 4
    with pytest.raises(fo.ConfigError, match="`momentum` is not a switch of `adamw`"):
        fo.traffic(fo.adamw, momentum=True)
    with pytest.raises(fo.ConfigError, match="dtype int64"):
        fo.traffic(fo.adamw, dtype=int)
