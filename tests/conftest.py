"""Shared by every test: one cold kernel cache a session, the registries RULES x DTYPES x LAYOUTS, trees, torch twins.

The cache folder is set before fastopt is imported, and subprocesses inherit it: each kernel is compiled once a session.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# with pytest -n the workers share the folder of the process that starts them
CACHE = os.environ.get("FASTOPT_TESTS_CACHE") or tempfile.mkdtemp(prefix="fastopt-tests-")
OWNED = "FASTOPT_TESTS_CACHE" not in os.environ
os.environ["FASTOPT_TESTS_CACHE"] = CACHE
os.environ["FASTOPT_CACHE_DIR"] = CACHE

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from twins import TorchTwin  # noqa: E402

import fastopt as fo  # noqa: E402


def pytest_unconfigure():
    if OWNED:
        shutil.rmtree(CACHE, ignore_errors=True)


# ---- registries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A rule with its switches set one way. `other` is what one parameter group of the tests changes."""

    rule: str
    hyper: Mapping[str, Any]
    other: Mapping[str, float] = field(default_factory=dict)

    def __str__(self):
        switches = [k for k in ("momentum", "dampening", "nesterov", "centered", "amsgrad") if self.hyper.get(k)]
        return "-".join([self.rule, *switches])

    @property
    def make(self) -> Any:
        return getattr(fo, self.rule)

    def full(self, **more: Any) -> dict[str, Any]:
        """Every hyperparameter: the defaults of the rule's signature, this variant's, `more`."""
        return {**self.make.hyper, **self.hyper, **more}


# weight_decay is never 0 here: a peer's decay bug hid because its tests used 0
RULES = [
    Variant("sgd", dict(lr=0.05, weight_decay=0.1)),
    Variant("sgd", dict(lr=0.05, weight_decay=0.1, momentum=0.9), dict(momentum=0.5)),
    Variant("sgd", dict(lr=0.05, weight_decay=0.1, momentum=0.9, dampening=0.2), dict(dampening=0.5)),
    Variant("sgd", dict(lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=True), dict(momentum=0.5)),
    Variant(
        "adagrad", dict(lr=0.1, weight_decay=0.1, lr_decay=0.01, initial_accumulator_value=0.1), dict(lr_decay=0.2)
    ),
    Variant("rmsprop", dict(lr=0.01, weight_decay=0.1, alpha=0.95), dict(alpha=0.8)),
    Variant("rmsprop", dict(lr=0.01, weight_decay=0.1, alpha=0.95, momentum=0.9), dict(momentum=0.5)),
    Variant("rmsprop", dict(lr=0.01, weight_decay=0.1, alpha=0.95, centered=True), dict(alpha=0.8)),
    Variant("rmsprop", dict(lr=0.01, weight_decay=0.1, alpha=0.95, momentum=0.9, centered=True), dict(eps=1e-3)),
    Variant("adam", dict(lr=0.01, weight_decay=0.1), dict(beta1=0.8)),
    Variant("adam", dict(lr=0.01, weight_decay=0.1, beta2=0.9, amsgrad=True), dict(beta2=0.95)),
    Variant("adamw", dict(lr=0.01, weight_decay=0.1), dict(beta2=0.99)),
    Variant("adamw", dict(lr=0.01, weight_decay=0.1, beta2=0.9, amsgrad=True), dict(eps=1e-3)),
    Variant("lion", dict(lr=0.01, weight_decay=0.1), dict(beta1=0.8)),
]
DTYPES = ["float32", "float64"]

# every length that matters to a vectorised loop: below, at and above a register, 0-d, and nothing at all
SHAPES = {
    "embed": {"weight": (40, 25)},
    "layer": {"0": {"weight": (8, 16), "bias": (7,)}, "1": {"weight": (3, 5, 2), "bias": (1,)}},
    "nothing": (0, 3),
    "scale": (),
}
SIZE = 1000 + 128 + 7 + 30 + 1 + 1


def _packed(tree: Any) -> Any:
    return fo.pack(tree)


# how the same numbers may be laid out; each takes the nested dict of arrays of `params`
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "single": lambda tree: flat(tree),
    "list": lambda tree: list(leaves(tree).values()),
    "tuple": lambda tree: tuple(leaves(tree).values()),
    "dict": lambda tree: tree,
    "packed": _packed,
}


# ---- trees of arrays -------------------------------------------------------------------------------------------------


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """path -> array (or None), in order; `params` is the path of an array on its own."""
    if isinstance(tree, np.ndarray) or tree is None:
        return {path or "params": tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {p: x for k, v in items for p, x in leaves(v, f"{path}.{k}" if path else str(k)).items()}


def flat(tree: Any) -> np.ndarray:
    """A copy of all numbers of a tree, 1-d, in order."""
    return np.concatenate([np.ravel(x) for x in leaves(tree).values() if x is not None])


def unflat(like: Any, numbers: np.ndarray) -> Any:
    """Copies of `numbers` (1-d) in the structure and shapes of `like`; tuples, lists and dicts stay what they are."""
    cuts = iter(np.split(numbers, np.cumsum([x.size for x in leaves(like).values()])[:-1]))

    def build(node: Any) -> Any:
        if isinstance(node, np.ndarray):
            return next(cuts).reshape(node.shape).copy()
        if isinstance(node, Mapping):
            return {k: build(v) for k, v in node.items()}
        return type(node)(build(v) for v in node) if isinstance(node, list | tuple) else [build(v) for v in node]

    return build(like)


def params(dtype: Any = "float32", seed: int = 0) -> Any:
    """The nested dict of SHAPES, normal numbers."""
    numbers = np.random.default_rng(seed).standard_normal(SIZE).astype(dtype)

    def build(node: Any) -> Any:
        return {k: build(v) for k, v in node.items()} if isinstance(node, dict) else np.empty(node, dtype)

    return unflat(build(SHAPES), numbers)


def gradient(t: int, dtype: Any = "float32", size: int = SIZE) -> np.ndarray:
    """The gradient of step t, 1-d: scales from 1e-3 to 1e3 over the elements, every 7th is 0 in the first ten steps."""
    rng = np.random.default_rng([t, 123])
    g = rng.standard_normal(size) * np.logspace(-3, 3, size)
    g[::7] *= t > 10
    return g.astype(dtype)


def snapshot(opt: Any) -> list[bytes]:
    """The bytes of everything a rejected call must leave alone: parameters, state, counter, hyperparameters."""
    parts = [x.tobytes() for x in leaves(opt.params).values()]
    for name in sorted(opt.state):
        parts += [name.encode()] + [b"" if x is None else x.tobytes() for x in leaves(opt.state[name]).values()]
    return [*parts, str(opt.t).encode(), repr(opt.hyper()).encode()]


# ---- optimizers ------------------------------------------------------------------------------------------------------


def trained(**options):
    """An AdamW with three steps behind it, on the nested dict, with a group that changes nothing yet."""
    opt = fo.adamw(params(), groups=[fo.Group("layer.*")], **options)
    for t in range(1, 4):
        opt.step(unflat(opt.params, gradient(t)))
    return opt


def refused(opt, error, call, *says):
    """`call()` raises `error`, the message has all of `says`, and nothing changed: parameters, state, t, settings."""
    before = snapshot(opt)
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error, caught.type
    assert [s for s in says if s not in str(caught.value)] == [], str(caught.value)
    assert snapshot(opt) == before
    opt.step(unflat(opt.params, gradient(9, size=opt.num_parameters)))  # and it goes on working
    return caught


def leaves_bytes(opt):
    """`snapshot` without the hyperparameters: those of the next step may be what is wrong."""
    return [flat(opt.params).tobytes()] + [flat(opt.state[s]).tobytes() for s in sorted(opt.state)]


# ---- other processes -------------------------------------------------------------------------------------------------


def run_python(code: str, *, timeout: float = 120, expect: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that treats warnings as errors; `expect` is its exit status (None: any)."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert expect is None or result.returncode == expect, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(params=RULES, ids=str)
def variant(request) -> Variant:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request) -> str:
    return request.param


@pytest.fixture
def torch_twin() -> type[TorchTwin]:
    return TorchTwin


@pytest.fixture
def gpu():
    """A CUDA driver without a GPU, in place of the real one."""
    from fake_cuda import FakeDriver

    from fastopt.targets import driver

    fake = FakeDriver()
    driver.install(fake)
    yield fake
    driver.install(None)
