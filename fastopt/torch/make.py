"""`from_rule`: a torch optimizer class out of any rule."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from fastopt.errors import ConfigError
from fastopt.schema import REQUIRED, Rule
from fastopt.torch import stored
from fastopt.torch.averages import Averages
from fastopt.torch.base import Fast
from fastopt.torch.kind import Kind

_OPTIONS = ("foreach", "fused")  # torch chooses between loops by them; accepted, and without effect


class RuleOptimizer(Fast):
    """A class that `from_rule` made. Abstract."""

    rule: Rule
    __signature__: inspect.Signature

    def __init__(self, params: Any, *args: Any, **given: Any):
        bound = type(self).__signature__.bind(params, *args, **given)
        bound.apply_defaults()
        values = dict(bound.arguments)
        self._check(values)
        options = {n: values.pop(n) for n in stored.ARGUMENTS}
        del values["params"]
        super().__init__(params, values, **options)

    def _check(self, values: dict[str, Any]) -> None:
        name = type(self).__name__
        for key, value in values.items():
            if key == "betas":
                if len(value) != sum(n.startswith("beta") for n in self.rule.schema):
                    raise ConfigError(f"`{name}`: `betas` is {value!r}; expected as many numbers as it has betas.")
                for k, beta in enumerate(value, 1):
                    self.rule.schema[f"beta{k}"].check(beta, None, f"`{name}`")
            elif key in self.rule.schema:
                self.rule.schema[key].check(value, None, f"`{name}`")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            given = {k: v for k, v in param_group.items() if k != "params"}
            if bad := [k for k in given if k in self.rule.schema and k not in self.defaults]:
                raise ConfigError(f"`{type(self).__name__}`: give `betas`, not `{bad[0]}`, in a parameter group.")
            self._check(given)
        super().add_param_group(param_group)


def from_rule(
    rule: Rule, name: str | None = None, *, betas: bool = False, state: dict[str, str] | None = None
) -> type[RuleOptimizer]:
    """A `torch.optim.Optimizer` class that steps by a rule.

    Args:
        rule: any rule, of the catalogue or your own.
        name: of the class; the rule's words, each with a capital, unless given.
        betas: are beta1, beta2, ... one argument `betas`, as torch writes it?
        state: rule state -> its key in `opt.state[p]`; the rule's own names unless given.

    The hyperparameters are arguments in the rule's order with its defaults; `maximize` is one more. `opt.state[p]`
    holds `step` and the states. If the rule has a view, as `ema` and schedule-free rules do, `opt.eval()` shows it and
    `opt.train()` goes back. Pickling works where the class is found under its name in the module that made it.
    """
    if not isinstance(rule, Rule):
        raise ConfigError(f"from_rule: got a {type(rule).__name__}; expected a rule, such as fastopt.lion.")
    if unknown := [s for s in state or {} if s not in rule.state]:
        raise ConfigError(f"from_rule: `{rule.name}` has no state `{unknown[0]}`; it has {list(rule.state)}.")
    name = name or "".join(word.capitalize() for word in re.findall("[^\\W_]+", rule.name))
    if not name.isidentifier():
        raise ConfigError(f"from_rule: the name is {name!r}; expected one that a class can have.")
    kind = Kind(lambda group: rule, {**{s: s for s in rule.state}, **(state or {})}, sparse=lambda group: True)
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    members = {
        "kind": kind,
        "rule": rule,
        "__doc__": rule.__doc__,
        "__module__": module,
        "__signature__": _signature(rule, betas),
    }
    return type(name, (Averages, RuleOptimizer) if rule.view else (RuleOptimizer,), members)


def _signature(rule: Rule, betas: bool) -> inspect.Signature:
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    together = [n for n in rule.schema if n.startswith("beta") and n[4:].isdigit()] if betas else []
    found = [inspect.Parameter("params", either)]
    for n, hyper in rule.schema.items():
        default = inspect.Parameter.empty if hyper.default is REQUIRED else hyper.default
        if n in together[:1]:
            pair = tuple(rule.schema[b].default for b in together)
            found.append(inspect.Parameter("betas", either, default=pair))
        elif n not in together:
            found.append(inspect.Parameter(n, either, default=default))
    found.sort(key=lambda q: q.default is not q.empty)  # what must be given comes first
    more = [inspect.Parameter("maximize", keyword, default=False)]
    own = inspect.Signature([*found, *more, *(inspect.Parameter(o, keyword, default=None) for o in _OPTIONS)])
    return stored.signature(own)
