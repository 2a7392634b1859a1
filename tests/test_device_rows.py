"""Gradients of rows on the fake device: the CPU's bits, whatever else the step has; errors change nothing."""

import re

import ml_dtypes
import numpy as np
import pytest
from cuda_twin import CAPABILITY, F4, chosen, needs_numba_cuda
from device_twin import grads_of, same, there

import fastopt as fo
from fastopt.lower import lower
from fastopt.targets import cuda
from fastopt.touched import lowered

pytestmark = needs_numba_cuda

N, C = 30, 6


def tables(dtype="f4", c=C):
    rng = np.random.default_rng(5)
    shapes = {"w": (N, c), "u": (N, 2, 3), "b": (7,)}
    return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def pair(gpu, rule, params, options):
    away = there(gpu, params)
    return rule(params, **options), rule(away, precise=True, **options), away


def drawn(params, t, dtype=None, most=40):
    """Gradients of rows of the matrices: none, some sorted, all alike, or many with duplicates; and a dense one."""
    rng = np.random.default_rng([t, 3])
    found = {}
    for name, p in params.items():
        if p.ndim == 1:
            found[name] = rng.standard_normal(p.shape).astype(dtype or p.dtype)
            continue
        k = (0, 5, most, 9)[(t + len(name + str(p.ndim))) % 4]
        indices = rng.integers(0, N, k)
        if k == 5:
            indices = np.unique(indices)
        if k == 9:
            indices[:] = N - 1
        values = rng.standard_normal((len(indices), *p.shape[1:])).astype(dtype or p.dtype)
        found[name] = indices, values
    return found


def here_of(found):
    return {k: fo.rows(*g) if isinstance(g, tuple) else g for k, g in found.items()}


def there_of(gpu, found, indices=False):
    def rows(where, values):
        return fo.rows(gpu.array(where) if indices else where, gpu.array(values))

    return {k: None if g is None else rows(*g) if isinstance(g, tuple) else gpu.array(g) for k, g in found.items()}


RULES = [
    (fo.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (fo.adamw, {"lr": 0.01}),
    (fo.adagrad, {"lr": 0.1}),
    (fo.keras.nadam, {"lr": 0.01}),  # a number for the whole parameter
    (fo.ema(fo.rmsprop, 0.9), {"lr": 0.01}),
]


# of parameters and values; sgd has all, the others two each
DTYPES = [("f4", None), ("f8", "f4"), ("f8", None), ("f4", "f8")]
CASES = [(*case, d) for k, case in enumerate(RULES) for d in (DTYPES if k == 0 else DTYPES[k % 2 :: 2])]


@pytest.mark.parametrize("rule, options, dtypes", CASES, ids=lambda x: getattr(x, "name", str(x)))
def test_the_bits_of_the_cpu(gpu, rule, options, dtypes):
    params = tables(dtypes[0])
    opt, twin, _ = pair(gpu, rule, params, options)
    for t in range(6):
        found = drawn(params, t, dtypes[1])
        opt.step(here_of(found)), twin.step(there_of(gpu, found, indices=t % 2 == 1))
    same(opt, twin)


@pytest.mark.parametrize("c", [1, 3, 300])
def test_rows_of_any_length_and_tables_that_grow(gpu, c):
    params = tables(c=c)
    opt, twin, _ = pair(gpu, fo.adamw, params, {"lr": 0.01})
    for t in range(4):
        found = drawn(params, t, most=70 * (t + 1))
        opt.step(here_of(found)), twin.step(there_of(gpu, found))
    same(opt, twin)


def test_rows_and_whole_gradients_take_turns(gpu):
    params = tables()
    groups = [fo.Group("u", lr=fo.schedules.cosine(peak=0.1, warmup=2, total=9)), fo.Group("b", frozen=True)]
    opt, twin, away = pair(gpu, fo.adamw, params, {"lr": 0.01, "groups": groups, "zero_grads": True})
    for t in range(8):
        found = drawn(params, t)
        if t % 3 == 2:
            found["w"] = grads_of(params, t)["w"]
        if t == 4:
            found["u"] = None
        g, there_g = here_of(found), there_of(gpu, found)
        opt.step(g, scale=8.0), twin.step(there_g, scale=8.0)
        twin._place.driver.synchronize(0)
        for k, x in there_g.items():
            if isinstance(x, tuple):
                assert x.values.get().tobytes() == found[k][1].tobytes(), "zero_grads leaves rows alone"
            elif x is not None and k != "b":
                assert not x.get().any()
    same(opt, twin)
    saved = twin.state_dict()
    again = fo.adamw(away, precise=True, lr=0.01, groups=groups)
    again.load_state_dict(saved)
    found = drawn(params, 9)
    opt.step(here_of(found)), again.step(there_of(gpu, found))
    same(opt, again)


def test_numbers_in_16_bits_and_a_copy(gpu):
    params = tables()
    copies = {k: np.zeros(p.shape, np.float16) for k, p in params.items()}
    away, there_copies = there(gpu, params), there(gpu, copies)
    options = {"lr": 0.01, "state_dtype": "bf16"}
    opt = fo.adamw(params, copy_out=copies, **options)
    twin = fo.adamw(away, copy_out=there_copies, precise=True, **options)
    for t in range(4):
        found = drawn(params, t)
        opt.step(here_of(found)), twin.step(there_of(gpu, found))
    same(opt, twin)
    for k, c in copies.items():
        assert there_copies[k].get().tobytes() == c.tobytes()


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (4,)], ids=str)
def test_odd_shapes(gpu, shape):
    params = {"w": np.ones(shape, "f4")}
    opt, twin, _ = pair(gpu, fo.adamw, params, {"lr": 0.01, "nonfinite": "skip"})
    for indices in ([], [2, 2, 0] if shape[0] else []):
        values = np.ones((len(indices), *shape[1:]), "f4")
        opt.step({"w": fo.rows(indices, values)}), twin.step({"w": fo.rows(indices, gpu.array(values))})
    same(opt, twin)
    assert twin.t == 2


@pytest.mark.parametrize("master", ["float32", "split", "kahan"])
def test_masters(gpu, master):
    params = {"w": tables()["w"].astype(ml_dtypes.bfloat16)}
    opt, twin, _ = pair(gpu, fo.adamw, params, {"lr": 0.01, "master": master})
    for t in range(3):
        found = {"w": drawn(tables(), t + 2)["w"]}
        opt.step(here_of(found)), twin.step(there_of(gpu, found))
    same(opt, twin)


@pytest.mark.parametrize("gradient", [np.dtype("f4"), np.dtype("f8")], ids=str)
def test_machine_code(gradient):
    low = lowered(lower(fo.adamw, chosen(fo.adamw)), "lazy", fo.adamw, "w", (N, C))
    module = cuda.kernels("adamw", low, F4, gradient)
    text = cuda.ptx(module, "kernel", CAPABILITY)
    assert ".local" not in text and "div.u64" not in text and "call" not in text
    # sums of float64 gradients are the only arithmetic in float64
    assert set(re.findall(r"(add|sub|mul|div|fma)\.(?:rn\.)?f64", text)) == set(["add"] * (gradient.itemsize == 8))


def test_streams_follow_each_other(gpu):
    params = tables()
    opt, twin, _ = pair(gpu, fo.adamw, params, {"lr": 0.01})
    for t in range(6):
        found = drawn(params, t, most=50 + 60 * t)
        opt.step(here_of(found)), twin.step(there_of(gpu, found), stream=(4, 4, 5)[t % 3])
    same(opt, twin)


def test_values_that_are_not_finite(gpu):
    params = tables()
    opt, twin, away = pair(gpu, fo.adamw, params, {"lr": 0.01, "nonfinite": "skip"})
    for t in range(6):
        found = drawn(params, t)
        if t in (1, 4):
            k = next(k for k in ("w", "u") if len(found[k][0]) > 2)
            found[k][1].reshape(-1)[-1] = (np.nan, np.inf)[t == 4]
        opt.step(here_of(found)), twin.step(there_of(gpu, found))
        assert opt.last.skipped == twin.last.skipped == (t in (1, 4)) and opt.last.nonfinite == twin.last.nonfinite
    same(opt, twin)
    assert twin.t == 4
    params = {k: x.get() for k, x in away.items()}
    opt, twin, _ = pair(gpu, fo.sgd, params, {"lr": 0.01, "nonfinite": "zero"})
    found = drawn(params, 1)
    for k in "wu":
        found[k][1].reshape(-1)[:2] = np.nan
    opt.step(here_of(found)), twin.step(there_of(gpu, found))
    same(opt, twin)
    strict = fo.adamw(there(gpu, params), nonfinite="raise")
    found = drawn(params, 1)
    name = next(k for k in ("w", "u") if len(found[k][0]))
    found[name][1].reshape(-1)[-1] = -np.inf
    with pytest.raises(fo.NonFiniteError, match=f"the gradient of `{name}` is not finite"):
        strict.step(there_of(gpu, found))
    assert strict.t == 0


def test_masks_and_indices_there(gpu):
    params = tables()
    opt, twin, _ = pair(gpu, fo.adagrad, params, {"lr": 0.1})
    mask = np.arange(N) % 4 == 1
    values = np.ones((mask.sum(), C), "f4")
    opt.step({"w": fo.rows(mask, values), "u": None, "b": None})
    twin.step({"w": fo.rows(gpu.array(mask), gpu.array(values)), "u": None, "b": None})
    k = np.array([3, 3, 0], np.int32)
    opt.step({"w": fo.rows(k, values[:3]), "u": None, "b": None})
    twin.step({"w": fo.rows(gpu.array(k), gpu.array(values[:3])), "u": None, "b": None})
    same(opt, twin)


def test_errors_change_nothing(gpu):
    away = there(gpu, tables())
    opt = fo.adamw(away, lr=0.01)
    rest = {"u": None, "b": None}

    def values(*shape, dtype="f4", **told):
        return gpu.array(np.ones(shape, dtype), **told)

    wrong = [
        (lambda: fo.rows([1, N], values(2, C)), fo.GradientError, f"`w`: index {N} at position 1; expected 0 to 29"),
        (lambda: fo.rows(gpu.array([-1]), values(1, C)), fo.GradientError, "`w`: index -1 at position 0"),
        (lambda: fo.rows([1, 2], values(3, C)), fo.GradientError, r"shape \(3, 6\) for 2 indices; expected \(2, ...\)"),
        (lambda: fo.rows([1], values(1, C + 1)), fo.GradientError, r"`w`, of rows: shape \(1, 7\); expected \(1, 6\)"),
        (lambda: fo.rows([1], values(1, C, dtype="f2")), fo.GradientError, "on a GPU are float16; expected an array"),
        (lambda: fo.rows(values(1), values(1, C)), fo.GradientError, "indices on a GPU of dtype float32"),
        (lambda: fo.rows(gpu.array(np.ones(1, "u4")), values(1, C)), fo.GradientError, "expected int64, int32"),
        (lambda: fo.rows([1], np.ones((1, C), "f4")), fo.DeviceError, "`w`, of rows is a ndarray in host memory"),
        (lambda: fo.rows([1], values(1, C, strides=(4, 8))), fo.GradientError, "`w`, of rows is not C-contiguous"),
        (lambda: fo.rows(np.arange(N), away["w"]), fo.GradientError, "`w`, of rows shares memory with a parameter"),
    ]
    for make, error, match in wrong:
        with pytest.raises(error, match=match):
            opt.step({"w": make(), **rest})
    with pytest.raises(fo.DeviceError, match=r"sparse is 'exact', which parameters on a GPU cannot have"):
        fo.adamw(away, sparse="exact")
    with pytest.raises(
        fo.DeviceError, match=r"`rowwise_adagrad` cannot take a gradient of rows on a GPU: it sums over"
    ):
        fo.rowwise_adagrad({"w": away["w"]}, lr=0.1).step({"w": fo.rows([1], values(1, C))})
    with pytest.raises(fo.ConfigError, match="each of its steps looks at whole parameters"):
        fo.clip_norm(fo.adamw, 1.0)(away).step({"w": fo.rows([1], values(1, C)), **rest})
    with pytest.raises(fo.DeviceError, match="its rows are a FakeArray on a GPU; the parameter is in host"):
        fo.adamw(np.zeros((N, C), "f4")).step(fo.rows([1], values(1, C)))
    gpu.synchronize(0)
    assert opt.t == 0 and not opt.state["m"]["w"].copy_to_host().any()
    assert all(away[k].get().tobytes() == p.tobytes() for k, p in tables().items())
    opt.step({"w": fo.rows([1, 2], values(2, C)), **rest})
    assert opt.t == 1


def test_no_memory_for_a_longer_table(gpu):
    away = there(gpu, tables())
    opt = fo.adamw(away, lr=0.01)
    few, many = (
        {"w": fo.rows(np.arange(k) % N, gpu.array(np.ones((k, C), "f4"))), "u": None, "b": None} for k in (3, 200)
    )
    opt.step(few)
    gpu.synchronize(0)
    before = [x.get().tobytes() for x in away.values()]
    gpu.fail_alloc = 0
    with pytest.raises(MemoryError):
        opt.step(many)
    gpu.fail_alloc = None
    gpu.synchronize(0)
    assert before == [x.get().tobytes() for x in away.values()] and opt.t == 1
    opt.step(few), opt.step(many)
    assert opt.t == 3


def test_a_graph_cannot_hold_rows(gpu):
    away = there(gpu, tables())
    opt = fo.adamw(away, lr=0.01)
    g = {"w": fo.rows([1], gpu.array(np.ones((1, C), "f4"))), "u": None, "b": None}
    opt.step(g, stream=4)
    with gpu.capture(4), pytest.raises(fo.DeviceError, match=r"gradient of `w`: which rows it touches.*CUDA graph"):
        opt.step(g, stream=4)
    indices = gpu.array(np.array([1]), stream=4)
    with gpu.capture(4), pytest.raises(fo.DeviceError, match="indices on a GPU go to the host"):
        fo.rows(indices, g["w"].values)
    opt.step(g, stream=4)
    assert opt.t == 2
