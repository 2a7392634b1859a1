"""The same optimizer on the host and on the fake device, and what must be equal then."""

import numpy as np


def there(gpu, tree, **told):
    """A dict of arrays on the device."""
    return {k: None if x is None else gpu.array(x, **told) for k, x in tree.items()}


def numbers(tree):
    return {k: x.get() if hasattr(x, "get") else x.copy_to_host() for k, x in tree.items() if x is not None}


def pair(gpu, rule, params, dtype=None, **options):
    """The same optimizer on the host and on the device, without fused multiply-add."""
    away = there(gpu, params)
    return rule(params, **options), rule(away, precise=True, **options), away


def same(opt, twin, rtol=0.0):
    twin._place.driver.synchronize(0)
    for name in opt.names:
        both = [(opt.params[name], twin.params[name].get())]
        both += [(opt.state[s][name], twin.state[s][name]) for s in opt.state if opt.state[s][name] is not None]
        for a, b in both:
            b = b if isinstance(b, np.ndarray) else b.copy_to_host()
            assert a.dtype == b.dtype and a.shape == b.shape
            if rtol:
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
            else:
                assert a.tobytes() == b.tobytes(), name
    assert opt.state_dict()["steps"] == twin.state_dict()["steps"] and opt.t == twin.t


def grads_of(params, t, dtype=None):
    rng = np.random.default_rng([t, 7])
    return {k: rng.standard_normal(x.shape).astype(dtype or x.dtype) for k, x in params.items()}


def small(dtypes=("f4", "f4", "f4")):
    rng = np.random.default_rng(3)
    shapes = {"w": (9, 5), "b": (7,), "scale": ()}
    return {k: rng.standard_normal(s).astype(d) for (k, s), d in zip(shapes.items(), dtypes, strict=True)}
