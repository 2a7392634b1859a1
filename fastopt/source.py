"""What the compiler made of a rule, to read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.errors import ConfigError, DeviceError
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.params import FLOATS
from fastopt.schema import MATRIX, Rule
from fastopt.targets import cpu, cuda

TARGETS = ("cpu", "cuda")


def source(rule: Rule, target: str = "cpu", *, dtype: Any = np.float32, gradient: Any = None, **switches: Any) -> str:
    """The generated text of a rule's kernel for parameters of `dtype` and gradients of `gradient` (the same).

    `switches` are values of the rule's switches (`amsgrad=True`, `momentum=0.9`); the others have their defaults.
    """
    if target not in TARGETS:
        raise DeviceError(f"target is {target!r}; expected one of {', '.join(map(repr, TARGETS))}.")
    lowered, of_p, of_g = chosen(rule, dtype, gradient, switches)
    if target == "cuda":
        return cuda.source(rule.name, lowered, of_p, of_g, tuple(rule.schema))
    return cpu.source(rule.name, lowered, of_p, of_g)


def chosen(
    rule: Rule, dtype: Any, gradient: Any, switches: Mapping[str, Any]
) -> tuple[Lowered, np.dtype, codecs.Codec]:
    """A rule with these switches, and the dtypes of parameters and gradients. Raises `ConfigError`."""
    if not isinstance(rule, Rule):
        raise ConfigError(f"rule is a {type(rule).__name__}; expected a rule, such as fastopt.adamw.")
    if unknown := [n for n in switches if n not in rule.switches]:
        known = ", ".join(rule.switches) or "none"
        raise ConfigError(f"`{unknown[0]}` is not a switch of `{rule.name}`; its switches are: {known}.")
    of_p, of_g = np.dtype(dtype), _codec(dtype if gradient is None else gradient)
    if of_p not in FLOATS:
        raise ConfigError(f"dtype {of_p}; expected float32 or float64.")
    given = {MATRIX: True, **rule.hyper, **switches}
    return lower(rule, tuple((n, bool(given[n])) for n in rule.switches)), of_p, of_g


def _codec(dtype: Any) -> codecs.Codec:
    if dtype == "bfloat16":  # which NumPy knows with the package ml_dtypes alone
        return codecs.of(dtype)
    if (found := np.dtype(dtype)) not in FLOATS and not codecs.is_half(found):
        raise ConfigError(f"dtype {found} of gradients; expected float32, float64, float16 or bfloat16.")
    return codecs.of(found)
