"""`Group`: what is said of some parameters, chosen by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastopt.errors import ConfigError
from fastopt.schema import Rule


@dataclass(frozen=True, init=False, eq=False)
class Group:
    """Hyperparameters for the parameters whose path matches `pattern` (`*`, `?`, `[...]`); the first match wins.

    What a group does not give, it inherits from the optimizer; a group with a `rule` of its own, from that rule's
    defaults instead. `frozen=True` leaves its parameters, and their state, out of every step. `state_dtype`, `memory`,
    `rounding` and `master` are those of `Optimizer`, for this group. Paths are keys and positions joined by dots:
    "layers.0.bias".
    """

    pattern: str
    rule: Rule | None
    frozen: bool
    stored: Mapping[str, Any]  # what it says of storage
    hyper: Mapping[str, Any]

    def __init__(
        self,
        pattern: str,
        *,
        rule: Rule | None = None,
        frozen: bool = False,
        state_dtype: Any = None,
        memory: str | None = None,
        rounding: str | None = None,
        master: str | None = None,
        **hyper: Any,
    ):
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"Group: `pattern` is {pattern!r}; expected a path pattern such as '*.bias'.")
        if not isinstance(frozen, bool):
            raise ConfigError(f"Group({pattern!r}): `frozen` is {frozen!r}; expected True or False.")
        if rule is not None and not isinstance(rule, Rule):
            raise ConfigError(f"Group({pattern!r}): `rule` is {rule!r}; expected a rule, such as fastopt.adamw.")
        stored = {"state_dtype": state_dtype, "memory": memory, "rounding": rounding, "master": master}
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "frozen", frozen)
        object.__setattr__(self, "stored", {n: v for n, v in stored.items() if v is not None})
        object.__setattr__(self, "hyper", hyper)

    def __repr__(self) -> str:
        given = {**({"frozen": True} if self.frozen else {}), **self.stored, **self.hyper}
        given = {**({"rule": self.rule} if self.rule else {}), **given}
        return f"Group({', '.join([repr(self.pattern), *(f'{k}={v!r}' for k, v in given.items())])})"
