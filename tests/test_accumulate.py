"""Accumulated gradients: a step on their mean, whatever they are made of, and wherever the run is cut."""

import numpy as np
import pytest

import fastopt as fo

SHAPES = {"a": (6, 5), "b": (7,), "c": ()}


def tree(rng, dtype=np.float32):
    return {n: np.asarray(rng.normal(size=s), dtype) for n, s in SHAPES.items()}


def copied(x):
    return {n: a.copy() for n, a in x.items()}


def same(p, q):
    return all(p[n].tobytes() == q[n].tobytes() for n in p)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_takes_the_mean(dtype):
    """Sums of 4: the mean is exact, and the bits are those of a step on it."""
    rng = np.random.default_rng(0)
    p = tree(rng, dtype)
    q = copied(p)
    opt, twin = fo.clip_norm(fo.adamw, 1.0)(p, lr=0.1), fo.clip_norm(fo.adamw, 1.0)(q, lr=0.1)
    for _ in range(3):
        parts = [tree(rng, dtype) for _ in range(4)]
        for k, g in enumerate(parts):
            assert opt.accumulated == k
            opt.accumulate(g)
        opt.step()
        total = parts[0]
        for g in parts[1:]:
            total = {n: total[n] + g[n] for n in p}
        twin.step({n: a / dtype(4) for n, a in total.items()})
        assert same(p, q) and opt.accumulated == 0 and opt.last.norm == twin.last.norm


def test_16_bit_gradients_are_summed_in_float32():
    p = np.zeros(3, np.float32)
    opt = fo.sgd(p, lr=1.0)
    small = np.full(3, 2.0**-11, np.float16)  # lost beside 1 in float16
    opt.accumulate(np.ones(3, np.float16))
    for _ in range(1024):
        opt.accumulate(small)
    opt.step()
    np.testing.assert_allclose(p, -1.5 / 1025, rtol=1e-6)


def test_none_is_left_out_of_the_sum_and_counts_as_0_in_the_mean():
    p = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = fo.sgd(p, lr=1.0, momentum=0.9)
    for _ in range(2):  # twice: what the first round left must not come back
        p["a"][:] = p["b"][:] = 0
        opt.accumulate({"a": None, "b": None})
        opt.accumulate({"a": np.ones(2), "b": None})
        opt.accumulate({"a": np.ones(2), "b": None})
        opt.step()
        assert (p["b"] == 0).all()
    np.testing.assert_allclose(p["a"], -2 / 3 * 1.9)
    opt.accumulate({"a": None, "b": np.full(2, 3.0)})
    opt.step()
    np.testing.assert_allclose(p["b"], -3)
    assert opt.state_dict()["steps"] == {"a": 2, "b": 1}


def test_scale_skip_and_zero_grads():
    rng = np.random.default_rng(1)
    p = tree(rng)
    q = copied(p)
    opt, twin = fo.adamw(p, nonfinite="skip", zero_grads=True), fo.adamw(q)
    parts = [tree(rng) for _ in range(2)]
    twin.step({n: (parts[0][n] + parts[1][n]) / 2 for n in p})
    for g in parts:
        scaled = {n: np.asarray(a * np.float32(64)) for n, a in g.items()}
        opt.accumulate(scaled)
        assert not any(a.any() for a in scaled.values())
    opt.step(scale=64.0)
    assert same(p, q)
    bad = tree(rng)
    bad["b"][1] = np.nan
    opt.accumulate(bad)
    opt.accumulate(tree(rng))
    opt.step()
    assert opt.last.nonfinite == "b" and same(p, q) and opt.accumulated == 0
    g = tree(rng)
    opt.accumulate(copied(g))
    opt.step()
    twin.step(g)
    assert same(p, q)


def test_packed_and_frozen_parameters():
    rng = np.random.default_rng(2)
    p, q = fo.pack(tree(rng)), tree(rng)
    for n in q:
        q[n][...] = p[n]
    groups = [fo.Group("b", frozen=True)]
    opt, twin = fo.adamw(p, lr=0.1, groups=groups), fo.adamw(q, lr=0.1, groups=groups)
    parts = [tree(rng) for _ in range(2)]
    for g in parts:
        for n in g:
            p.grads[n] = g[n]
        opt.accumulate()
    opt.step()
    twin.step({n: (parts[0][n] + parts[1][n]) / 2 for n in q})
    assert all((p[n] == q[n]).all() for n in q)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_resume_in_the_middle_is_exact(cut, tmp_path):
    rng = np.random.default_rng(3)
    start, parts = tree(rng), [tree(rng) for _ in range(8)]
    parts[4]["c"] = None

    def run(opt, first, last):
        for k in range(first, last):
            opt.accumulate(parts[k])
            if k % 4 == 3:
                opt.step()

    p, q = copied(start), copied(start)
    whole = fo.adamw(p, lr=0.1)
    run(whole, 0, 8)
    first = fo.adamw(q, lr=0.1)
    run(first, 0, cut)
    first.save(tmp_path / "x.safetensors", params=True)
    r, s = tree(rng), tree(rng)
    from_file, from_dict = fo.adamw(r, lr=0.1), fo.adamw(s, lr=0.1)
    from_dict.accumulate(tree(rng))  # which the loaded state replaces
    from_file.load(tmp_path / "x.safetensors")
    from_dict.load_state_dict(first.state_dict())
    for n in s:
        s[n][...] = q[n]
    assert from_file.accumulated == from_dict.accumulated == cut % 4
    run(from_file, cut, 8)
    run(from_dict, cut, 8)
    assert same(p, r) and same(p, s)


def test_wrong_calls_are_refused_and_add_nothing():
    p = {"a": np.ones((3, 2)), "b": np.ones(2)}
    g = {"a": np.ones((3, 2)), "b": np.ones(2)}
    opt = fo.adamw(p, lr=0.1)
    with pytest.raises(fo.GradientError, match=r"step\(\) needs gradients"):
        opt.accumulate()
    with pytest.raises(fo.GradientError, match="gradient of `b`: shape"):
        opt.accumulate({**g, "b": np.ones(3)})
    with pytest.raises(fo.GradientError, match="takes whole gradients"):
        opt.accumulate({**g, "a": fo.rows([0], np.ones((1, 2)))})
    assert opt.accumulated == 0
    opt.accumulate(g)
    with pytest.raises(fo.GradientError, match="1 gradients are accumulated"):
        opt.step(g)
    saved = opt.state_dict()
    for change, message in (
        (lambda x: x.update(count=0), "counts do not fit"),
        (lambda x: x["sums"].pop("a"), "accumulated gradient `a`: missing"),
        (lambda x: x["sums"].update(b=np.ones(3)), r"accumulated gradient `b`: expected float64 \(2,\)"),
        (lambda x: x["sums"].update(z=np.ones(3)), "`z`: not expected"),
        (lambda x: x.pop("steps"), "expected a dict of count, steps, sums"),
    ):
        bad = {**saved, "accumulated": {k: v.copy() if k != "count" else v for k, v in saved["accumulated"].items()}}
        change(bad["accumulated"])
        with pytest.raises(fo.CheckpointError, match=message):
            opt.load_state_dict(bad)
    opt.step()
    assert opt.t == 1
