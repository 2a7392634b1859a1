"""Rules against the libraries that have them, in float64: every rule whose formula some library shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from libraries import Keras, Optax, Torch, need, timm

import fastopt as fo

STEPS = 100


@dataclass(frozen=True)
class Pair:
    """A rule with settings, and the class of a library with the same ones in its own words.

    Args:
        scheduled: is lr changed half-way?
        zero: do parameters start at 0?
        bound: relative to the largest element. 100 float64 steps round to 1e-14 or so, a wrong formula is off by 1e-3.
    """

    rule: str
    library: str
    find: Callable[[], Callable[..., Any]]
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    kind: type = Torch
    scheduled: bool = True
    zero: bool = False
    bound: float = 1e-11

    def __str__(self) -> str:
        return f"{self.rule}-{self.library}"


def of_torch(rule: str, name: str, *, names: Mapping[str, str] | None = None, **hyper: Any) -> Pair:
    """torch.optim has our names, `names` apart."""
    theirs = {(names or {}).get(k, k): v for k, v in hyper.items() if k not in ("beta1", "beta2")}
    if "beta1" in hyper:
        theirs["betas"] = hyper["beta1"], hyper["beta2"]
    return Pair(rule, "torch", lambda: getattr(need("torch").optim, name), hyper, theirs | {"foreach": False})


def of_timm(rule: str, module: str, name: str, ours: Mapping, theirs: Mapping, **more: Any) -> Pair:
    return Pair(rule, "timm", lambda: getattr(timm(module), name), ours, theirs, **more)


def of_kozistr(rule: str, name: str, ours: Mapping, theirs: Mapping, **more: Any) -> Pair:
    return Pair(rule, "pytorch_optimizer", lambda: getattr(need("pytorch_optimizer"), name), ours, theirs, **more)


def of_optax(rule: str, find: Callable[[Any], Any], ours: Mapping, theirs: Mapping, **more: Any) -> Pair:
    return Pair(rule, "optax", lambda: find(need("optax")), ours, theirs, Optax, scheduled=False, **more)


ADAM = dict(lr=0.02, beta1=0.8, beta2=0.98)
BETAS = dict(lr=0.02, betas=(0.8, 0.98))
JAX = dict(learning_rate=0.02, b1=0.8, b2=0.98)

PAIRS = [
    of_torch("adadelta", "Adadelta", lr=0.7, rho=0.8, eps=1e-4, weight_decay=0.1),
    of_torch("adamax", "Adamax", **ADAM, eps=1e-3, weight_decay=0.1),
    of_torch("nadam", "NAdam", **ADAM, eps=1e-3, weight_decay=0.1, momentum_decay=0.03),
    of_torch("nadam", "NAdam", **ADAM, weight_decay=0.1, decoupled_weight_decay=True),
    of_torch("radam", "RAdam", **ADAM, eps=1e-3, weight_decay=0.1),
    of_torch("radam", "RAdam", **ADAM, weight_decay=0.1, decoupled_weight_decay=True),
    of_torch("asgd", "ASGD", lr=0.02, lambd=0.01, alpha=0.6, t0=30, weight_decay=0.1),
    Pair(
        "rprop",
        "torch",
        lambda: need("torch").optim.Rprop,
        dict(lr=0.02, eta_minus=0.6, eta_plus=1.3, delta_min=1e-3, delta_max=0.5),
        dict(lr=0.02, etas=(0.6, 1.3), step_sizes=(1e-3, 0.5), foreach=False),
    ),
    of_optax("signsgd", lambda o: o.sign_sgd, dict(lr=0.02), dict(learning_rate=0.02)),
    of_optax(
        "madgrad",
        lambda o: o.contrib.madgrad,
        dict(lr=0.02 + 1e-9, momentum=0.8, eps=1e-9, weight_decay=0.01),  # eps is added to lr there
        dict(learning_rate=0.02, momentum=0.8, eps=1e-9, weight_decay=0.01),
        bound=1e-6,  # the root of the step is float32 there
    ),
    of_optax("adamax", lambda o: o.adamax, dict(**ADAM, eps=1e-2), dict(**JAX, eps=1e-2)),
    of_timm(
        "adabelief",
        "adabelief",
        "AdaBelief",
        dict(**ADAM, eps=1e-5, weight_decay=0.1),
        dict(**BETAS, eps=1e-5, weight_decay=0.1, rectify=False),
    ),
    of_optax("adabelief", lambda o: o.adabelief, dict(**ADAM, eps=1e-5), dict(**JAX, eps=1e-5, eps_root=1e-5)),
    of_optax("yogi", lambda o: o.yogi, dict(**ADAM, eps=1e-2), dict(**JAX, eps=1e-2)),
    of_optax("adopt", lambda o: o.contrib.adopt, dict(**ADAM, eps=1e-3), dict(**JAX, eps=1e-3)),
    of_timm(
        "adopt",
        "adopt",
        "Adopt",
        dict(**ADAM, eps=1e-3, clip_exp=0.333, weight_decay=0.1),
        dict(**BETAS, eps=1e-3, weight_decay=0.1, foreach=False),
    ),
    of_optax(
        "ademamix",
        lambda o: o.contrib.ademamix,
        dict(**ADAM, beta3=0.99, alpha=3.0, weight_decay=0.1),
        dict(**JAX, b3=0.99, alpha=3.0, weight_decay=0.1),
    ),
    of_kozistr(
        "ademamix",
        "AdEMAMix",
        dict(**ADAM, beta3=0.99, alpha=3.0, warmup=80, weight_decay=0.1),
        dict(lr=0.02, betas=(0.8, 0.98, 0.99), alpha=3.0, t_alpha_beta3=80, weight_decay=0.1, weight_decouple=True),
    ),
    of_timm(
        "adan",
        "adan",
        "Adan",
        dict(lr=0.02, beta1=0.9, beta2=0.8, beta3=0.95, eps=1e-4, weight_decay=0.1),
        dict(lr=0.02, betas=(0.9, 0.8, 0.95), eps=1e-4, weight_decay=0.1, foreach=False),
    ),
    of_kozistr(
        "adan",
        "Adan",
        dict(lr=0.02, beta1=0.9, beta2=0.8, beta3=0.95, eps=1e-4),
        dict(lr=0.02, betas=(0.9, 0.8, 0.95), eps=1e-4),
    ),
    of_timm(
        "madgrad",
        "madgrad",
        "MADGRAD",
        # eps is added to lr there
        dict(lr=0.02 + 1e-9, momentum=0.8, eps=1e-9, weight_decay=0.01),
        dict(lr=0.02, momentum=0.8, eps=1e-9, weight_decay=0.01),
        scheduled=False,
        bound=1e-8,  # their cube root is x**(1/3), with 1/3 rounded
    ),
    of_timm(
        "mars",
        "mars",
        "Mars",
        dict(**ADAM, gamma=0.1, eps=1e-4, weight_decay=0.1),
        dict(**BETAS, gamma=0.1, eps=1e-4, weight_decay=0.1),
    ),
    of_timm(
        "laprop",
        "laprop",
        "LaProp",
        dict(**ADAM, eps=1e-5, weight_decay=0.1),
        dict(**BETAS, eps=1e-5, weight_decay=0.1, foreach=False),
        scheduled=False,  # lr is inside their moving average
    ),
    of_kozistr(
        "laprop",
        "LaProp",
        dict(**ADAM, weight_decay=0.1),  # eps is divided by the correction of bias there
        dict(**BETAS, weight_decay=0.1, foreach=False),
        scheduled=False,
        bound=1e-6,  # they add 1e-15 under the root
    ),
    of_kozistr(
        "qhm",
        "QHM",
        dict(lr=0.02, beta=0.8, nu=0.6, weight_decay=0.1),
        dict(lr=0.02, momentum=0.8, nu=0.6, weight_decay=0.1, weight_decouple=False),
    ),
    Pair(
        "ftrl",
        "keras",
        lambda: need("keras").optimizers.Ftrl,
        dict(lr=0.2, beta=0.7, l1=0.5, l2=0.6, initial_accumulator_value=0.1),
        dict(learning_rate=0.2, beta=0.7, l1_regularization_strength=0.5, l2_regularization_strength=0.3),
        Keras,
        scheduled=False,
        zero=True,  # Keras forgets any other start
        bound=1e-6,  # Keras rounds the learning rate to float32
    ),
]


def gradients(shape):
    """Of mixed sizes, with a drift, and exact zeros now and then."""
    rng = np.random.default_rng(3)
    scale, drift = np.logspace(-3, 1, int(np.prod(shape))).reshape(shape), rng.normal(size=shape)
    for _ in range(STEPS):
        yield scale * (drift + rng.normal(size=shape)) * (rng.random(shape) > 0.1)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_hundred_steps_equal_the_library(pair):
    shape = (5, 7)
    p = np.zeros(shape) if pair.zero else np.random.default_rng(2).normal(size=shape)
    theirs = pair.kind(pair.find(), p.copy(), **pair.theirs)
    opt, start = getattr(fo, pair.rule)(p, **pair.ours), p.copy()
    for t, g in enumerate(gradients(shape), 1):
        if pair.scheduled and t == STEPS // 2:
            opt.set(lr=0.3 * pair.ours["lr"])
            theirs.set(0.3 * pair.ours["lr"])
        opt.step(g)
        expected = theirs.step(g)
        np.testing.assert_allclose(p, expected, rtol=0, atol=pair.bound * max(1, np.abs(p).max()), err_msg=f"step {t}")
    assert np.abs(p - start).max() > 1e-2


def test_sophia_with_estimates_equals_the_library():
    """There the whole is clipped at `p` (sic), here at 1, with the estimate times gamma: lr and eps carry the rest."""
    make = need("pytorch_optimizer").SophiaH
    shape, rng = (5, 7), np.random.default_rng(4)
    p, bound, lr, beta2 = rng.normal(size=shape), 0.05, 0.4, 0.9
    theirs = Torch(make, p.copy(), lr=lr, betas=(0.8, beta2), p=bound, eps=1e-3, weight_decay=0.1)
    opt = fo.sophia(p, lr=lr * bound, beta1=0.8, gamma=bound, eps=bound * 1e-3, weight_decay=0.1 / bound)
    clipped = 0
    for g in gradients(shape):
        estimate = 10 * rng.normal(size=shape) ** 2 - 1
        h = opt.state["h"]
        h += (1 - beta2) * (estimate - h)
        before = p.copy()
        opt.step(g)
        np.testing.assert_allclose(p, theirs.step(g, hessian=estimate), rtol=0, atol=1e-11)
        clipped += np.sum(np.isclose(np.abs(p - before * (1 - lr * 0.1)), lr * bound, rtol=1e-9))
    assert 0.02 < clipped / (STEPS * p.size) < 0.98  # both sides of the bound


TORCH_WORDS = {
    "adadelta": ("Adadelta", {}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "asgd": ("ASGD", {}),
    "rprop": ("Rprop", {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("delta_min", "delta_max")}),
}


@pytest.mark.parametrize("rule", TORCH_WORDS)
def test_defaults_are_torchs(rule):
    name, words = TORCH_WORDS[rule]
    theirs = {k: v.default for k, v in inspect.signature(getattr(need("torch").optim, name)).parameters.items()}
    for word, ours in ({"betas": ("beta1", "beta2")} | words).items():
        if word in theirs:
            theirs |= dict(zip(ours, theirs.pop(word), strict=True))
    ours = dict(getattr(fo, rule).hyper)
    assert ours == {k: theirs[k] for k in ours}
