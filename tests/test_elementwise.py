"""What single rules promise beyond their formulas: estimates from outside, starts that are kept, zeros, averages."""

import numpy as np
import pytest
from oracles_elementwise import Sophia

import fastopt as fo


@pytest.mark.parametrize("pack", [False, True])
def test_sophia_takes_estimates_of_the_hessian_between_steps(pack):
    rng = np.random.default_rng(0)
    curve = {"w": np.logspace(-2, 2, 12).reshape(3, 4), "b": np.array([1.0, -0.5])}  # one direction curves down
    start = {n: rng.normal(size=c.shape) for n, c in curve.items()}
    held = {n: p.copy() for n, p in start.items()}
    held = fo.pack(held) if pack else held
    opt = fo.sophia(held, lr=0.05, beta1=0.0, gamma=0.05, weight_decay=0.0)
    oracles = {n: Sophia(p) for n, p in start.items()}
    for t in range(1, 201):
        if t % 10 == 1:
            for n, oracle in oracles.items():
                estimate = curve[n] * rng.normal(1, 0.1, curve[n].shape)
                h = opt.state["h"][n]
                h += (1 - 0.9) * (estimate - h)
                oracle.h = oracle.h + (1 - 0.9) * (estimate - oracle.h)
        opt.step({n: curve[n] * held[n] for n in curve})
        for n, oracle in oracles.items():
            oracle.step(curve[n] * oracle.p, lr=0.05, beta1=0.0, gamma=0.05, eps=1e-12, weight_decay=0.0)
            np.testing.assert_allclose(held[n], oracle.p, rtol=0, atol=1e-10)  # 200 steps of float64
    assert np.abs(held["w"]).max() < 1e-3 < np.abs(start["w"]).min()  # one rate for curvatures 1e-2 to 1e2
    assert abs(held["b"][1]) > abs(start["b"][1])  # away from a maximum, by signs


def test_ftrl_keeps_where_it_starts_and_a_coordinate_without_gradient_stays():
    start = np.linspace(-2, 2, 9)
    p = start.copy()
    opt = fo.ftrl(p, lr=0.1)
    g = np.zeros(9)
    for _ in range(3):
        opt.step(g)
    np.testing.assert_allclose(p, start, rtol=1e-15)
    g[4] = 1.0
    opt.step(g)
    assert p[4] == pytest.approx(-0.1 / 2, rel=1e-12)  # lr / (beta + |g|)


def test_ftrl_learns_a_sparse_model_online_with_exact_zeros():
    rng = np.random.default_rng(1)
    truth = np.zeros(40)
    truth[:5] = [3, -2, 2, -3, 2]
    w = np.zeros(40, np.float32)
    opt = fo.ftrl(w, lr=0.3, l1=10.0)
    for _ in range(2000):
        x = rng.normal(size=40)
        y = rng.random() < 1 / (1 + np.exp(-x @ truth))
        opt.step((1 / (1 + np.exp(-x @ w)) - y) * x)
    assert np.count_nonzero(w[5:]) < 20 and np.all(np.sign(w[:5]) == np.sign(truth[:5]))
    with pytest.raises(fo.ConfigError, match=r"`lr` is 0\.0; expected a finite number >= 1e-12"):
        fo.ftrl(w, lr=0.0)


def test_asgd_averages_after_t0():
    rng = np.random.default_rng(2)
    p = rng.normal(size=7)
    opt = fo.asgd(p, lr=0.05, t0=10)
    seen = []
    for t in range(1, 31):
        opt.step(rng.normal(size=7) + p)
        if t <= 11:
            np.testing.assert_array_equal(opt.state["ax"], p)
        seen.append(p.copy())
    # the 12th step brings in weight 1 / 1, too: torch's mu lags a step
    np.testing.assert_allclose(opt.state["ax"], np.mean(seen[11:], axis=0), rtol=1e-12)


def test_ademamix_warms_up_as_schedules_of_alpha_and_beta3_would():
    one, two, total = np.ones(5), np.ones(5), 40

    def beta3(t):
        s = min(t / total, 1)
        a, b = np.log(0.9), np.log(0.999)
        return min(float(np.exp(a * b / ((1 - s) * b + s * a))), 0.999)

    warm = fo.ademamix(one, beta3=0.999, alpha=8.0, warmup=total, lr=0.1)
    plain = fo.ademamix(two, beta3=beta3, alpha=lambda t: 8.0 * min(t / total, 1), lr=0.1)
    for t in range(60):
        g = np.cos(np.arange(5) + t)
        warm.step(g)
        plain.step(g)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)  # exp and log in another order


def test_nadams_product_is_one_float64_number_also_for_float32_parameters():
    p = np.ones((3, 4), np.float32)
    opt = fo.nadam(p)
    mus = []
    for t in range(1, 301):
        opt.step(np.ones_like(p))
        mus.append(0.9 * (1 - 0.5 * 0.96 ** (t * 4e-3)))
    product = opt.state["product"]
    assert product.shape == () and product.dtype == np.float64
    assert float(product) == pytest.approx(np.prod(mus), rel=300 * 2**-24)  # each mu is a float32 column
