"""16-bit numbers on the fake device, bit for bit as on the host: gradients, states, parameters, copies, masters."""

import ml_dtypes
import numpy as np
import pytest
from cuda_twin import needs_numba_cuda
from device_twin import grads_of, pair, same, small, there

import fastopt as fo

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
    steps(gpu, opt, twin, params, (BF16, F16, "f4"))
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
