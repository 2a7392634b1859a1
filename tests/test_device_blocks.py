"""State in 8 bits on the fake device, bit for bit as on the host: rounding, ragged blocks, sums, checkpoints."""

import re
import shutil
import subprocess
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cuda_twin import F4, Twin, chosen, compare, make, needs_numba_cuda, same_bits
from device_twin import grads_of, numbers, pair, same, there
from test_cuda import entry, float64_stays_outside

import fastopt as fo
from fastopt import scratch
from fastopt.math import rms
from fastopt.source import chosen as lowered
from fastopt.targets import cuda

pytestmark = needs_numba_cuda

EIGHT = {"lr": 0.01, "memory": "8bit"}


def large(w="f4", x="f4", **small):
    """Five chunks, the last one a part of a block; whole blocks; and, if asked for, what keeps its state in full."""
    rng = np.random.default_rng(4)
    shapes = {"w": (17, 269), "x": (16, 256), "b": (7,)}
    return {k: rng.standard_normal(shapes[k]).astype(d) for k, d in {"w": w, "x": x, **small}.items()}


def steps(gpu, opt, twin, params, times=range(3), dtype="f4"):
    """The same steps; gradients of many sizes, in the first steps some that are not finite, and blocks of 0."""
    for t in times:
        g = grads_of(params, t, "f4")
        for x in g.values():
            x *= 10 ** np.random.default_rng(t).uniform(-8, 2, x.shape).astype("f4")
        if t == 0:
            g["w"].reshape(-1)[512:1024] = 0
        if t == 1:
            g["w"].reshape(-1)[[5, 1300]] = np.nan, np.inf
        g = {k: x.astype(dtype) for k, x in g.items()}
        away = there(gpu, g)
        opt.step(g), twin.step(away)


def test_every_bit(gpu):
    params = large(b="f4")
    opt, twin, _ = pair(gpu, fo.adamw, params, **EIGHT)
    steps(gpu, opt, twin, params)
    same(opt, twin)
    scales = opt.state["m_scale"]["w"], opt.state["v_scale"]["w"]
    assert all(np.isnan(s[[0, 5]]).all() and np.isfinite(np.delete(s, [0, 5])).all() for s in scales)
    assert (scales[0][2:4] > 0).all() and (scales[1][1:5] < 0).all()
    assert str(opt.memory()) == str(twin.memory()) and "q8" in str(twin.memory())


def test_checkpoints_go_there_and_back(gpu, tmp_path):
    params = large()
    opt, twin, away = pair(gpu, fo.adamw, params, **EIGHT)
    steps(gpu, opt, twin, params, [2])
    opt.save(tmp_path / "host"), twin.save(tmp_path / "device")
    here, there_too = fo.adamw(params, **EIGHT), fo.adamw(away, precise=True, **EIGHT)
    here.load(tmp_path / "device"), there_too.load(tmp_path / "host")
    steps(gpu, here, there_too, params, [3])
    same(here, there_too)
    assert isinstance(twin.state_dict()["state"]["m_scale"]["w"], np.ndarray) and set(numbers(away)) == set(params)


def test_a_graph_rolls_new_dice(gpu):
    params = large()
    opt, twin, _ = pair(gpu, fo.adamw, params, **EIGHT)
    g = grads_of(params, 0)
    held = there(gpu, g)
    opt.step(g), twin.step(held, stream=4)
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    for _ in range(2):
        opt.step(g), graph.replay()
    same(opt, twin)


def test_chunks_grids_and_arrays_that_are_misaligned(monkeypatch):
    """`together` begins one element behind a boundary: its numbers go one by one."""
    monkeypatch.setattr(scratch, "CHUNK", 1024)
    on, sizes = (fo.adamw, chosen(fo.adamw)), [(4100,), (5000,)]
    _, grads, opt = make(on, sizes=sizes, steps=2, memory="8bit")
    _, _, on_gpu = make(on, sizes=sizes, steps=2, memory="8bit")
    twin = Twin(on_gpu, blocks=3, together=("together",))
    for g in grads:
        opt.step(g), twin.step(g)
    assert twin.widest == {"ld": 16, "st": 16}
    compare(opt, twin.opt, same_bits)


def careful(p, g, v, *, lr=0.1):
    v = 0.9 * v + g * g / abs(g)  # NaN where nothing is, behind the end, which would spoil a block and a sum
    return p - lr * g / (v + rms(v)), v


def test_sums_wrappers_averages_and_rounding_to_nearest(gpu):
    """Passes of sums leave state alone; the view of an average reads its codes, and writes none."""
    params = large()
    rule = fo.ema(fo.clip_norm(fo.rule(careful), 1.0), 0.5)
    opt, twin, away = pair(gpu, rule, params, zero_grads=True, rounding="nearest", **EIGHT)
    steps(gpu, opt, twin, params, [2, 3])
    same(opt, twin, rtol=1e-6)  # the sums, in float64, have another order
    assert {codec for _, codec in opt._segments[0].lowered.stored} == {"q8"} and np.isfinite(params["w"]).all()
    assert (opt.state["e_scale"]["w"] > 0).all() and (opt.state["v_scale"]["w"] < 0).all()
    with opt.averaged(), twin.averaged():
        twin._place.driver.synchronize(0)
        for n in params:
            np.testing.assert_allclose(away[n].get(), params[n], rtol=1e-6)


def test_parameters_in_16_and_64_bits(gpu):
    half = np.dtype(ml_dtypes.bfloat16)
    params = large(half, "f8")
    opt, twin, _ = pair(gpu, fo.sgd, params, momentum=0.9, master="split", **EIGHT)
    steps(gpu, opt, twin, params, dtype=half)
    same(opt, twin)


def test_gradients_of_rows_are_refused(gpu):
    params = large()
    twin = fo.adagrad(there(gpu, params), **EIGHT)
    before = {n: x.tobytes() for n, x in numbers(twin.params).items()}
    rows = fo.rows(gpu.array(np.array([1, 4])), gpu.array(np.ones((2, 256), "f4")))
    with pytest.raises((fo.ConfigError, fo.DeviceError), match='in blocks of 8 bits; use state_dtype="bf16"'):
        twin.step({"w": None, "x": rows})
    assert before == {n: x.tobytes() for n, x in numbers(twin.params).items()} and twin.t == 0
    low, of_p, of_g = lowered(fo.adagrad, F4, F4, "q8", {})
    with pytest.raises(fo.DeviceError, match="`adagrad` cannot take a gradient of rows on a GPU: its state"):
        cuda.source("adagrad", replace(low, touched="lazy"), of_p, of_g)


def test_rules_that_walk_along_rows_keep_theirs_in_full(gpu):
    opt = fo.adam_mini(there(gpu, {"w": np.ones((64, 512), "f4")}), memory="8bit")
    assert opt.state["m"]["w"].dtype == np.float32
    with pytest.raises(fo.ConfigError, match="walks along rows and it runs on a GPU; use 'bf16'"):
        fo.adam_mini(opt.params, state_dtype={"m": "q8"})


def test_rules_that_walk_along_rows_are_refused():
    low, of_p, of_g = lowered(fo.adafactor, F4, F4, None, {})
    with pytest.raises(fo.DeviceError, match=r"`adafactor` walks along rows.* use state_dtype='bf16'"):
        cuda.source("adafactor", replace(low, stored=(("v", "q8"),)), of_p, of_g)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=str)
def test_machine_code(capability, tmp_path):
    """Codes are read and written eight at once; nothing is spilled; two blocks fit on a multiprocessor."""
    low, of_p, of_g = lowered(fo.adamw, F4, F4, "q8", {})
    text = cuda.ptx(cuda.kernels("adamw", low, of_p, of_g), "kernel", capability)
    found = re.findall(r"\b(ld|st)\.global\.v([24])\.[fbu]32", entry(text))
    assert sorted(found) == sorted([("ld", "4")] * 4 + [("st", "4")] * 2 + [("ld", "2"), ("st", "2")] * 2)
    assert not re.search(r"\.local|\bcall\b|\b(div|rem)\.[us]64|\b(ld|st)\.([fbu](32|64)|v[24])\b", entry(text))
    float64_stays_outside(entry(text), low.passes[0])
    if shutil.which("ptxas") and capability >= (9, 0):
        file = tmp_path / "kernel.ptx"
        file.write_text(re.sub(r"^\.version .*$", ".version 8.0", text, flags=re.M))
        given = ["ptxas", "-v", "-arch=sm_90", file, "-o", tmp_path / "kernel.cubin"]
        said = subprocess.run(given, capture_output=True, text=True, timeout=60, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in said and "0 bytes stack frame" in said
        assert int(re.findall(r"Used (\d+) registers", said)[0]) <= 128
