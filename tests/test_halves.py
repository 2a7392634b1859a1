"""Parameters in 16 bits: by chance, to nearest, and beside a master, the other half or what rounding lost."""

import sys

import ml_dtypes
import numba
import numpy as np
import pytest
import torch
from conftest import snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from test_machine import BIG, assembly, check_instructions

import fastopt as fo
from fastopt import codecs
from fastopt.targets import halves

BF16 = np.dtype(ml_dtypes.bfloat16)
N = 3000


def start(dtype=BF16, n=N):
    return np.random.default_rng(9).standard_normal(n).astype(dtype)


def grads(steps, dtype=np.float32, n=N):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n).astype(dtype) for _ in range(steps)]


def run(rule, steps=20, p=None, gradient=np.float32, **options):
    p = start() if p is None else p
    opt = rule(p, **options)
    for g in grads(steps, gradient, p.size):
        opt.step(g)
    return p, opt


@pytest.mark.parametrize("kind", ["float32", "split"])
def test_with_a_float32_behind_it_the_parameter_is_that_of_float32(kind):
    exact = run(fo.adamw, p=start().astype("f4"), gradient=BF16)[0]
    p, opt = run(fo.adamw, master=kind, gradient=BF16)
    if kind == "float32":
        np.testing.assert_array_equal(opt.state["master"], exact)
        np.testing.assert_array_equal(p, exact.astype(BF16))
    else:
        low = opt.state["master"].view(np.int16).astype(np.int32)
        whole = ((p.view(np.uint16).astype(np.int32) << 16) + low).view(np.float32)
        np.testing.assert_array_equal(whole, exact)
        # to the nearest: within half of the distance to the next bfloat16
        assert (np.abs(p.astype("f4") - exact) <= np.abs(exact) * 2.0**-8).all()
    assert opt.state["m"].dtype == np.float32


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_what_rounding_lost_is_not_lost(dtype):
    exact = run(fo.adamw, 200, p=start(dtype).astype("f4"), lr=1e-4)[0]
    errors = {}
    for kind in (None, "kahan"):
        p, opt = run(fo.adamw, 200, p=start(dtype), lr=1e-4, master=kind, rounding="nearest")
        lost = opt.state["master"].astype("f8") if kind else 0.0
        errors[kind] = np.abs(p.astype("f8") + lost - exact).max()
    assert errors["kahan"] < errors[None] / 20, errors  # 8 more bits, or 11, of which 200 roundings take some


def test_by_chance_small_steps_are_not_lost_and_to_nearest_they_are():
    """2000 steps of 2**-12 from 1, where neighbours of bfloat16 are 2**-7 apart: 1 - 2000 / 4096 = 0.512."""
    ends = {}
    for rounding in ("nearest", "stochastic"):
        p = np.ones(N, BF16)
        opt = fo.sgd(p, lr=2.0**-12, rounding=rounding)
        for _ in range(2000):
            opt.step(np.ones(N, BF16))
        ends[rounding] = p.astype("f8").mean()
    assert ends["nearest"] == 1.0
    assert abs(ends["stochastic"] - 0.512) < 0.01, ends


def test_a_tensor_of_torch_moves_in_place():
    t = torch.from_numpy(start().astype("f4")).bfloat16().requires_grad_()
    address = t.data_ptr()
    p, opt = start(), None
    opt, other = fo.adamw(t), fo.adamw(p)
    for g in grads(3):
        opt.step(torch.from_numpy(g).bfloat16())
        other.step(g.astype(BF16))
    assert t.data_ptr() == address
    np.testing.assert_array_equal(t.detach().float().numpy(), p.astype("f4"))


def test_a_tensor_of_torch_needs_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    codecs.array_dtype.cache_clear()
    try:
        with pytest.raises(fo.ArrayTypeError, match="Install ml_dtypes"):
            fo.adamw({"w": torch.ones(3).bfloat16()})
        with pytest.raises(fo.ArrayTypeError, match="Install ml_dtypes"):
            fo.pack({"w": torch.ones(3).bfloat16()})
    finally:
        codecs.array_dtype.cache_clear()


def test_packed_parameters():
    loose = {"a": start(n=100), "b": start(n=70).reshape(7, 10)}
    packed = fo.pack(loose)
    assert packed.flat.dtype == BF16 and packed.grads.flat.dtype == BF16
    pair = fo.adamw(packed, master="split"), fo.adamw(loose, master="split")
    packed.grads.flat[...] = 0.5
    pair[0].step()
    pair[1].step({"a": np.full(100, 0.5, "f4"), "b": np.full((7, 10), 0.5, "f4")})
    for name in "ab":
        np.testing.assert_array_equal(packed[name], loose[name])
    assert fo.pack({"a": np.ones(3, "f4")}, dtype=np.float16).flat.dtype == np.float16


def test_mixed_parameters():
    params = {"w": start(), "norm": start(np.float32), "h": start(np.float16)}
    opt = fo.adamw(params, master="float32", groups=[fo.Group("norm", weight_decay=0.0)])
    for g in grads(3):
        opt.step({"w": g.astype(BF16), "norm": g, "h": g})
    assert opt.state["master"]["norm"] is None
    assert {opt.state["master"][n].dtype for n in "wh"} == {np.dtype("f4")}


@pytest.mark.parametrize(
    "rule", [fo.clip_norm(fo.sgd, 1.0), fo.muon, fo.centralize(fo.sgd), fo.schedule_free_adamw, fo.ema(fo.lion)]
)
def test_other_rules(rule):
    """Of several passes, with rows and columns, with matrices, and states that start as the parameter."""
    first = start(n=2400).reshape(60, 40)
    exact, ours = first.astype("f4"), first.copy()
    options = {"lr": 1e-2} if "lr" in rule.schema else {}
    pair = rule(exact, **options), rule(ours, master="float32", **options)
    for g in grads(4, BF16, 2400):
        for opt in pair:
            opt.step(g.reshape(60, 40))
    np.testing.assert_array_equal(pair[1].state["master"], exact)
    np.testing.assert_array_equal(ours, exact.astype(BF16))
    if rule.view is not None:
        before = snapshot(pair[1])
        for opt in pair:
            opt.eval()
        np.testing.assert_array_equal(ours, exact.astype(BF16))
        pair[1].train()
        assert snapshot(pair[1]) == before


def test_gradients_of_rows_and_sparse_readings():
    p = start(n=1000).reshape(50, 20)
    q = p.astype("f4")
    pair = fo.adagrad(p, master="split", sparse="exact"), fo.adagrad(q, sparse="exact")
    for opt in pair:
        opt.step(fo.rows([1, 5], np.ones((2, 20), BF16)))
        opt.step(fo.rows([5, 7], np.ones((2, 20), BF16)))
        opt.catch_up()
    np.testing.assert_allclose(p.astype("f4"), q, rtol=2.0**-8)


def test_checkpoints(tmp_path):
    for options in ({}, {"master": "split"}, {"master": "float32", "state_dtype": "q8"}, {"master": "kahan"}):
        whole = start(n=5000)
        p, opt = run(fo.adamw, 2, p=whole, **options)
        opt.save(tmp_path / "x", params=True)
        q = start(n=5000)
        other = fo.adamw(q, **options)
        other.load(tmp_path / "x")
        for g in grads(2, n=5000):
            opt.step(g)
            other.step(g)
        assert p.tobytes() == q.tobytes() and snapshot(opt) == snapshot(other)


def test_the_same_bits_for_any_threads():
    found = set()
    try:
        for threads in (1, 2):
            fo.set_num_threads(threads)
            found.add(run(fo.adamw, 2, p=start(n=BIG))[0].tobytes())
    finally:
        fo.set_num_threads(None)
    assert len(found) == 1


def test_bad_masters_are_refused():
    for p, options, says in [
        (start(), {"master": "float64"}, "master is 'float64'; expected None or one of 'float32', 'split', 'kahan'"),
        (start(np.float32), {"master": "split"}, "master is 'split', which is for parameters in bfloat16 or float16"),
        (start(np.float16), {"master": "split"}, "which is for bfloat16; a parameter is float16. Use 'kahan'"),
    ]:
        with pytest.raises(fo.ConfigError, match=says):
            fo.adamw(p, **options)
    with pytest.raises(fo.ArrayTypeError, match="uint16; expected float32, float64, float16 or bfloat16"):
        fo.adamw(np.ones(4, "u2"))
    with pytest.raises(fo.ArrayTypeError, match="expected float32 or float64"):
        fo.minimize(lambda p: (0.0, p), start(), rule=fo.lbfgs(), epochs=1)


def test_kernels_are_packed():
    for dtype in ("bfloat16", "float16"):
        text = fo.source(fo.adamw, dtype=dtype).replace("parallel=True", "parallel=False")
        check_instructions(assembly(text), ["add", "mul", "div", "sqrt"])


@numba.njit
def _there_and_back(x):
    upper, y = np.empty(len(x), np.uint16), np.empty(len(x), np.float32)
    for i in range(len(x)):
        upper[i] = halves.upper_half(x[i])
        y[i] = halves.join_halves(upper[i], halves.lower_half(x[i]))
    return upper, y


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.integers(0, 0xFFFF))
def test_two_halves_are_the_whole(numbers, low):
    """All 65,536 upper halves with one lower half, half-way numbers among them, and any floats."""
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(low)
    for x in (np.array(numbers, np.float32), bits.view(np.float32), (bits & 0xFFFF0000 | 0x8000).view(np.float32)):
        with np.errstate(invalid="ignore", over="ignore"):
            expected = x.astype(BF16).astype("f4")
        upper, y = _there_and_back(x)
        assert np.array_equal(y, x, equal_nan=True)
        near = upper.view(BF16).astype("f4")
        tie = (x.view(np.uint32) & 0xFFFF) == 0x8000
        assert np.array_equal(near[~tie], expected[~tie], equal_nan=True)


def test_what_a_master_holds_is_no_other_kind_of_master():
    saved = {kind: run(fo.adamw, 1, master=kind)[1].state_dict() for kind in ("split", "kahan")}
    for kind, other in (("split", "kahan"), ("kahan", "split")):
        opt = run(fo.adamw, 1, master=kind)[1]
        before = snapshot(opt)
        with pytest.raises(fo.CheckpointError, match="state `master` of"):
            opt.load_state_dict(saved[other])
        assert snapshot(opt) == before
