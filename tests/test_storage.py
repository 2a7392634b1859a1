"""State in 16 and 8 bits: what is stored how, the same bits for any split, checkpoints, and what rounding does."""

import re
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import snapshot
from test_machine import BIG, assembly, check_instructions

import fastopt as fo
from fastopt import blocks, codecs
from fastopt.storage import SMALLEST

NAMES = ["bf16", "f16", "q8"]
N = 5000


def grads(steps, n=N, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype("f4") for _ in range(steps)]


def run(rule, steps=10, n=N, p=None, **options):
    p = np.random.default_rng(9).standard_normal(n).astype("f4") if p is None else p
    opt = rule(p, **options)
    for g in grads(steps, n):
        opt.step(g)
    return p, opt


# ---- what is stored how ----------------------------------------------------------------------------------------------


def test_the_live_arrays():
    params = {"w": np.ones((100, 60), "f4"), "b": np.ones(60, "f4")}
    for name, dtype in [("bf16", ml_dtypes.bfloat16), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]:
        opt = fo.adamw(params, state_dtype=name)
        assert {opt.state[s][k].dtype for s in "mv" for k in "wb"} == {np.dtype(dtype)}
    opt = fo.adamw(params, state_dtype="q8")
    assert opt.state["m"]["w"].dtype == np.uint8 and opt.state["m"]["w"].shape == (100, 60)
    assert opt.state["m_scale"]["w"].shape == (24,) and opt.state["m_scale"]["b"] is None
    assert opt.state["v"]["b"].dtype == np.float32  # too small to be worth it
    opt = fo.adamw(params, state_dtype={"v": "bf16"})
    assert opt.state["m"]["w"].dtype == np.float32 and opt.state["v"]["w"].dtype == ml_dtypes.bfloat16
    opt = fo.adamw({"w": params["w"].astype("f8")}, state_dtype="float32")
    assert opt.state["m"]["w"].dtype == np.float32
    opt.step({"w": params["w"]})
    assert fo.adamw(params, state_dtype="float32").state["m"]["w"].dtype == np.float32


def test_states_that_start_as_the_parameter_stay_in_full_unless_they_are_named():
    rule = fo.lookahead(fo.adamw)
    w = np.linspace(-1, 1, N, dtype="f4")
    opt = rule(w.copy(), state_dtype="q8")
    assert opt.state["s"].dtype == np.float32 and opt.state["m"].dtype == np.uint8
    opt = rule(w.copy(), state_dtype={"s": "bf16"})
    np.testing.assert_array_equal(opt.state["s"], w.astype(ml_dtypes.bfloat16))
    opt = rule(w.copy(), state_dtype={"s": "q8"})
    shown = blocks.decode(opt.state["s"], opt.state["s_scale"])
    assert np.abs(shown - w).max() < 0.016  # half a step at the top of a block: 1 / 64


def test_numbers_and_square_matrices_keep_their_own():
    opt = fo.novograd(np.ones((80, 60), "f4"), state_dtype="bf16")
    assert {s: opt.state[s].dtype for s in opt.state} == {
        s: np.dtype(ml_dtypes.bfloat16) if opt.state[s].size > 1 else np.dtype("f8") for s in opt.state
    }
    opt = fo.shampoo(np.ones((80, 60), "f4"), state_dtype="bf16")
    assert {opt.state[s].dtype for s in opt.state if opt.state[s].shape != (80, 60)} <= {np.dtype("f4"), np.dtype("f8")}


def test_bad_names_are_refused():
    w = np.ones(N, "f4")
    for options, says in [
        ({"state_dtype": "bf17"}, "state_dtype is 'bf17'; expected one of .*'q8'.*Did you mean `bf16`"),
        ({"state_dtype": "float64"}, "expected one of"),
        ({"state_dtype": np.int8}, "int8"),
        ({"state_dtype": {"m": "q4"}}, r"state_dtype\['m'\] is 'q4'"),
        ({"state_dtype": {"vv": "q8"}}, "`adamw` has no state 'vv'; its states are `m`, `v`"),
        ({"state_dtype": "q8", "rounding": "up"}, "rounding is 'up'; expected one of 'stochastic', 'nearest'"),
    ]:
        with pytest.raises(fo.ConfigError, match=says):
            fo.adamw(w, **options)
    with pytest.raises(fo.ConfigError, match=r"state_dtype: `sgd` has no state"):
        fo.sgd(w, lr=0.1, state_dtype={"m": "bf16"}, groups=())
    assert fo.adamw(w, state_dtype=np.float16).state["m"].dtype == np.float16
    assert fo.adamw(w, state_dtype=ml_dtypes.bfloat16).state["m"].dtype == ml_dtypes.bfloat16


def test_gradients_of_rows():
    def make(**options):
        return fo.adagrad(np.ones((100, 50), "f4"), **options)

    rows = fo.rows([3, 7], np.ones((2, 50), "f4"))
    a, b = make(state_dtype="bf16", rounding="nearest"), make()
    for opt in (a, b):
        opt.step(rows)
        opt.step(rows)
    np.testing.assert_allclose(a.params, b.params, rtol=1e-2)  # eight bits
    make(state_dtype="bf16").step(rows)
    make(state_dtype="bf16", rounding="nearest", sparse="exact").step(rows)
    opt = make(state_dtype="bf16", sparse="exact")
    before = snapshot(opt)
    with pytest.raises(fo.ConfigError, match="rounded by chance; use rounding="):
        opt.step(rows)
    assert snapshot(opt) == before


def test_a_group_says_how_its_own_are_stored():
    """And each parameter is the one of an optimizer that says so of all."""

    def make(*names, groups=(), **options):
        rng = np.random.default_rng(2)
        params = {n: rng.standard_normal((100, 64)).astype("f4") for n in ("embed", "w", "bias")}
        return fo.adamw({n: params[n] for n in names}, groups=groups, **options)

    whole, half = fo.Group("bias", state_dtype="float32"), fo.Group("embed", state_dtype="bf16", rounding="nearest")
    assert repr(half) == "Group('embed', state_dtype='bf16', rounding='nearest')"
    opt = make("embed", "w", "bias", groups=[whole, half], memory="8bit")
    assert [a.dtype for a in opt.state["v"].values()] == [ml_dtypes.bfloat16, np.uint8, np.float32]
    twins = [
        make("embed", state_dtype="bf16", rounding="nearest"),
        make("embed", "w", memory="8bit"),
        make("embed", "w", "bias"),
    ]
    saved = opt.state_dict()
    for g in grads(3, 6400):
        for o in (opt, *twins):
            o.step({n: g.reshape(100, 64) for n in o.params})
    for name, twin in zip(opt.params, twins, strict=True):
        assert opt.params[name].tobytes() == twin.params[name].tobytes()
        assert opt.state["m"][name].tobytes() == twin.state["m"][name].tobytes()
    other = make("embed", "w", "bias", groups=[whole, fo.Group("embed", rounding="nearest")], memory="8bit")
    with pytest.raises(fo.CheckpointError, match=r"state `m` of `embed`: bfloat16 \(100, 64\), expected uint8"):
        other.load_state_dict(saved)
    other = make("embed", "w", "bias", groups=[whole, half], memory="8bit")
    other.load_state_dict(opt.state_dict())
    assert [a.tobytes() for a in other.state["m"].values()] == [a.tobytes() for a in opt.state["m"].values()]
    for options, says in [
        ({"state_dtype": "bf17"}, r"Group\('embed'\): state_dtype is 'bf17'; expected one of"),
        ({"state_dtype": {"n": "q8"}}, r"Group\('embed'\): state_dtype: `adamw` has no state 'n'"),
        ({"state_dtype": "q8", "memory": "8bit"}, r"Group\('embed'\): memory='8bit' chooses `state_dtype`"),
        ({"rounding": "up"}, r"Group\('embed'\): rounding is 'up'"),
        ({"master": "split"}, r"Group\('embed'\): master is 'split', which is for .* there are none"),
    ]:
        with pytest.raises(fo.ConfigError, match=says):
            make("embed", "w", groups=[fo.Group("embed", **options)])


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("name", NAMES)
def test_close_to_float32(name, rounding):
    start = run(fo.adamw, 0)[0]
    exact = run(fo.adamw, lr=1e-2)[0] - start
    ours = run(fo.adamw, lr=1e-2, state_dtype=name, rounding=rounding)[0] - start
    error = np.sqrt(np.mean((ours - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < {"bf16": 0.006, "f16": 0.001, "q8": 0.04}[name]  # about a step of the code, 2**-8, 2**-11, 1/40


def test_a_kernel_computes_what_its_parts_say():
    """bf16 to nearest is the rule in float32 with states rounded by ml_dtypes after every step; momentum has one."""
    p, m = np.random.default_rng(9).standard_normal(N).astype("f4"), np.zeros(N, "f4")
    for g in grads(5):
        m = np.float32(0.9) * m + g
        p = p - np.float32(0.1) * m
        m = m.astype(ml_dtypes.bfloat16).astype("f4")
    ours, opt = run(fo.sgd, 5, lr=0.1, momentum=0.9, state_dtype="bf16", rounding="nearest")
    np.testing.assert_array_equal(ours, p)
    np.testing.assert_array_equal(next(iter(opt.state.values())).astype("f4"), m)


def test_parameters_in_float64():
    start = run(fo.adamw, 0, p=np.linspace(-1, 1, N))[0]
    exact = run(fo.adamw, 5, p=start.copy(), lr=1e-2)[0] - start
    for name, most in (("bf16", 0.006), ("q8", 0.04)):  # as for float32
        ours = run(fo.adamw, 5, p=start.copy(), lr=1e-2, state_dtype=name)[0] - start
        assert 0 < np.sqrt(np.mean((ours - exact) ** 2) / np.mean(exact**2)) < most


def test_nearest_rounding_stalls_an_average_and_chance_does_not():
    """v = 0.999 v + 0.001 g^2 from 1 towards 4: each step moves it by 0.3 % at first, less than half a step of bf16
    or q8 later on. 3000 steps bring float32 to 4 - 3 * 0.999^3000 = 3.85."""

    @fo.rule
    def average(p, g, v, *, lr=0.0, beta=0.999):
        v = beta * v + (1 - beta) * g * g
        return p - lr * v, v

    g = np.full(SMALLEST, 2.0, "f4")
    for name in ("bf16", "q8"):
        ends = {}
        for rounding in ("nearest", "stochastic"):
            opt = average(np.zeros(SMALLEST, "f4"), lr=0.0, state_dtype=name, rounding=rounding)
            opt.step(np.full(SMALLEST, 31.6, "f4"))  # v = 1
            for _ in range(3000):
                opt.step(g)
            v = opt.state["v"]
            v = blocks.decode(v, opt.state["v_scale"]) if name == "q8" else v.astype("f4")
            ends[rounding] = v.mean(dtype="f8")
        assert abs(ends["stochastic"] - 3.85) < 0.1, (name, ends)
        assert abs(ends["nearest"] - 3.85) > 0.5 or name == "q8", (name, ends)


def test_q8_average_to_nearest_stalls_beside_a_larger_one():
    """The largest of a block is exact; the others are stuck between levels."""

    @fo.rule
    def average(p, g, v, *, lr=0.0, beta=0.999):
        v = beta * v + (1 - beta) * g * g
        return p - lr * v, v

    g = np.full(SMALLEST, 2.0, "f4")
    g[::256] = 20.0  # v = 400 (1 - 0.999^t) there, 4 (1 - 0.999^t) elsewhere
    ends = {}
    for rounding in ("nearest", "stochastic"):
        opt = average(np.zeros(SMALLEST, "f4"), lr=0.0, state_dtype="q8", rounding=rounding)
        for _ in range(1000):
            opt.step(g)
        g0 = np.where(g == 2, 0.0, 20.0).astype("f4")
        for _ in range(500):
            opt.step(g0)
        ends[rounding] = blocks.decode(opt.state["v"], opt.state["v_scale"])[g == 2].mean(dtype="f8")
    expected = 4 * (1 - 0.999**1000) * 0.999**500  # 1.53
    assert abs(ends["stochastic"] / expected - 1) < 0.1 < abs(ends["nearest"] / expected - 1), ends


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_for_any_threads_and_cutting(name):
    results = set()
    try:
        for threads in (1, 2):
            fo.set_num_threads(threads)
            p, opt = run(fo.adamw, 2, BIG, state_dtype=name)
            state = [np.ascontiguousarray(opt.state[s]).view(np.uint8).tobytes() for s in opt.state]
            results.add((p.tobytes(), *state))
    finally:
        fo.set_num_threads(None)
    assert len(results) == 1


@pytest.mark.parametrize("rule", [fo.clip_norm(fo.adamw, 1.0), fo.muon, fo.lion, fo.cautious(fo.lion)])
def test_other_rules_in_8_bits(rule):
    """Rules of several passes, with totals, and matrices."""
    start = np.random.default_rng(3).standard_normal((80, 70)).astype("f4")
    moved = {}
    for name in (None, "q8"):
        p = start.copy()
        opt = rule(p, lr=1e-2, state_dtype=name)
        for g in grads(6, start.size):
            opt.step(g.reshape(start.shape))
        moved[name] = p - start
    a, b = moved.values()
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97  # Lion's signs turn where m is next to 0


@pytest.mark.parametrize("name", ["q8", "bf16"])
def test_every_rule_of_the_catalogue_has_a_kernel(name):
    """In bfloat16, too. That they are right is the codecs' business: see the rules above."""
    from fastopt.rules import CATALOGUE

    for rule in CATALOGUE.values():
        switches = {s: True for s in rule.switches if s in rule.schema and rule.schema[s].boolean}
        text = fo.source(rule, dtype="bfloat16", state_dtype=name, **switches)
        compile(text, rule.name, "exec")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_the_codes(name, tmp_path):
    p, opt = run(fo.adamw, 3, state_dtype=name)
    opt.save(tmp_path / "a.fastopt", params=True)
    saved = opt.state_dict()
    for load in (lambda o: o.load(tmp_path / "a.fastopt"), lambda o: o.load_state_dict(saved)):
        q = p.copy()
        other = fo.adamw(q, state_dtype=name)
        load(other)
        mine = p.copy()
        again = fo.adamw(mine, state_dtype=name)
        again.load_state_dict(saved)
        for g in grads(3, seed=5):
            other.step(g)
            again.step(g)
        assert q.tobytes() == mine.tobytes()
        for s in opt.state:
            assert other.state[s].tobytes() == again.state[s].tobytes()
    full = fo.adamw(p.copy())
    before = snapshot(full)
    with pytest.raises(fo.CheckpointError, match=r"state `m` of `params`: \w+ \(5000,\), expected float32"):
        full.load_state_dict(saved)
    assert snapshot(full) == before


def test_without_ml_dtypes(monkeypatch, tmp_path):
    p, opt = run(fo.adamw, 3, state_dtype="bf16")
    opt.save(tmp_path / "a.fastopt")
    codecs.array_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    try:
        q, other = run(fo.adamw, 3, state_dtype="bf16")
        assert other.state["m"].dtype == np.uint16
        assert p.tobytes() == q.tobytes() and opt.state["m"].tobytes() == other.state["m"].tobytes()
        other = fo.adamw(q.copy(), state_dtype="bf16")
        other.load(tmp_path / "a.fastopt")
        assert opt.state["m"].tobytes() == other.state["m"].tobytes()
        other.load_state_dict(other.state_dict())
        ema = fo.ema(fo.adamw)(q.copy(), state_dtype={"e": "bf16"})
        ema.step(q)
    finally:
        codecs.array_dtype.cache_clear()


# ---- instructions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_packed_and_free_of_float64(name):
    text = fo.source(fo.adamw, "cpu", state_dtype=name).replace("parallel=True", "parallel=False")
    check_instructions(assembly(text), ["add", "mul", "div", "sqrt"])


def test_blocks_are_packed():
    from numba import njit, types

    from fastopt.targets.blocks import round_block

    at = types.CPointer
    given = (at(types.uint8), at(types.float32), at(types.float32), types.uint64, types.uint64, types.uint64)
    store = njit(types.void(*given), error_model="numpy")(round_block.py_func)
    code = "\n".join(store.inspect_asm().values())
    check_instructions(code, ["mul", "add"])
    assert not re.search(r"\tv?pmul(ud|l)q\b", code)  # no 64-bit products


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_memory_says_what_is_held():
    params = {"w": np.ones((512, 512), "f4"), "b": np.ones(512, "f4")}
    opt = fo.adamw(params, memory="8bit")
    held = opt.memory()
    assert held.elements == 512 * 513
    assert held.state_bytes == sum(a.nbytes for s in opt.state.values() for a in s.values() if a is not None)
    assert held.state_bytes / held.elements <= 2.1
    assert ("m", "q8", 512 * 512, 512 * 512 + 4 * 1024) in held.parts
    assert ("m", "float32", 512, 2048) in held.parts and ("parameters", "float32", 512 * 513, 2052 * 512) in held.parts
    assert "all state" in str(held) and "q8" in str(held)
    assert fo.adamw(params).memory().state_bytes == 8 * held.elements
    half = fo.adamw({"w": np.ones(5000, ml_dtypes.bfloat16)}, master="split", memory="16bit").memory()
    assert half.state_bytes == 6 * 5000 and ("parameters", "bfloat16", 5000, 10_000) in half.parts
    with pytest.raises(fo.ConfigError, match="memory is '4bit'; expected None or one of '8bit', '16bit'"):
        fo.adamw(params, memory="4bit")
    with pytest.raises(fo.ConfigError, match="memory='8bit' chooses `state_dtype`"):
        fo.adamw(params, memory="8bit", state_dtype="bf16")
