"""Small problems with known answers, for the tests of the optimisation process."""

import numpy as np

A = np.array([[3.0, 1.0], [1.0, 2.0]])


def bowl(w):
    """(w - 1) A (w - 1) / 2, minimum 0 at (1, 1)."""
    d = w - 1
    return 0.5 * d @ A @ d, A @ d


def regression(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.01 * rng.standard_normal(n)


def squares(params, x, y):
    r = x @ params["w"] + params["b"] - y
    return float(r @ r / len(y) / 2), {"w": x.T @ r / len(y), "b": np.array([r.mean()])}


def line():
    return {"w": np.zeros(3), "b": np.zeros(1)}
