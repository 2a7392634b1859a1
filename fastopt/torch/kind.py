"""How a torch class says what a rule says: names of hyperparameters and of states, and when a parameter has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from fastopt import codecs
from fastopt.groups import MAXIMIZE
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.schema import MATRIX, Hyper, Rule
from fastopt.storage import Storage
from fastopt.torch import stored, where

TORCH, DENSE = -2, -1  # ways to step a parameter; any other is by rows: over how many axes a gradient's indices go


@dataclass(frozen=True, eq=False)
class Kind:
    """One torch class.

    Attributes:
        rule: the rule of a parameter group.
        state: rule state -> key of `opt.state[p]`, in the order torch writes them.
        names: rule hyperparameter -> key of the group, where it is neither the same nor part of `betas`.
        counted: does `opt.state[p]` hold `step`? If not, a parameter has begun once it has its states.
        plain: is `step` an int, not a tensor?
        beside: group -> is `step` of a parameter on a CUDA device there, too? If not, it is on the host.
        dense: does the class take dense gradients?
        sparse: group -> do kernels take sparse gradients?
        takes: (group, parameter) -> does the rule say what torch's class does with it?
        torch: torch's own class, which takes the parameters that kernels cannot.
        values: group -> what the rule's hyperparameter is, where that is no key's value.
    """

    rule: Callable[[Mapping[str, Any]], Rule]
    state: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    counted: bool = True
    plain: bool = False
    beside: Callable[[Mapping[str, Any]], bool] = lambda group: bool(group.get("fused"))
    dense: bool = True
    sparse: Callable[[Mapping[str, Any]], bool] = lambda group: False
    takes: Callable[[Mapping[str, Any], torch.Tensor], bool] = lambda group, p: True
    torch: type[torch.optim.Optimizer] | None = None
    values: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)

    def key(self, state: str) -> str:
        return self.state.get(state, state)

    def reader(self, rule: Rule) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
        """Of a group's values, those a rule takes and `maximize`, as numbers."""
        steps = [self._value(name) for name in rule.schema]

        def read(group: Mapping[str, Any]) -> tuple[Any, ...]:
            return (*(_plain(step(group)) for step in steps), bool(group.get("maximize", False)))

        return read

    def _value(self, name: str) -> Callable[[Mapping[str, Any]], Any]:
        if name in self.values:
            return self.values[name]
        key = self.names.get(name, name)
        if name.startswith("beta") and name[4:].isdigit() and key == name:
            k = int(name[4:]) - 1
            return lambda group: group["betas"][k] if "betas" in group else group[name]
        return itemgetter(key)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    return value if isinstance(value, bool) else float(value)


class Rows:
    """torch's parameter groups as plans read settings: a row each, numbers only. `of` and `names` are of parameters."""

    def __init__(self, kind: Kind, groups: Sequence[Mapping[str, Any]], of: Sequence[int], names: Sequence[str]):
        self.rules = [kind.rule(g) for g in groups]
        self._read = [kind.reader(rule) for rule in self.rules]
        self._kind, self._of, self.names, self.version = kind, of, names, 0
        self._schemas: list[dict[str, Hyper]] = [{**r.schema, MAXIMIZE.name: MAXIMIZE} for r in self.rules]
        self._storages = self._stored(groups)
        self.values = [read(g) for read, g in zip(self._read, groups, strict=True)]
        self._switches = [self._truths(row, v) for row, v in enumerate(self.values)]

    def update(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Take over changed values; False, and nothing taken, if they ask for other kernels or other state."""
        if [self._kind.rule(g) for g in groups] != self.rules or self._stored(groups) != self._storages:
            return False
        values = [read(g) for read, g in zip(self._read, groups, strict=True)]
        if [self._truths(row, v) for row, v in enumerate(values)] != self._switches:
            return False
        if values != self.values:
            self.values, self.version = values, self.version + 1
        return True

    def lowered(self, row: int, dimensions: int) -> Lowered:
        return lower(self.rules[row], self._chosen(row, dimensions))

    def seen(self, row: int, dimensions: int) -> Lowered:
        """The rule's view."""
        view = self.rules[row].view
        assert view is not None
        return lower(view, self._chosen(row, dimensions))

    def _stored(self, groups: Sequence[Mapping[str, Any]]) -> list[Storage | None]:
        return [stored.of(g, self._kind.state, rule.name) for g, rule in zip(groups, self.rules, strict=True)]

    def stored(self, lowered: Lowered, row: int, p: torch.Tensor, array: np.ndarray) -> Lowered:
        """The rule of parameter `p`, whose memory is `array`, as its group says that states are stored.

        Where it says nothing, those of a parameter in 16 bits are as narrow as torch's, and all is rounded to nearest;
        without a class in torch, they are float32, and the parameter is rounded by chance, as by `Optimizer`. Complex
        parameters keep their states in full.
        """
        own, rule, said = codecs.of(array.dtype), self.rules[row], self._storages[row]
        if p.is_complex() or (said is None and not own.coded):
            return lowered
        as_torch = Storage(named=dict.fromkeys(rule.state, own.name), stochastic=False)
        chosen = said or (as_torch if self._kind.torch else Storage())
        return replace(chosen, by_rows=where.device(p) == where.HOST).applied(lowered, rule, array)

    def _chosen(self, row: int, dimensions: int) -> tuple[tuple[str, bool], ...]:
        matrix = tuple((n, dimensions == 2) for n in self.rules[row].switches if n == MATRIX)
        return self._switches[row] + matrix

    def value(self, row: int, name: str) -> Any:
        return dict(zip(self._schemas[row], self.values[row], strict=True))[name]

    def _truths(self, row: int, values: Sequence[Any]) -> tuple[tuple[str, bool], ...]:
        named = dict(zip(self._schemas[row], values, strict=True))
        return tuple((n, bool(named[n])) for n in self.rules[row].switches if n in named)

    # ---- what plan.py asks
    def rule(self, k: int) -> Rule:
        return self.rules[self._of[k]]

    def schema(self, row: int) -> dict[str, Hyper]:
        return self._schemas[row]

    @property
    def title(self) -> str:
        return " + ".join(dict.fromkeys(rule.name for rule in self.rules))

    def scheduled(self, row: int) -> bool:
        return False

    def evaluate(self, row: int, t: int) -> Sequence[Any]:
        return self.values[row]
