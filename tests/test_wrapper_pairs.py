"""All pairs of wrappers, in both orders, on three rules: the compiler's passes against unfused operations.

The passes are executed by NumPy, so nothing is compiled; what a kernel makes of them is compiled for each wrapper once.
"""

import itertools

import numpy as np
import pytest
from layers import LAYERS, unfused
from numpy_target import Machine

import fastopt as fo

RULES = {
    "momentum": (fo.sgd, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)),
    "adamw": (fo.adamw, dict(lr=0.1, weight_decay=0.1)),
    "lamb": (fo.lamb, dict(lr=0.1, weight_decay=0.1)),  # with totals of its own
}


def drawn(steps=4):
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 9)), [rng.normal(size=(6, 9)) for _ in range(steps)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("outer", LAYERS)
def test_pairs_do_what_the_operations_do_one_after_another(outer, name):
    (rule, hyper), (p, gradients) = RULES[name], drawn()
    for inner in LAYERS:
        wrapped = LAYERS[outer][0](LAYERS[inner][0](rule))
        machine = Machine(wrapped, p.copy(), **hyper)
        for g in gradients:
            machine.step(g)
        expected = unfused(rule, hyper, [LAYERS[outer][1](), LAYERS[inner][1]()], p, gradients)
        np.testing.assert_allclose(machine.buffers["p"], expected, rtol=1e-11, atol=1e-12, err_msg=wrapped.name)


@pytest.mark.parametrize("outer", LAYERS)
def test_the_kernels_of_a_wrapper_do_what_its_passes_say(outer):
    """In float64; three of them at once, with one that follows in the table, on the rule with totals and momentum."""
    inner = dict(zip(LAYERS, [*list(LAYERS)[1:], next(iter(LAYERS))], strict=True))[outer]
    rule, hyper = RULES["momentum"]
    p, gradients = drawn()
    opt = LAYERS[outer][0](LAYERS[inner][0](rule))(q := p.copy(), **hyper)
    machine = Machine(opt.rule, p.copy(), **hyper)
    for g in gradients:
        opt.step(g)
        machine.step(g)
    np.testing.assert_allclose(q, machine.buffers["p"], rtol=1e-12, atol=1e-12)
    for name, array in opt.state.items():
        np.testing.assert_allclose(array, machine.buffers[name], rtol=1e-12, atol=1e-12)


def test_averages_against_their_definitions():
    p, gradients = drawn(steps=9)
    averaged = {
        "ema": fo.ema(fo.sgd, 0.9, every=2),
        "warm": fo.ema(fo.sgd, 0.999, warmup=True),
        "swa": fo.swa(fo.sgd, start=3, every=2),
        "swa from the start": fo.swa(fo.sgd),
        "polyak": fo.polyak_average(fo.sgd),
        "late": fo.polyak_average(fo.sgd, gamma=3),
    }
    machines = {name: Machine(rule, p.copy(), lr=0.1) for name, rule in averaged.items()}
    iterates = [p]
    for g in gradients:
        iterates.append(iterates[-1] - 0.1 * g)
        for machine in machines.values():
            machine.step(g)
    expected = {"swa": np.mean([iterates[k] for k in (3, 5, 7, 9)], axis=0)}
    expected["swa from the start"] = np.mean(iterates, axis=0)
    expected["polyak"] = np.mean(iterates[1:], axis=0)
    e = iterates[1]
    for t in (2, 4, 6, 8):
        e = 0.9 * e + 0.1 * iterates[t]
    expected["ema"] = e
    e = late = iterates[1]
    for t in range(2, 10):
        d = min(0.999, (1 + t) / (10 + t))
        e, late = d * e + (1 - d) * iterates[t], late + 4 / (3 + t) * (iterates[t] - late)
    expected["warm"], expected["late"] = e, late
    for name, machine in machines.items():
        np.testing.assert_allclose(machine.buffers["e"], expected[name], rtol=1e-12, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(machine.buffers["p"], iterates[-1], rtol=1e-12)


def test_langevin_is_sgld_around_gradient_descent():
    p, gradients = drawn()
    a, b = p.copy(), p.copy()
    one, other = fo.langevin(fo.sgd, temperature=0.5, seed=7)(a, lr=0.1), fo.sgld(b, lr=0.1, temperature=0.5, seed=7)
    for g in gradients:
        one.step(g)
        other.step(g)
    np.testing.assert_allclose(a, b, rtol=1e-13)


def test_a_wrapper_that_takes_lr_takes_that_of_the_rule():
    p = np.ones(4)
    opt = fo.decoupled_decay(fo.sgd, 0.5)(p, lr=lambda t: 0.1 * t)
    for _ in range(2):
        opt.step(np.zeros(4))
    np.testing.assert_allclose(p, (1 - 0.05) * (1 - 0.1))
    assert "decoupled_decay_lr" not in opt.rule.schema
    bare = fo.rule("def bare(p, g, *, rate):\n    return p - rate * g")
    with pytest.raises(fo.ConfigError, match="takes the `lr` of its rule, and `bare` has none"):
        fo.decoupled_decay(bare)


def test_every_wrapper_is_among_the_layers():
    import fastopt.wrappers as wrappers

    assert {*wrappers.__all__} - {"noisy", "langevin"} == {n for n in LAYERS} - {"by_rms"}
    assert len(list(itertools.permutations(LAYERS, 2))) == 380
