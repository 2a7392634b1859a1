"""Every rule against its textbook oracle and against torch, in every layout, with groups, schedules, maximize, None."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
from conftest import LAYOUTS, RULES, flat, gradient, leaves, params, unflat
from oracles import ORACLES
from twins import TorchTwin

import fastopt as fo

STEPS = 100

# A step rounds p once (half a unit in the last place) and its update a few times. Over 100 steps the errors add up like
# a random walk at best and linearly at worst, and momentum 0.9 stretches each by ten: 100 * 10 * 2**-24 = 6e-5, in
# float64 2**29 times less. The worst element uses a third of it; a wrong formula is off by 1e-2 and more.
TOLERANCE = {"float32": 6e-5, "float64": 6e-5 * 2**-29}


def assert_close(actual: np.ndarray, expected: np.ndarray, dtype: str, case: object = "") -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        actual.astype(float), expected.astype(float), rtol=tolerance, atol=tolerance, err_msg=str(case)
    )


def rate(lr: float):
    """A schedule: warm-up, then cosine to a tenth."""
    return lambda t: lr * min(t / 10, 0.55 + 0.45 * math.cos(math.pi * t / STEPS))


def hyper_of(variant, path: str, t: int) -> dict[str, Any]:
    """What `groups` below says about one parameter at step t, spelled out by hand."""
    hyper = variant.full(lr=rate(variant.hyper["lr"])(t))
    if path.endswith(".bias"):
        return {**hyper, "weight_decay": 0.0}
    if path.startswith("layer."):
        return {**hyper, "lr": 0.5 * variant.hyper["lr"], "weight_decay": 0.01 * t, **variant.other}
    return hyper


def groups(variant) -> list[fo.Group]:
    return [
        fo.Group("*.bias", weight_decay=0.0),
        fo.Group("layer.*", lr=0.5 * variant.hyper["lr"], weight_decay=lambda t: 0.01 * t, **variant.other),
    ]


def reference(variant, tree, dtype: str, missing=lambda path, t: False):
    """The flat parameters after STEPS steps by the float64 oracle and by torch in `dtype`."""
    start = leaves(tree)
    oracles = {path: ORACLES[variant.rule](p) for path, p in start.items()}
    twin = TorchTwin(variant.rule, list(start.values()), [hyper_of(variant, path, 1) for path in start])
    for t in range(1, STEPS + 1):
        grads = leaves(unflat(tree, gradient(t, dtype)))
        for path, g in grads.items():
            if missing(path, t):
                grads[path] = None
            else:
                oracles[path].step(g, **hyper_of(variant, path, t))
        twin.step(list(grads.values()), [hyper_of(variant, path, t) for path in start])
    return np.concatenate([o.p.ravel() for o in oracles.values()]), twin.p


@pytest.mark.parametrize("layout", ["dict", "packed"])
def test_hundred_steps_with_groups_and_schedules(variant, dtype, layout):
    tree = params(dtype)
    oracle, torch = reference(variant, tree, dtype)
    held = LAYOUTS[layout](tree)
    opt = variant.make(held, groups=groups(variant), **{**variant.hyper, "lr": rate(variant.hyper["lr"])})
    for t in range(1, STEPS + 1):
        if layout == "packed" and t % 2:  # both ways of handing over the gradients of a packed tree
            held.grads.flat[:] = unflat_into(held, gradient(t, dtype))
            opt.step()
        else:
            opt.step(unflat(params(dtype), gradient(t, dtype)))
    assert opt.t == STEPS
    assert_close(flat(held), oracle, dtype, "oracle")
    assert_close(flat(held), torch, dtype, "torch")  # it has rounding errors of its own, within the same bound


def unflat_into(packed, numbers):
    """The numbers in the layout of packed.flat, whatever its padding: written through the views of a second pack."""
    twin = fo.pack(unflat(params(numbers.dtype), numbers))
    return twin.flat


def test_every_layout_gives_the_same_bits(variant, dtype):
    results = {}
    for name, layout in LAYOUTS.items():
        held = layout(params(dtype))
        opt = variant.make(held, **variant.hyper)
        for t in range(1, 6):
            opt.step(unflat(held, gradient(t, dtype)))
        results[name] = flat(held).tobytes()
    assert len(set(results.values())) == 1, {k: hash(v) for k, v in results.items()}


def test_maximize_is_the_negated_gradient_bit_for_bit(variant):
    up, down = params(), params()
    opt_up = variant.make(up, maximize=True, **variant.hyper)
    opt_down = variant.make(down, **variant.hyper)
    twin = TorchTwin(variant.rule, list(leaves(up).values()), [variant.full()] * len(leaves(up)), maximize=True)
    for t in range(1, 21):
        opt_up.step(unflat(up, gradient(t)))
        opt_down.step(unflat(down, -gradient(t)))
        twin.step(list(leaves(unflat(up, gradient(t))).values()), [variant.full()] * len(leaves(up)))
    assert flat(up).tobytes() == flat(down).tobytes()
    assert_close(flat(up), twin.p, "float32")


def test_gradients_of_the_other_float_type_are_rounded_to_the_parameters(variant):
    for dtype, other in [("float32", "float64"), ("float64", "float32")]:
        one, two = params(dtype), params(dtype)
        opt_one, opt_two = variant.make(one, **variant.hyper), variant.make(two, **variant.hyper)
        for t in range(1, 11):
            g = gradient(t, other)
            opt_one.step(unflat(one, g))
            opt_two.step(unflat(two, g.astype(dtype)))
        assert flat(one).tobytes() == flat(two).tobytes(), (dtype, other)


def test_mixed_parameter_and_gradient_types_in_one_optimizer(variant):
    """One launch per dtype: each array gets the bits it gets on its own."""
    kinds = [("float32", "float32"), ("float64", "float64"), ("float32", "float64"), ("float64", "float32")] * 2
    held = [flat(params(p, seed=i)) for i, (p, _) in enumerate(kinds)]
    alone = [x.copy() for x in held]
    opt = variant.make(held, **variant.hyper)
    singles = [variant.make(x, **variant.hyper) for x in alone]
    for t in range(1, 6):
        grads = [gradient(t, g) for _, g in kinds]
        opt.step(grads)
        for single, g in zip(singles, grads, strict=True):
            single.step(g)
    assert [x.tobytes() for x in held] == [x.tobytes() for x in alone]


@pytest.mark.parametrize("layout", ["dict", "packed"])
def test_none_skips_the_parameter_its_state_and_its_step_count(variant, layout):
    def missing(path, t):  # one that starts late, one with gaps, one without any
        late, gaps = path == "embed.weight" and t <= 30, path == "layer.0.weight" and t % 3 == 0
        return late or gaps or path == "scale"

    tree = params("float64")
    oracle, torch = reference(variant, tree, "float64", missing)
    held = LAYOUTS[layout](tree)
    opt = variant.make(held, groups=groups(variant), **{**variant.hyper, "lr": rate(variant.hyper["lr"])})
    start = float(held["scale"])
    for t in range(1, STEPS + 1):
        grads = unflat(params("float64"), gradient(t, "float64"))
        before = {k: x.tobytes() for k, x in leaves(held).items()}
        opt.step(prune(grads, t, missing))
        for path, x in leaves(held).items():
            if missing(path, t):
                assert x.tobytes() == before[path], path
    assert float(held["scale"]) == start
    assert opt.t == STEPS
    assert_close(flat(held), oracle, "float64", "oracle")
    assert_close(flat(held), torch, "float64", "torch")


def prune(tree, t, missing, path=""):
    if isinstance(tree, dict):
        return {k: prune(v, t, missing, f"{path}.{k}" if path else k) for k, v in tree.items()}
    return None if missing(path, t) else tree


def test_the_formula_itself_is_the_paper(variant):
    """`rule.formula` is an ordinary function: stepped by hand on float64 arrays it is the oracle."""
    rule = variant.make
    p = flat(params("float64"))
    oracle = ORACLES[variant.rule](p)
    start = variant.hyper.get("initial_accumulator_value", 0.0)
    state = [np.full_like(p, start) for _ in rule.state]
    takes_t = "t" in inspect.signature(rule.formula).parameters
    for t in range(1, 11):
        result = rule.formula(p, gradient(t, "float64"), *state, **variant.full(), **({"t": t} if takes_t else {}))
        p, *state = result if isinstance(result, tuple) else (result,)
        state = [np.broadcast_to(s, p.shape) for s in state]
        assert_close(p, oracle.step(gradient(t, "float64"), **variant.full()), "float64", t)


@pytest.mark.parametrize("rule", sorted(TorchTwin.NAMES))
def test_defaults_are_torchs(rule):
    import torch

    theirs = {
        k: v.default for k, v in inspect.signature(getattr(torch.optim, TorchTwin.NAMES[rule])).parameters.items()
    }
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs.pop("betas")
    ours = dict(getattr(fo, rule).hyper)
    assert ours == {k: theirs[k] for k in ours}


def test_lion_defaults_are_the_papers():
    assert dict(fo.lion.hyper) == dict(lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0)


def test_the_registry_covers_the_catalogue():
    from fastopt.rules import CATALOGUE

    assert set(CATALOGUE) >= set(ORACLES)
    assert {v.rule for v in RULES} == set(ORACLES)
    assert all(CATALOGUE[name] is getattr(fo, name) and CATALOGUE[name].name == name for name in CATALOGUE)


# which state each variant needs, in the letters of the formula: anything more is a dead buffer
STATE = {
    "sgd": "",
    "sgd-momentum": "b",
    "sgd-momentum-dampening": "b",
    "sgd-momentum-nesterov": "b",
    "adagrad": "s",
    "rmsprop": "v",
    "rmsprop-momentum": "v b",
    "rmsprop-centered": "v ga",
    "rmsprop-momentum-centered": "v ga b",
    "adam": "m v",
    "adam-amsgrad": "m v vmax",
    "adamw": "m v",
    "adamw-amsgrad": "m v vmax",
    "lion": "m",
}


def test_state_is_what_the_oracle_holds_and_nothing_more(variant, dtype):
    p = flat(params(dtype))
    oracle = ORACLES[variant.rule](p)
    opt = variant.make(p, **variant.hyper)
    peak = dict.fromkeys(STATE[str(variant)].split(), 0.0)
    for t in range(1, 11):
        opt.step(gradient(t, dtype))
        oracle.step(gradient(t, dtype), **variant.full())
        peak = {name: np.maximum(high, np.abs(getattr(oracle, name))) for name, high in peak.items()}
    held = {name: x for name, x in opt.state.items() if x is not None}
    assert set(held) == set(STATE[str(variant)].split())
    for name, x in held.items():
        assert x.dtype == p.dtype and x.shape == p.shape
        # relative to the largest value each element has had: moments are sums, in which terms may cancel
        assert np.all(np.abs(x - getattr(oracle, name)) <= TOLERANCE[dtype] * peak[name]), name


def test_schedule_of_a_truth_tested_hyperparameter():
    """Momentum cycling (one-cycle): `momentum` decides whether there is a buffer, and is still a number of its own."""
    momentum = rate(0.9)
    p = flat(params("float64"))
    oracle = ORACLES["sgd"](p)
    opt = fo.sgd(p, lr=0.01, momentum=momentum, weight_decay=0.1)
    for t in range(1, 21):
        opt.step(gradient(t, "float64"))
        hyper = dict(lr=0.01, momentum=momentum(t), weight_decay=0.1, dampening=0.0, nesterov=False)
        oracle.step(gradient(t, "float64"), **hyper)
    assert_close(p, oracle.p, "float64")


def test_set_between_steps_is_the_hyperparameter_of_the_next_step(variant):
    p = flat(params("float64"))
    oracle = ORACLES[variant.rule](p)
    opt = variant.make(p, **variant.hyper)
    for t in range(1, 21):
        new = dict(lr=0.01 / t, weight_decay=0.0 if t % 2 else 0.2)
        opt.set(**new)
        assert {k: opt.hyper()[k] for k in new} == new
        opt.step(gradient(t, "float64"))
        oracle.step(gradient(t, "float64"), **variant.full(**new))
    assert_close(p, oracle.p, "float64")


def test_resume_from_state_dict_is_bit_equal_to_uninterrupted(variant, dtype):
    tree = params(dtype)
    options = dict(groups=groups(variant), **{**variant.hyper, "lr": rate(variant.hyper["lr"])})
    opt = variant.make(tree, **options)
    for t in range(1, 21):
        if t == 11:
            saved, frozen = opt.state_dict(), unflat(tree, flat(tree))
        opt.step(prune(unflat(tree, gradient(t, dtype)), t, lambda path, t: path == "layer.0.bias" and t % 3 == 0))
    again = variant.make(frozen, **options)
    again.load_state_dict(saved)
    assert again.t == 10
    for t in range(11, 21):
        again.step(prune(unflat(tree, gradient(t, dtype)), t, lambda path, t: path == "layer.0.bias" and t % 3 == 0))
    assert flat(frozen).tobytes() == flat(tree).tobytes()
    assert all(flat(opt.state[s]).tobytes() == flat(again.state[s]).tobytes() for s in opt.state)


def test_zero_learning_rate_moves_the_state_only(variant):
    p = flat(params())
    before = p.copy()
    opt = variant.make(p, **{**variant.hyper, "lr": 0.0})
    opt.step(gradient(1))
    assert p.tobytes() == before.tobytes() and opt.t == 1
    assert all(np.any(x) for x in opt.state.values() if x is not None)


def test_a_bad_number_stays_in_its_own_element(variant):
    """NaN, infinity, and a finite gradient whose square overflows: as in torch, and no neighbour is touched."""
    bad = {3: np.nan, 100: np.inf, 500: -np.inf, 900: 3e19}
    if variant.rule == "lion":
        bad = {100: np.inf, 900: 3e19}  # sign(nan) is 0 in torch, which hides it; nan in NumPy and here
    p, clean = flat(params()), flat(params())
    twin = TorchTwin(variant.rule, [p], [variant.full()])
    opt, opt_clean = variant.make(p, **variant.hyper), variant.make(clean, **variant.hyper)
    for t in range(1, 4):
        g = gradient(t)
        opt_clean.step(g)
        if t == 2:
            g[list(bad)] = list(bad.values())
        opt.step(g)
        twin.step([g], [variant.full()])
    others = np.setdiff1d(np.arange(p.size), list(bad))
    assert p[others].tobytes() == clean[others].tobytes()
    np.testing.assert_array_equal(np.isnan(p[list(bad)]), np.isnan(twin.p[list(bad)]))
    np.testing.assert_allclose(p[list(bad)], twin.p[list(bad)], rtol=1e-5)  # a few roundings, three steps


def test_state_never_stays_subnormal(variant, dtype):
    """Tiny gradients, then zeros: moments decay through the subnormal range, which is 2 to 100 times slower."""
    tiny = np.finfo(dtype).tiny
    p = np.full(1000, 0.5, dtype)
    opt = variant.make(p, **{**variant.hyper, "weight_decay": 0.0})
    opt.step((np.sqrt(tiny) * np.logspace(-22, 8, 1000)).astype(dtype))  # both g and g*g pass through the range
    for _ in range(150):
        opt.step(np.zeros(1000, dtype))
        for name, x in opt.state.items():
            assert x is None or not np.any((x != 0) & (np.abs(x) < tiny)), name
