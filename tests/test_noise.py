"""Random numbers in formulas: their distribution, and that they depend on nothing but seed, step, path and index."""

import numpy as np
import pytest
from conftest import gradient, leaves, params, unflat
from scipy import special, stats

import fastopt as fo
from fastopt import scratch
from fastopt.math import normal


@fo.rule
def draw(p, g, *, lr=1.0, seed=0):
    """Leaves standard normal numbers in p."""
    return lr * normal(p, seed) + 0 * (p + g)


@fo.rule
def two_draws(p, g, *, seed=0, other=0):
    return normal(p, seed) - normal(p, other) + 0 * (p + g)


N = 1 << 21


def drawn(steps=1, n=N, dtype="float32", **hyper):
    p = np.zeros(n, dtype)
    opt = draw(p, **hyper)
    found = []
    for _ in range(steps):
        opt.step(np.zeros(n, dtype))
        found.append(p.copy())
    return found


def test_numbers_are_normal_and_independent():
    a, b = drawn(2)
    (c,) = drawn(1, seed=1)
    for x in (a, b, c):
        wide = x.astype(float)
        # five standard errors: sqrt(k / N) with k = 1, 2, 6, 24 for the first four moments
        assert abs(wide.mean()) < 5 * np.sqrt(1 / N)
        assert abs(wide.var() - 1) < 5 * np.sqrt(2 / N)
        assert abs(stats.skew(wide)) < 5 * np.sqrt(6 / N)
        assert abs(stats.kurtosis(wide)) < 5 * np.sqrt(24 / N)
        assert stats.kstest(wide, "norm").pvalue > 1e-4
        for lag in (1, 2, 3, 64, 1024):
            assert abs(np.corrcoef(wide[lag:], wide[:-lag])[0, 1]) < 5 / np.sqrt(N)
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(N)
        assert abs(np.corrcoef(np.abs(x), np.abs(y))[0, 1]) < 5 / np.sqrt(N)


def test_quantiles_are_those_of_the_error_function():
    (x,) = drawn()
    u = special.erf(x.astype(float) / np.sqrt(2))  # where the numbers came from: odd multiples of 2**-23 after - 1
    nearest = (np.round((u * 2**23 - 1) / 2) * 2 + 1) / 2**23
    inner = np.abs(x) < 3  # further out neighbouring odd multiples are no longer told apart
    np.testing.assert_allclose(x[inner], special.erfinv(nearest[inner]) * np.sqrt(2), atol=2e-6, rtol=0)
    assert 4.5 < np.abs(x).max() < 5.31


def test_streams_of_a_step_differ():
    p = np.zeros(N // 8, np.float32)
    two_draws(p).step(np.zeros_like(p))
    assert abs(p.var() - 2) < 0.05, "two calls with one seed are two numbers"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layout_threads_and_chunks_do_not_matter(dtype, monkeypatch):
    results = []
    try:
        for n, chunk, layout in (1, 1 << 14, dict), (2, 1 << 14, fo.pack), (1, 13, dict):
            fo.set_num_threads(n)
            monkeypatch.setattr(scratch, "CHUNK", chunk)
            held = layout(params(dtype))
            opt = fo.sgld(held, lr=0.1, seed=3)
            for t in range(1, 4):
                opt.step(unflat(params(dtype), gradient(t, dtype)))
            results.append({n: x.tobytes() for n, x in leaves(held).items()})
    finally:
        fo.set_num_threads(None)
    assert results[0] == results[1] == results[2]
    reordered = dict(reversed(params(dtype).items()))
    opt = fo.sgld(reordered, lr=0.1, seed=3)
    for t in range(1, 4):
        grads = unflat(params(dtype), gradient(t, dtype))
        opt.step({k: grads[k] for k in reordered})
    assert {n: x.tobytes() for n, x in leaves(reordered).items()} == results[0], "paths count, not positions"


def test_a_large_parameter_has_the_same_numbers_on_all_threads():
    results = []
    try:
        for n in (1, 2):
            fo.set_num_threads(n)
            results.append(drawn(1, n=1 << 21)[0].tobytes())
    finally:
        fo.set_num_threads(None)
    assert results[0] == results[1]


def test_noise_goes_on_after_a_resume():
    a, b = params(), params()
    one, two = fo.sgld(a, lr=0.1), fo.sgld(b, lr=0.1)
    for t in (1, 2):
        one.step(unflat(a, gradient(t)))
    for n, x in leaves(b).items():
        x[...] = leaves(a)[n]
    two.load_state_dict(one.state_dict())
    for opt, held in ((one, a), (two, b)):
        opt.step(unflat(held, gradient(3)))
    assert [x.tobytes() for x in leaves(a).values()] == [x.tobytes() for x in leaves(b).values()]


def test_langevin_dynamics_samples_the_density():
    # the density exp(-x^2 / (2 s^2)) for s = 0.5 and 2; lr is small enough that its bias, lr / (4 s^2), stays below 1 %
    s = np.repeat([0.5, 2.0], 50_000).astype(np.float32)
    p = np.zeros_like(s)
    opt = fo.sgld(p, lr=0.01, seed=5)
    for _ in range(3000):
        opt.step(p / s**2)
    for width, x in (0.5, p[:50_000]), (2.0, p[50_000:]):
        assert abs(x.mean()) < 5 * width / np.sqrt(50_000)
        assert abs(x.std() / width - 1) < 0.02


def test_seed_and_temperature_are_checked():
    for seed in (-1, 0.5, 2**24, float("nan")):
        with pytest.raises(fo.ConfigError, match=r"`seed` is .*; expected an integer in \[0, 16777215\]"):
            fo.sgld(np.zeros(3), seed=seed)
    with pytest.raises(fo.ConfigError, match="`temperature` is -1"):
        fo.sgld(np.zeros(3), temperature=-1)
    with pytest.raises(fo.RuleError, match=r"expected normal\(p, seed\), the seed a hyperparameter"):
        fo.rule("def bad(p, g, *, lr, seed=0):\n    return p - lr * normal(lr, seed)")
    with pytest.raises(fo.RuleError, match=r"expected normal\(p, seed\)"):
        fo.rule("def bad(p, g, *, lr, seed=0):\n    return p - lr * normal(p, g) + seed")


def test_called_as_a_function_normal_gives_numbers_of_the_shape_and_dtype():
    x = normal(np.zeros((3, 4), np.float32), 7)
    assert x.shape == (3, 4) and x.dtype == np.float32
    assert isinstance(normal(0.0, 7), float)
    np.testing.assert_array_equal(x, normal(np.zeros((3, 4), np.float32), 7))
