"""Every rule of the catalogue: against its oracle on three problems, in every layout, with groups."""

from collections import Counter

import numpy as np
import pytest
from catalogue import Case, cases
from conftest import leaves

import fastopt as fo
from fastopt import scratch
from fastopt.rules import CATALOGUE
from fastopt.rules.readings import READINGS
from fastopt.targets import cpu

CASES = cases()
STEPS = 200


@pytest.fixture(params=CASES, ids=str)
def case(request) -> Case:
    return request.param


def problems(matrix: bool):
    """name -> (start, gradient of (p, t)): quadratics of several shapes, Rosenbrock, noisy logistic regression."""
    rng = np.random.default_rng(7)
    shapes = {"quadratic": (6, 5)} | ({} if matrix else {"filters": (3, 5, 2), "vector": (7,), "scalar": ()})
    found = {}
    for name, shape in shapes.items():
        target, curve = rng.normal(size=shape), np.logspace(-2, 1, int(np.prod(shape))).reshape(shape)
        found[name] = (rng.normal(size=shape), lambda p, t, target=target, curve=curve: curve * (p - target))
    found["rosenbrock"] = (rng.normal(size=(4, 6)), lambda p, t: 0.01 * rosenbrock(p.ravel()).reshape(p.shape))
    x, y = rng.normal(size=(64, 8)), rng.integers(0, 3, 64)

    def logistic(p, t):
        batch = np.random.default_rng([t, 5]).integers(0, 64, 16)
        z = np.exp(x[batch] @ p)
        z /= z.sum(1, keepdims=True)
        z[np.arange(16), y[batch]] -= 1
        return x[batch].T @ z / 16

    found["logistic"] = (0.1 * rng.normal(size=(8, 3)), logistic)
    return found


def rosenbrock(x):
    """The gradient of the sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2."""
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    g[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return g


def run(case: Case, steps: int):
    """The starts, the gradients of every step (float32 numbers, at the oracle's parameters), the oracle's end."""
    made = problems(case.matrix)
    start = {n: p.astype(np.float32).astype(np.float64) for n, (p, _) in made.items()}
    if case.whole:
        joint = case.oracle(np.concatenate([p.ravel() for p in start.values()]))
        ends = np.cumsum([0, *(p.size for p in start.values())])
        cuts = {n: slice(i, j) for n, i, j in zip(start, ends, ends[1:], strict=False)}
        now = {n: lambda n=n: joint.p[cuts[n]].reshape(start[n].shape) for n in start}
    else:
        oracles = {n: case.oracle(p) for n, p in start.items()}
        now = {n: lambda n=n: oracles[n].p for n in start}
    history = []
    for t in range(1, steps + 1):
        grads = {n: np.asarray(g(now[n](), t), np.float32).reshape(start[n].shape) for n, (_, g) in made.items()}
        history.append(grads)
        if case.whole:
            joint.step(np.concatenate([g.ravel() for g in grads.values()]), **case.full())
        else:
            for n, oracle in oracles.items():
                oracle.step(grads[n], **case.full(**(case.other if n == "logistic" else {})))
    return start, history, {n: now[n]().copy() for n in start}


def build(case: Case, start, dtype, layout=lambda tree: tree):
    held = layout({n: p.astype(dtype) for n, p in start.items()})
    groups = [] if case.whole else [fo.Group("logistic", **case.other)]
    return held, case.make(held, groups=groups, **case.hyper)


def steps(opt, history, dtype):
    for grads in history:
        opt.step({n: g.astype(dtype) for n, g in grads.items()})


def test_two_hundred_steps_equal_the_oracle(case):
    start, history, expected = run(case, STEPS)
    for n, p in expected.items():
        assert np.isfinite(p).all() and np.abs(p).max() < 1e3, f"{n}: choose hyperparameters with which it converges"
        assert np.abs(p - start[n]).max() > 1e-3, f"{n} hardly moves: the comparison would prove nothing"
    # float64 rounds 2**29 times finer than float32, so a formula that differs at all shows there; in float32 roundings
    # of 200 steps add up, momentum stretches each by ten, and where g + weight_decay * p nearly cancels, the division
    # by the root of its square brings the rounding of the two to the front
    for dtype, bound in ("float64", 1e-10), ("float32", case.float32):
        held, opt = build(case, start, dtype)
        steps(opt, history, dtype)
        for n, p in expected.items():
            scale = max(1.0, np.abs(p).max())
            np.testing.assert_allclose(held[n], p, rtol=0, atol=bound * scale, err_msg=f"{n}, {dtype}")


def test_layouts_and_chunks_do_not_matter(case, monkeypatch):
    start, history, _ = run(case, 5)
    loose, opt = build(case, start, "float32")
    steps(opt, history, "float32")
    packed, opt = build(case, start, "float32", fo.pack)
    steps(opt, history, "float32")
    monkeypatch.setattr(scratch, "CHUNK", 11)
    split, opt = build(case, start, "float32")
    steps(opt, history, "float32")
    summed = any(q.totals for s in opt._segments for q in s.lowered.passes)
    for n, p in leaves(loose).items():
        assert p.tobytes() == packed[n].tobytes(), n
        if summed:  # the order of additions is that of the chunks
            np.testing.assert_allclose(split[n], p, rtol=1e-5, atol=1e-6, err_msg=n)
        else:
            assert p.tobytes() == split[n].tobytes(), n


def test_ascent_is_descent_on_the_negated_gradient(case):
    start, history, _ = run(case, 5)
    (down, opt), (up, twin) = build(case, start, "float32"), build(case, start, "float32")
    negated = [{n: -g for n, g in grads.items()} for grads in history]
    steps(opt, negated, "float32")
    groups = [] if case.whole else [fo.Group("logistic", **case.other)]
    twin = case.make(up, groups=groups, maximize=True, **case.hyper)
    steps(twin, history, "float32")
    assert [p.tobytes() for p in down.values()] == [p.tobytes() for p in up.values()]


def test_a_loaded_state_goes_on_with_the_same_bits(case):
    start, history, _ = run(case, 6)
    held, opt = build(case, start, "float32")
    steps(opt, history[:3], "float32")
    copies = {n: p.astype(np.float64) for n, p in held.items()}
    other, twin = build(case, copies, "float32")
    twin.load_state_dict(opt.state_dict())
    compiled = cpu.kernels.cache_info().misses
    steps(opt, history[3:], "float32")
    steps(twin, history[3:], "float32")
    assert [p.tobytes() for p in held.values()] == [p.tobytes() for p in other.values()]
    assert cpu.kernels.cache_info().misses == compiled, "one compile per rule and dtype"


def test_every_rule_has_a_case_and_no_case_is_given_twice():
    assert {*CATALOGUE, *READINGS} <= {case.make.name for case in CASES}
    assert max(Counter((case.rule, repr(case.hyper)) for case in CASES).values()) == 1
