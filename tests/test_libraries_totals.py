"""Rules with totals against the libraries that have them, in float64, over several parameters at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from libraries import need, timm

import fastopt as fo

STEPS = 100
SHAPES = {"w": (5, 7), "filters": (2, 3, 4), "b": (6,), "scalar": ()}


class Torch:
    """An optimizer class of torch's kind over a dict of arrays."""

    def __init__(self, make: Callable[..., Any], start: dict[str, np.ndarray], **hyper: Any):
        self.torch = need("torch")
        self.p = {n: self.torch.nn.Parameter(self.torch.tensor(x)) for n, x in start.items()}
        self.optimizer = make(list(self.p.values()), **hyper)

    def step(self, grads: dict[str, np.ndarray], loss: float) -> dict[str, np.ndarray]:
        for n, g in grads.items():
            self.p[n].grad = self.torch.tensor(g)
        usual = self.torch.get_default_dtype()
        self.torch.set_default_dtype(self.torch.float64)
        try:
            self.optimizer.step()
        finally:
            self.torch.set_default_dtype(usual)
        return {n: p.detach().numpy() for n, p in self.p.items()}


class Optax:
    """A gradient transformation over a dict of arrays; Polyak's steps are told the loss."""

    def __init__(self, make: Callable[..., Any], start: dict[str, np.ndarray], **hyper: Any):
        self.jax, self.optax = need("jax"), need("optax")
        with self.jax.enable_x64(True):
            self.transform = make(**hyper)
            self.p = {n: self.jax.numpy.asarray(x) for n, x in start.items()}
            self.state = self.transform.init(self.p)

    def step(self, grads: dict[str, np.ndarray], loss: float) -> dict[str, np.ndarray]:
        with self.jax.enable_x64(True):
            g = {n: self.jax.numpy.asarray(x) for n, x in grads.items()}
            told = {"value": loss} if isinstance(self.transform, self.optax.GradientTransformationExtraArgs) else {}
            change, self.state = self.transform.update(g, self.state, self.p, **told)
            self.p = self.optax.apply_updates(self.p, change)
            return {n: np.asarray(x) for n, x in self.p.items()}


@dataclass(frozen=True)
class Pair:
    """A rule with settings, and a library's class with the same ones in its own words."""

    rule: str
    library: str
    find: Callable[[], Callable[..., Any]]
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    kind: type = Torch
    shapes: tuple[str, ...] = tuple(SHAPES)
    bound: float = 1e-11  # relative to the largest element; 100 float64 steps round to 1e-14, a wrong formula to 1e-3

    def __str__(self) -> str:
        return "-".join([self.rule, self.library, *(n for n, v in self.ours.items() if v is True)])


def timms(rule: str, module: str, name: str, ours: Mapping, theirs: Mapping) -> Pair:
    return Pair(rule, "timm", lambda: getattr(timm(module), name), ours, theirs)


def optaxs(rule: str, name: str, ours: Mapping, theirs: Mapping) -> Pair:
    return Pair(rule, "optax", lambda: getattr(need("optax"), name), ours, theirs, Optax)


def of(rule: str, module: str, name: str, ours: Mapping, theirs: Mapping | None = None, **more: Any) -> Pair:
    return Pair(
        rule,
        module.split(".")[0],
        lambda: getattr(need(module), name),
        ours,
        ours if theirs is None else theirs,
        **more,
    )


ADAM = dict(lr=0.02, beta1=0.8, beta2=0.98, eps=1e-4, weight_decay=0.1)
BETAS = dict(lr=0.02, betas=(0.8, 0.98), eps=1e-4, weight_decay=0.1)
JAX = dict(learning_rate=0.02, b1=0.8, b2=0.98, eps=1e-4, weight_decay=0.1)
LARS = dict(lr=0.5, momentum=0.8, dampening=0.2, weight_decay=0.1, trust_coeff=0.02, eps=1e-3)
NESTEROV = dict(lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.1, trust_coeff=0.05, trust_clip=True)
FREE = dict(beta1=0.8, beta2=0.98, eps=1e-4, weight_decay=0.1, d0=1e-3)
FREE_BETAS = dict(betas=(0.8, 0.98), eps=1e-4, weight_decay=0.1, d0=1e-3)
DOG = dict(lr=0.5, reps_rel=0.01, eps=1e-4, weight_decay=0.1)

PAIRS = [
    optaxs("lamb", "lamb", ADAM, JAX),
    timms("lamb", "lamb", "Lamb", ADAM, dict(**BETAS, max_grad_norm=None, always_adapt=True)),
    timms("lamb", "lamb", "Lamb", dict(**ADAM, trust_clip=True), dict(**BETAS, max_grad_norm=None, trust_clip=True)),
    timms("lars", "lars", "Lars", LARS, dict(**LARS, always_adapt=True)),
    timms("lars", "lars", "Lars", NESTEROV, NESTEROV),
    optaxs(
        "lars",
        "lars",
        dict(lr=0.5, momentum=0.8, trust_coeff=0.02, eps=0.0),
        dict(learning_rate=0.5, momentum=0.8, trust_coefficient=0.02),
    ),
    optaxs("novograd", "novograd", ADAM, JAX),
    timms("novograd", "nvnovograd", "NvNovoGrad", ADAM, BETAS),
    of(
        "adafactor",
        "torch.optim",
        "Adafactor",
        dict(lr=0.05, beta2_decay=-0.7, eps1=0.05, eps2=0.01, d=1.5, weight_decay=0.1),
        dict(lr=0.05, beta2_decay=-0.7, eps=(0.05, 0.01), d=1.5, weight_decay=0.1, foreach=False),
        shapes=("w", "b", "scalar"),  # three dimensions: see the rule's docstring
    ),
    of(
        "adafactor",
        "torch.optim",
        "Adafactor",
        dict(eps1=float(np.finfo(float).eps)),
        dict(foreach=False),
        shapes=("w", "b", "scalar"),
    ),
    optaxs(
        "sps",
        "polyak_sgd",
        dict(lr=0.05, f_star=10.0, c=1.0, eps=0.5),
        dict(max_learning_rate=0.05, f_min=10.0, eps=0.5, variant="sps+"),  # no step back where the loss is below f*
    ),
    optaxs(
        "polyak",
        "polyak_sgd",
        dict(f_star=10.0, eps=0.5),
        dict(max_learning_rate=1e9, f_min=10.0, eps=0.5, variant="sps+"),
    ),
    of("dog", "dog", "DoG", DOG),
    of("ldog", "dog", "LDoG", DOG),
    of("prodigy", "prodigyopt", "Prodigy", FREE, FREE_BETAS),
    of(
        "prodigy",
        "prodigyopt",
        "Prodigy",
        dict(**FREE, beta3=0.95, d_coef=0.7, decouple=False, use_bias_correction=True, safeguard_warmup=True),
        dict(**FREE_BETAS, beta3=0.95, d_coef=0.7, decouple=False, use_bias_correction=True, safeguard_warmup=True),
    ),
    of("dadapt_adam", "dadaptation", "DAdaptAdam", FREE, FREE_BETAS),
    of(
        "dadapt_adam",
        "dadaptation",
        "DAdaptAdam",
        dict(**FREE, decouple=True, use_bias_correction=True),
        dict(**FREE_BETAS, decouple=True, use_bias_correction=True),
    ),
]


def drawn(shapes):
    """A start, and a hundred steps of losses and gradients: of mixed sizes, with a drift, and exact zeros."""
    rng = np.random.default_rng(3)
    sizes = {n: SHAPES[n] for n in shapes}
    scale = {n: np.logspace(-3, 1, int(np.prod(s))).reshape(s) for n, s in sizes.items()}
    drift = {n: rng.normal(size=s) for n, s in sizes.items()}
    start = {n: np.asarray(rng.normal(size=s)) for n, s in sizes.items()}
    steps = [
        (
            float(rng.uniform(0.0, 300.0)),  # below the smallest loss, too
            {
                n: np.asarray(scale[n] * (drift[n] + rng.normal(size=s)) * (rng.random(s) > 0.1))
                for n, s in sizes.items()
            },
        )
        for _ in range(STEPS)
    ]
    return start, steps


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries' own code
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_hundred_steps_equal_the_library(pair):
    start, steps = drawn(pair.shapes)
    theirs = pair.kind(pair.find(), {n: x.copy() for n, x in start.items()}, **pair.theirs)
    p = {n: x.copy() for n, x in start.items()}
    opt = getattr(fo, pair.rule)(p, **pair.ours)
    for t, (loss, g) in enumerate(steps, 1):
        if "loss" in opt.rule.schema:
            opt.set(loss=loss)
        opt.step(g)
        for n, x in theirs.step(g, loss).items():
            bound = pair.bound * max(1, np.abs(x).max())
            np.testing.assert_allclose(p[n], x, rtol=0, atol=bound, err_msg=f"{n}, step {t}")
    assert min(np.abs(p[n] - start[n]).max() for n in p) > 1e-3


WORDS = {
    "adafactor": (lambda: need("torch").optim.Adafactor, {"eps": ("eps1", "eps2")}),
    "lars": (lambda: timm("lars").Lars, {}),
    "prodigy": (lambda: need("prodigyopt").Prodigy, {"betas": ("beta1", "beta2")}),
    "dadapt_adam": (lambda: need("dadaptation").DAdaptAdam, {"betas": ("beta1", "beta2")}),
    "dog": (lambda: need("dog").DoG, {}),
    "ldog": (lambda: need("dog").LDoG, {}),
    "lamb": (lambda: need("optax").lamb, {"b1": ("beta1",), "b2": ("beta2",)}),
    "novograd": (lambda: need("optax").novograd, {"b1": ("beta1",), "b2": ("beta2",)}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("rule", WORDS)
def test_defaults_are_the_librarys(rule):
    find, words = WORDS[rule]
    theirs = {k: v.default for k, v in inspect.signature(find()).parameters.items()}
    for word, names in words.items():
        given = theirs.pop(word)
        theirs |= dict(zip(names, given if isinstance(given, tuple) else (given,), strict=True))
    theirs = {k: v for k, v in theirs.items() if v is not None}  # None: what our default spells out
    ours = {k: v for k, v in getattr(fo, rule).hyper.items() if k in theirs}
    assert len(ours) >= 4 and ours == {k: theirs[k] for k in ours}
