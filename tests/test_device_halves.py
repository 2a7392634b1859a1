"""16-bit numbers on the fake device, bit for bit as on the host: gradients, states, parameters, copies, masters."""

import re
import sys

import ml_dtypes
import numpy as np
import pytest
from cuda_twin import F4, F8, Twin, chosen, compare, make, needs_numba_cuda, same_bits
from device_twin import grads_of, pair, same, small, there
from test_cuda import float64_stays_outside

import fastopt as fo
from fastopt import codecs
from fastopt.math import rms
from fastopt.source import chosen as lowered
from fastopt.targets import cuda, toolkit

pytestmark = needs_numba_cuda

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype("f2")


def steps(gpu, opt, twin, params, dtypes, n=3):
    """The same steps, with gradients of another dtype each time."""
    for t in range(n):
        g = grads_of(params, t, dtypes[t % len(dtypes)])
        opt.step(g), twin.step(there(gpu, g))


@pytest.mark.parametrize("rule", [fo.adamw, fo.clip_norm(fo.sgd, 1.0), fo.adafactor], ids=lambda r: r.name)
def test_gradients(gpu, rule):
    params = {n: x for n, x in small(("f4", "f8", "f4")).items() if rule is not fo.adafactor or x.ndim == 2}
    opt, twin, _ = pair(gpu, rule, params, lr=0.01)
    steps(gpu, opt, twin, params, (BF16, F16, BF16))
    same(opt, twin, rtol=0.0 if rule is fo.adamw else 1e-6)


def test_gradients_scaled_looked_at_and_set_to_0(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, zero_grads=True, nonfinite="skip")
    for t, dtype in enumerate((F16, BF16, F16, BF16)):
        g = grads_of(params, t, dtype)
        if t > 1:
            g["b"][3] = np.inf if t == 2 else np.nan
        away = there(gpu, g)
        opt.step(g, scale=4.0), twin.step(away, scale=4.0)
        assert opt.last.skipped == twin.last.skipped == (t > 1)
        twin._place.driver.synchronize(0)
        assert not any(x.get().view(np.uint16).any() for x in away.values())
    same(opt, twin)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("stored", ["bf16", "f16"])
def test_states(gpu, stored, rounding):
    params = small(("f4", "f8", "f4"))
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, state_dtype=stored, rounding=rounding)
    steps(gpu, opt, twin, params, ("f4",))
    same(opt, twin)
    saved = twin.state_dict()
    twin.load_state_dict(opt.state_dict())
    steps(gpu, opt, twin, params, (BF16,), n=1)
    same(opt, twin)
    assert saved["state"]["m"]["w"].dtype == (BF16 if stored == "bf16" else F16)


def test_one_state_and_three_and_what_memory_says(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, state_dtype={"v": "bf16"})
    steps(gpu, opt, twin, params, ("f4",), n=2)
    same(opt, twin)
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, amsgrad=True, memory="16bit")
    steps(gpu, opt, twin, params, ("f4",), n=2)
    same(opt, twin)
    assert str(opt.memory()) == str(twin.memory()) and opt.memory().state_bytes == 6 * opt.num_parameters


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_parameters(gpu, dtype, rounding):
    params = small((dtype, dtype, "f4"))
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, rounding=rounding)
    steps(gpu, opt, twin, params, (dtype, "f4"))
    same(opt, twin)


def test_copies(gpu):
    params = small(("f4", "f8", BF16))
    for dtypes in ((BF16, "f4", "f8"), (F16, BF16, "f4")):
        made = {n: np.zeros(x.shape, d) for (n, x), d in zip(params.items(), dtypes, strict=True)}
        away = there(gpu, made)
        opt, twin = fo.adamw(params, copy_out=made), fo.adamw(there(gpu, params), precise=True, copy_out=away)
        steps(gpu, opt, twin, params, ("f4",), n=1)
        same(opt, twin)
        assert all(away[n].get().tobytes() == made[n].tobytes() for n in params)


@pytest.mark.parametrize("kind", ["float32", "split", "kahan"])
def test_masters(gpu, kind):
    params = small((BF16, F16 if kind == "kahan" else BF16, "f4"))
    made = {n: np.zeros(x.shape, "f4") for n, x in params.items()}
    away = there(gpu, made)
    opt = fo.adamw(params, lr=0.01, master=kind, memory="16bit", copy_out=made)
    twin = fo.adamw(there(gpu, params), precise=True, lr=0.01, master=kind, memory="16bit", copy_out=away)
    steps(gpu, opt, twin, params, (BF16, "f4"))
    same(opt, twin)
    assert all(away[n].get().tobytes() == made[n].tobytes() for n in params)


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F16, F16), (F4, BF16), (F8, F16)], ids=str)
@pytest.mark.parametrize("rule", [fo.adamw, fo.adafactor], ids=lambda r: r.name)
def test_every_access_of_16_bytes(rule, dtypes):
    on = chosen(rule, momentum=True)
    more = {"state_dtype": "bf16"}
    _, grads, opt = make((rule, on), dtypes, steps=3, **more)
    _, _, on_gpu = make((rule, on), dtypes, steps=3, **more)
    twin = Twin(on_gpu, together=("together",))
    for g in grads:
        opt.step(g), twin.step(g)
    assert twin.widest == {"ld": 16, "st": 16}
    compare(opt, twin.opt, close if rule is fo.adafactor else same_bits)


def close(a, b, what):
    # sums are added up in another order, in float64: now and then a number in 16 bits is rounded to its neighbour
    half = a.dtype.itemsize == 2
    a, b = (x.astype("f8") for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=1e-2 if half else 1e-6, atol=1e-7, err_msg=what)
    if half:
        assert np.sum((a != b) & (a == a)) <= 0.05 * a.size, what


def every(dtype):
    """All numbers of a dtype of 16 bits."""
    found = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    return found[np.isfinite(found.astype("f4"))]


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_number(gpu, dtype, rounding):
    params = {"p": every(dtype)}
    rng = np.random.default_rng(1)
    g = {"p": (params["p"].astype("f4") * rng.uniform(-1, 1, params["p"].size)).astype("f4")}
    opt, twin, _ = pair(gpu, fo.sgd, params, lr=0.7, rounding=rounding)
    with np.errstate(over="ignore"):
        opt.step(g), twin.step(there(gpu, g))
    same(opt, twin)


def test_what_is_around_a_step(gpu):
    params = small((BF16, BF16, "f4"))
    opt, twin, away = pair(gpu, fo.ema(fo.adamw, 0.5), params, lr=0.01, memory="16bit", nonfinite="zero")
    for t in range(2):
        g = grads_of(params, t, BF16)
        g["w"][0, :2] = [np.nan, np.inf]
        opt.accumulate(g), twin.accumulate(there(gpu, g))
        g = grads_of(params, t + 5, F16)
        opt.accumulate(g), twin.accumulate(there(gpu, g))
        opt.step(), twin.step()
        with opt.averaged(), twin.averaged():
            for n in params:
                np.testing.assert_array_equal(away[n].get(), params[n])
    opt.perturb(g, rho=0.5), twin.perturb(there(gpu, g), rho=0.5)
    opt.step(g), twin.step(there(gpu, g))
    twin._place.driver.synchronize(0)
    for n in params:
        np.testing.assert_allclose(away[n].get().astype("f4"), params[n].astype("f4"), rtol=2e-2)


def test_packed_parameters_and_a_checkpoint(gpu, tmp_path):
    start = small((BF16, BF16, BF16))
    params, away = fo.pack(start), fo.pack(start, device="cuda")
    options = {"lr": 0.01, "master": "split", "memory": "16bit"}
    opt, twin = fo.adamw(params, **options), fo.adamw(away, precise=True, **options)
    for t in range(2):
        for n, x in grads_of(start, t).items():
            params.grads[n], away.grads[n] = x, x
        opt.step(), twin.step()
    for n in start:
        assert away[n].copy_to_host().tobytes() == params[n].tobytes()
    twin.save(tmp_path / "twin.safetensors", params=True)
    other = fo.adamw(fo.pack(start), **options)
    other.load(tmp_path / "twin.safetensors")
    assert other.params.flat.tobytes() == params.flat.tobytes()
    assert other.state["master"]["w"].tobytes() == opt.state["master"]["w"].tobytes()


def test_arrays_that_are_refused(gpu):
    params = small((BF16, BF16, BF16))
    away = there(gpu, params)
    opt = fo.adamw(away)
    g = there(gpu, params)
    integers = gpu.array(np.zeros((9, 5), np.uint16))
    with pytest.raises(fo.GradientError, match=r"gradient of `w`: an array of dtype uint16; expected .* or bfloat16"):
        opt.step({**g, "w": integers})
    with pytest.raises(fo.ArrayTypeError, match="parameter `params`: an array of dtype uint16"):
        fo.adamw(integers)
    odd = gpu.array(np.zeros((9, 5), BF16), data=(away["w"].address + 1, False))
    with pytest.raises(fo.GradientError, match="gradient of `w` is not C-contiguous"):
        opt.step({**g, "w": odd})
    for array, error, match in (
        (np.zeros((9, 5)), fo.DeviceError, "copy_out of w is a ndarray in host memory; the parameter is on cuda:0"),
        (gpu.array(np.zeros(5)), fo.ConfigError, r"copy_out of `w`: float64 \(5,\); expected a writable"),
        (integers, fo.ConfigError, r"copy_out of `w`: uint16 \(9, 5\); expected a writable"),
        (away["w"], fo.ConfigError, "share memory; a copy needs memory of its own"),
    ):
        with pytest.raises(error, match=match):
            fo.adamw(away, copy_out={"w": array, "b": None, "scale": None})
    with pytest.raises(fo.ConfigError, match=r"master is 'split', which is for bfloat16.* Use 'kahan'"):
        fo.adamw(there(gpu, small((F16, BF16, "f4"))), master="split")


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("of_p", [BF16, F16], ids=str)
def test_machine_code_and_whole_accesses(capability, of_p):
    low, of_p, of_g = lowered(fo.adamw, of_p, F16, "bf16", {})
    text = cuda.ptx(cuda.kernels("adamw", low, of_p, of_g), "kernel", capability)
    assert re.findall(r"\b(ld|st)\.global\.v4\.[ub]32", text) == ["ld"] * 4 + ["st"] * 3
    assert not re.search(r"\.local|\bcall\b|\b(div|rem)\.[us]64|\b(ld|st)\.(global\.)?v2\b", text)
    float64_stays_outside(text, low.passes[0])
    assert toolkit.cubin(text, capability)[:4] == b"\x7fELF"


def test_a_graph_rolls_new_dice(gpu):
    params = small((BF16, F16, "f4"))
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, memory="16bit")
    g = grads_of(params, 0, F16)
    held = there(gpu, g)
    opt.step(g), twin.step(held, stream=4)
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    for _ in range(3):
        opt.step(g), graph.replay()
    same(opt, twin)


@fo.rule
def columns(p, g, a, b, c, *, lr=0.1):
    a = a + rms(g, "column")
    b = b + rms(g * 2, "column")
    c = c + rms(g + p, "column")
    r = rms(g, "row")
    return p - lr * g * r / (a + b + c), a, b, c


def test_sums_of_columns_fit_into_a_block(gpu):
    """With 8 elements a thread those of three sums would not."""
    assert "width = u4 if vectors" in fo.source(columns, "cuda", gradient="float16")
    assert "width = u8 if vectors" in fo.source(fo.adafactor, "cuda", gradient="float16")
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((40, 24)).astype("f4"), "x": rng.standard_normal((3, 7)).astype("f4")}
    opt, twin, _ = pair(gpu, columns, params)
    steps(gpu, opt, twin, params, (F16, "f4"), n=2)
    same(opt, twin, rtol=1e-6)


def test_without_ml_dtypes_the_codes_are_integers(gpu, monkeypatch):
    params = small((BF16, BF16, BF16))
    away, g = there(gpu, params), grads_of(params, 0, BF16)
    opt = fo.adamw(params, lr=0.01, memory="16bit")
    opt.step(g)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    codecs.array_dtype.cache_clear()
    try:
        twin = fo.adamw(away, lr=0.01, memory="16bit", precise=True)
        twin.step(there(gpu, g))
        for n in params:
            assert twin.state["m"][n].dtype == np.uint16
            assert twin.state["m"][n].copy_to_host().tobytes() == opt.state["m"][n].tobytes()
            assert away[n].get().tobytes() == params[n].tobytes()
    finally:
        codecs.array_dtype.cache_clear()
