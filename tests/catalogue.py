"""The registry of the catalogue's tests: every rule with settings away from its defaults, and its float64 oracle.

Each family of rules has a module of oracles that ends with its `CASES`; `FAMILIES` names them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from oracles import Oracle

import fastopt as fo


@dataclass(frozen=True)
class Case:
    """One way to set a rule.

    Args:
        rule: its name in fastopt, such as "adamw" or "keras.rmsprop".
        oracle: stepped with every hyperparameter spelled out; holds the parameter as `p`.
        hyper: settings away from the defaults, with a weight decay; a peer's decay bug hid because its tests used 0.
        other: what one parameter group changes.
        matrix: does the rule take 2-d parameters alone?
        whole: does it couple all parameters? Then the oracle holds them as one vector, and groups differ in nothing.
        float32: the bound of float32 against float64, relative to the largest element.
    """

    rule: str
    oracle: type[Oracle]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)
    matrix: bool = False
    whole: bool = False
    float32: float = 1e-3

    @property
    def make(self) -> fo.Rule:
        return attrgetter(self.rule)(fo)

    def full(self, **more: Any) -> dict[str, Any]:
        """Every hyperparameter: the defaults of the rule's signature, this case's, `more`."""
        return {**self.make.hyper, **self.hyper, **more}

    def __str__(self) -> str:
        return "-".join([self.rule, *(n for n, v in self.hyper.items() if v is True)])


FAMILIES = "core elementwise totals matrices readings schedule_free".split()


def cases() -> list[Case]:
    """All of them, each module's in its order."""
    return [case for name in FAMILIES for case in importlib.import_module(f"oracles_{name}").CASES]
