"""What the compiler made of a rule, to read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt import codecs, storage
from fastopt.blocks import BLOCK
from fastopt.errors import ConfigError, DeviceError
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.params import FLOATS
from fastopt.schema import MATRIX, Rule
from fastopt.storage import Storage
from fastopt.targets import cpu, cuda

TARGETS = ("cpu", "cuda")


def source(
    rule: Rule,
    target: str = "cpu",
    *,
    dtype: Any = np.float32,
    gradient: Any = None,
    state_dtype: Any = None,
    **switches: Any,
) -> str:
    """The generated text of a rule's kernel for parameters of `dtype` and gradients of `gradient` (the same).

    `state_dtype`: how states are stored, as an `Optimizer` takes it.

    `switches` are values of the rule's switches (`amsgrad=True`, `momentum=0.9`); the others have their defaults.
    """
    if target not in TARGETS:
        raise DeviceError(f"target is {target!r}; expected one of {', '.join(map(repr, TARGETS))}.")
    lowered, of_p, of_g = chosen(rule, dtype, gradient, state_dtype, switches, target)
    if target == "cuda":
        return cuda.source(rule.name, lowered, of_p, of_g, tuple(rule.schema))
    return cpu.source(rule.name, lowered, of_p, of_g)


def chosen(
    rule: Rule, dtype: Any, gradient: Any, state_dtype: Any, switches: Mapping[str, Any], target: str = "cpu"
) -> tuple[Lowered, codecs.Codec, codecs.Codec]:
    """A rule with these switches and dtypes, and the codecs of parameters and gradients. Raises `ConfigError`."""
    if not isinstance(rule, Rule):
        raise ConfigError(f"rule is a {type(rule).__name__}; expected a rule, such as fastopt.adamw.")
    if unknown := [n for n in switches if n not in rule.switches]:
        known = ", ".join(rule.switches) or "none"
        raise ConfigError(f"`{unknown[0]}` is not a switch of `{rule.name}`; its switches are: {known}.")
    of_p, of_g = _codec(dtype), _codec(dtype if gradient is None else gradient)
    given = {MATRIX: True, **rule.hyper, **switches}
    like = np.zeros((16, BLOCK), codecs.array_dtype(of_p.name))
    otherwise = Storage(by_rows=target == "cpu")
    stored = storage.read(rule.state, rule.name, True, state_dtype=state_dtype, otherwise=otherwise)
    return stored.applied(lower(rule, tuple((n, bool(given[n])) for n in rule.switches)), rule, like), of_p, of_g


def _codec(dtype: Any) -> codecs.Codec:
    if dtype == "bfloat16":  # which NumPy knows with the package ml_dtypes alone
        return codecs.of(dtype)
    if (found := np.dtype(dtype)) not in FLOATS and not codecs.is_half(found):
        raise ConfigError(f"dtype {found}; expected float32, float64, float16 or bfloat16.")
    return codecs.of(found)
