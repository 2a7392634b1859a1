"""What fastopt is measured against: the same rules in plain NumPy, as the formula and by hand, and in torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from fastopt.schema import MATRIX, Rule

Step = Callable[[], object]


def numpy_naive(
    rule: Rule, p: np.ndarray, g: np.ndarray, state: Sequence[str] | Mapping[str, np.ndarray], **given: Any
) -> Step:
    """The formula applied to whole arrays, as one writes it first: a temporary per operation.

    `state`: the names of the states there are, which start at 0, or what they start as.
    """
    h, steps = rule.hyper | given, count(1)
    if MATRIX in rule.switches:
        h[MATRIX] = p.ndim == 2
    fresh = rule(p.copy(), **given).state if state else {}
    now = [p, *(_start(fresh[name], p.dtype) if name in state else 0.0 for name in rule.state)]

    def step() -> None:
        new = rule.formula(now[0], g, *now[1:], **h, **({"t": next(steps)} if rule.timed else {}))
        now[:] = new if isinstance(new, tuple) else (new,)

    return step


def _start(state: np.ndarray, dtype: np.dtype) -> Any:
    # numbers, too, are of the arrays' type: float64 would widen the arrays, and Python's raise where it divides by 0
    return state.astype(dtype)[()]


def numpy_out(rule: Rule, p: np.ndarray, g: np.ndarray, state: Sequence[str], **given: Any) -> Step | None:
    """Hand-written `out=` form: in place, one scratch array, no temporaries. None where `OUT` has none."""
    if rule.name not in OUT:
        return None
    h, scratch, buffers, steps = rule.hyper | given, np.empty_like(p), [np.zeros_like(p) for _ in state], count(1)
    return lambda: OUT[rule.name](p, g, *buffers, scratch, h, next(steps))


def _sgd_out(p: np.ndarray, g: np.ndarray, *rest: Any) -> None:
    *b, a, h, _ = rest
    if h["momentum"]:
        b[0] *= h["momentum"]
        b[0] += g
    p -= np.multiply(b[0] if h["momentum"] else g, h["lr"], out=a)


def _adam_out(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, a: np.ndarray, h: dict, t: int) -> None:
    if h["weight_decay"]:  # the decoupled kind; `adam` is only raced at its default, 0
        p *= 1 - h["lr"] * h["weight_decay"]
    m *= h["beta1"]
    m += np.multiply(g, 1 - h["beta1"], out=a)
    v *= h["beta2"]
    v += np.multiply(np.multiply(g, g, out=a), 1 - h["beta2"], out=a)
    np.multiply(np.sqrt(v, out=a), 1 / math.sqrt(1 - h["beta2"] ** t), out=a)
    np.divide(m, np.add(a, h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"] / (1 - h["beta1"] ** t), out=a)


def _adagrad_out(p: np.ndarray, g: np.ndarray, s: np.ndarray, a: np.ndarray, h: dict, t: int) -> None:
    s += np.multiply(g, g, out=a)
    np.divide(g, np.add(np.sqrt(s, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"] / (1 + (t - 1) * h["lr_decay"]), out=a)


def _rmsprop_out(p: np.ndarray, g: np.ndarray, v: np.ndarray, a: np.ndarray, h: dict, t: int) -> None:
    v *= h["alpha"]
    v += np.multiply(np.multiply(g, g, out=a), 1 - h["alpha"], out=a)
    np.divide(g, np.add(np.sqrt(v, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"], out=a)


def _lion_out(p: np.ndarray, g: np.ndarray, m: np.ndarray, a: np.ndarray, h: dict, t: int) -> None:
    m -= g  # both interpolations are g + beta * (m - g)
    np.sign(np.add(np.multiply(m, h["beta1"], out=a), g, out=a), out=a)
    m *= h["beta2"]
    m += g
    if h["weight_decay"]:
        p *= 1 - h["lr"] * h["weight_decay"]
    p -= np.multiply(a, h["lr"], out=a)


# rule -> (p, g, *state, scratch, hyper, t), in place
OUT: dict[str, Callable[..., None]] = {
    "sgd": _sgd_out,
    "adagrad": _adagrad_out,
    "rmsprop": _rmsprop_out,
    "adam": _adam_out,
    "adamw": _adam_out,
    "lion": _lion_out,
}
TORCH = {
    "sgd": "SGD",
    "asgd": "ASGD",
    "rprop": "Rprop",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
}


def torch_step(rule: Rule, params: Sequence[np.ndarray], grads: Sequence[np.ndarray], kind: str, **given: Any) -> Any:
    """step() of torch's optimizer over the same memory, of kind "fused" or "foreach"; None where torch has none."""
    try:
        import torch

        leaves = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = torch.from_numpy(g)
        return getattr(torch.optim, TORCH[rule.name])(leaves, **{kind: True}, **given).step
    except (ImportError, KeyError, TypeError, RuntimeError):  # no torch, no such optimizer, or not of that kind
        return None
