"""On the fake device as on the host: loss scales, gradients mended and set to 0, accumulation, SAM."""

import numpy as np
import pytest
from cuda_twin import needs_numba_cuda
from device_twin import grads_of, pair, same, small, there

import fastopt as fo

pytestmark = needs_numba_cuda


def test_scale_zero_grads_and_mended_elements(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, zero_grads=True, nonfinite="zero")
    for t, scale in enumerate((8.0, 8.0, 1024.0, None)):
        g = grads_of(params, t, "f8" if t == 2 else None)
        g["w"][0, :3] = [np.nan, np.inf, -np.inf]
        g = {n: np.asarray(x * (1 if scale is None else scale)).astype(x.dtype) for n, x in g.items()}
        away = there(gpu, g)
        opt.step(g, scale=scale), twin.step(away, scale=scale)
        twin._place.driver.synchronize(0)
        assert not any(x.get().any() for x in away.values()) and not any(x.any() for x in g.values())
    same(opt, twin)


def test_accumulated_gradients(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, groups=[fo.Group("b", frozen=True)])
    for t in range(5):
        g = grads_of(params, t)
        g["scale"] = None if t < 3 else g["scale"]
        opt.accumulate(g), twin.accumulate(there(gpu, g))
        if t in (1, 4):
            opt.step(scale=2.0), twin.step(scale=2.0)
    same(opt, twin)
    g = grads_of(params, 9)
    opt.accumulate(g), twin.accumulate(there(gpu, g))
    saved = twin.state_dict()
    twin.load_state_dict(saved)
    opt.step(), twin.step()
    same(opt, twin)


def test_perturbed_and_put_back(gpu):
    params = small()
    opt, twin, away = pair(gpu, fo.adamw, params, lr=0.01)
    for t in range(2):
        g = grads_of(params, t)
        opt.perturb(g, rho=0.5), twin.perturb(there(gpu, g), rho=0.5)
        twin._place.driver.synchronize(0)
        for n in params:
            np.testing.assert_allclose(away[n].get(), params[n], rtol=1e-6, atol=1e-7)
        g = grads_of(params, t + 10)
        opt.step(g), twin.step(there(gpu, g))
    same(opt, twin)
    twin.perturb(there(gpu, g))
    twin.unperturb()
    same(opt, twin)


@pytest.mark.parametrize("rule", [fo.adamw, fo.clip_norm(fo.adamw, 1.0)], ids=lambda r: r.name)
def test_skipped_steps_leave_every_bit_there_too(gpu, rule):
    params = small(("f4", "f8", "f4"))
    opt, twin, away = pair(gpu, rule, params, lr=0.01, zero_grads=True)
    scales = fo.LossScale(8.0, interval=2), fo.LossScale(8.0, interval=2)
    for t in range(5):
        g = grads_of(params, t, "f8" if t == 3 else None)
        g = {n: np.asarray(x * scales[0].value).astype(x.dtype) for n, x in g.items()}
        if t in (1, 3):
            g["b"][2] = np.nan
        there_g = there(gpu, g)
        opt.step(g, scale=scales[0]), twin.step(there_g, scale=scales[1])
        assert scales[0].state_dict() == scales[1].state_dict()
        assert opt.last.skipped == twin.last.skipped == (t in (1, 3)) and opt.last.nonfinite == twin.last.nonfinite
        twin._place.driver.synchronize(0)
        assert not any(x.get().any() for x in there_g.values())
    same(opt, twin, rtol=1e-6 if rule is not fo.adamw else 0.0)
    assert twin.t == 3
    g = grads_of(params, 7)
    there_g = there(gpu, g)
    opt.step(g), twin.step(there_g)
    assert opt.last.norm is None or twin.last.norm == pytest.approx(opt.last.norm, rel=1e-12)
    strict = rule(away, nonfinite="raise")
    g["scale"][...] = np.inf
    with pytest.raises(fo.NonFiniteError, match="the gradient of `scale` is not finite"):
        strict.step(there(gpu, g))
    assert strict.t == 0


@pytest.mark.parametrize("rule", [fo.ema(fo.sgd, 0.5), fo.schedule_free_adamw, fo.asgd], ids=lambda r: r.name)
def test_averages_are_shown_there_too(gpu, rule):
    params = small(("f4", "f8", "f4"))
    opt, twin, away = pair(gpu, rule, params, lr=0.1, groups=[fo.Group("b", frozen=True)])
    for t in range(3):
        g = grads_of(params, t)
        g["scale"] = None if t == 1 else g["scale"]
        opt.step(g), twin.step(there(gpu, g))
        with opt.averaged(), twin.averaged():
            for n in params:
                np.testing.assert_allclose(away[n].get(), params[n], rtol=1e-6)
            with pytest.raises(fo.ConfigError, match="the parameters are averages now"):
                twin.step(there(gpu, g))
    same(opt, twin)


def test_norms_of_groups(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.clip_group_norm(fo.sgd, 0.5), params, lr=0.1, groups=[fo.Group("b", lr=0.2)])
    for t in range(3):
        g = grads_of(params, t)
        g["w"] = None if t == 1 else g["w"]
        opt.step(g), twin.step(there(gpu, g))
    same(opt, twin, rtol=1e-6)


def test_norms_of_each(gpu):
    opt, twin, _ = pair(gpu, fo.clip_each_norm(fo.sgd, 0.5), small(), lr=0.1)
    g = grads_of(small(), 0)
    opt.step(g), twin.step(there(gpu, g))
    assert twin.last.norms == pytest.approx(opt.last.norms, rel=1e-12)


def test_what_the_device_cannot_do(gpu):
    away = there(gpu, small())
    opt = fo.clip_group_norm(fo.adamw, 1.0)(there(gpu, small(("f4", "f8", "f4"))))
    with pytest.raises(fo.DeviceError, match="total over a group, which the CUDA target takes of"):
        opt.step(there(gpu, small(("f4", "f8", "f4"))))
    assert opt.t == 0
    opt = fo.adamw(away, nonfinite="skip")
    g = there(gpu, grads_of(small(), 0))
    opt.step(g, stream=4)
    with gpu.capture(4), pytest.raises(fo.DeviceError, match="a look at the gradients waits for the device"):
        opt.step(g, stream=4)
