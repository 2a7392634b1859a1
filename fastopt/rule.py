"""A rule: an update formula whose signature is its schema. What it may contain is checked when it is declared."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, overload

import numpy as np

from fastopt import lower
from fastopt.errors import ConfigError, hint
from fastopt.formula import Formula, read

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Domain:
    """The interval of finite values a hyperparameter may take."""

    low: float = -math.inf
    high: float = math.inf
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value) and self.low <= value and (value < self.high if self.open_high else value <= self.high)
        )

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"
        return f"a finite number >= {self.low:g}" if self.low > -math.inf else "a finite number"


# For annotations of hyperparameters whose name does not say it already: `alpha: Fraction = 0.99`.
NonNegative = Annotated[float, Domain(low=0.0)]
Fraction = Annotated[float, Domain(low=0.0, high=1.0, open_high=True)]

# The field's names carry their domain: one table instead of an annotation on every rule.
_BY_NAME = {
    ("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value"): Domain(low=0.0),
    ("beta", "beta1", "beta2", "beta3"): Domain(low=0.0, high=1.0, open_high=True),
}


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter: name, default (`REQUIRED` if it has none) and domain. A bool default makes a switch."""

    name: str
    default: Any
    domain: Domain

    @property
    def boolean(self) -> bool:
        return isinstance(self.default, bool)

    def check(self, value: Any, dtype: np.dtype | None, where: str) -> float | bool:
        """`value` as a plain number. Raises `ConfigError` if it is none, outside the domain, or lost in `dtype`."""
        if self.boolean:
            if not isinstance(value, bool | np.bool_):
                raise ConfigError(f"{where}: `{self.name}` is {value!r}; expected True or False.")
            return bool(value)
        number = math.nan
        if not isinstance(value, bool | np.bool_ | str | bytes):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                pass
        if number not in self.domain:
            raise ConfigError(f"{where}: `{self.name}` is {value!r}; expected {self.domain}.")
        if dtype is None:
            return number
        with np.errstate(over="ignore"):
            stored = float(dtype.type(number))  # the value as the kernel will see it
        if not math.isfinite(stored):
            raise ConfigError(f"{where}: `{self.name}` is {value!r}, beyond the largest {dtype}.")
        if self.domain.open_high and stored >= self.domain.high:
            raise ConfigError(
                f"{where}: `{self.name}` is {value!r}, which rounds to {stored:g} in {dtype}; use float64."
            )
        if self.name.startswith("eps") and number > 0 and stored == 0:
            raise ConfigError(f"{where}: `{self.name}` is {value!r}, which rounds to 0 in {dtype}; use 0 or >= 1e-38.")
        return number


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule. `rule(params, **hyper)` is an `Optimizer`; `rule.formula(p, g, *state, **hyper)` one step.

    Attributes:
        name: the function's name.
        formula: the function itself, of scalars or (element by element) of NumPy arrays.
        state: names of the state buffers, in the order of the signature. Which of them exist depends on the switches.
        schema: the hyperparameters by name.
        init: how a state starts: a number, the name of a hyperparameter, or "p" for a copy of the parameter. Default 0.
        switches: hyperparameters whose truth chooses the kernel and its state; fixed when an optimizer is built.
        timed: whether the formula names the step `t`.
    """

    name: str
    formula: Callable[..., Any]
    source: Formula
    state: tuple[str, ...]
    schema: Mapping[str, Hyper]
    init: Mapping[str, float | str]
    switches: tuple[str, ...]
    timed: bool

    @property
    def hyper(self) -> dict[str, Any]:
        """Name -> default; `...` where the caller must give one."""
        return {n: ... if h.default is REQUIRED else h.default for n, h in self.schema.items()}

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.formula.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(n, kind, default=h.default) for n, h in self.schema.items()]
        common = [
            inspect.Parameter(n, kind, default=d) for n, d in (("maximize", False), ("groups", ()), ("device", "auto"))
        ]
        return inspect.Signature([inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY), *own, *common])

    def __call__(self, params: Any, **options: Any) -> Optimizer:
        """`Optimizer(self, params, **options)`."""
        from fastopt.optimizer import Optimizer  # the one arrow that points up: a rule given parameters is an optimizer

        return Optimizer(self, params, **options)

    def unknown(self, name: str) -> ConfigError:
        has = ", ".join(self.schema) or "none"
        return ConfigError(f"unknown hyperparameter `{name}` for `{self.name}`; it has {has}.{hint(name, self.schema)}")

    def __repr__(self) -> str:
        shown = ", ".join(n if h.default is REQUIRED else f"{n}={h.default!r}" for n, h in self.schema.items())
        return f"<rule {self.name}({', '.join(('p', 'g', *self.state))}, *, {shown})>"


@overload
def rule(function: Callable[..., Any] | str, /, *, init: Mapping[str, float | str] | None = None) -> Rule: ...
@overload
def rule(*, init: Mapping[str, float | str] | None = None) -> Callable[[Callable[..., Any] | str], Rule]: ...
def rule(
    function: Callable[..., Any] | str | None = None, /, *, init: Mapping[str, float | str] | None = None
) -> Rule | Callable[[Callable[..., Any] | str], Rule]:
    """Make a rule of a function `(p, g, *state, *, **hyperparameters[, t]) -> (p, *state)`.

    `p` and `g` are one element of a parameter and of its gradient, the further positional parameters are state, one
    element each, keyword-only ones are hyperparameters; `t` counts steps from 1. The body is assignments, `if`s on
    switches, and one return. `init` says how a state starts (see `Rule.init`).

    Raises `RuleError` (file, line, reason) for anything that is not such a formula.
    """
    if function is None:
        return lambda f: rule(f, init=init)
    source = read(function)
    state, schema, timed = _signature(source)
    unknown = [n for n in init or {} if n not in state]
    if unknown:
        source.refuse(source.tree, f"gives a start for `{unknown[0]}`, which is not one of its states {list(state)}.")
    for name, start in (init or {}).items():
        if isinstance(start, str) and start != "p" and start not in schema:
            source.refuse(
                source.tree, f"starts `{name}` at {start!r}; expected a number, a hyperparameter's name or 'p'."
            )
    made = Rule(
        name=source.name,
        formula=source.function,
        source=source,
        state=state,
        schema=schema,
        init=dict(init or {}),
        switches=lower.switches(source, schema),
        timed=timed,
    )
    lower.check(made)
    return made


def _signature(source: Formula) -> tuple[tuple[str, ...], dict[str, Hyper], bool]:
    positional, keyword = [], {}
    for q in inspect.signature(source.function, eval_str=True).parameters.values():
        if q.kind in (q.VAR_POSITIONAL, q.VAR_KEYWORD):
            source.refuse(source.tree, f"takes `*{q.name}`; name every state and hyperparameter.")
        if q.kind is q.KEYWORD_ONLY:
            keyword[q.name] = q
        elif q.default is not q.empty:
            source.refuse(source.tree, f"gives `{q.name}` a default; put hyperparameters behind a `*`.")
        else:
            positional.append(q.name)
    if positional[:2] != ["p", "g"]:
        source.refuse(source.tree, f"takes ({', '.join(positional)}); the first two must be `p` and `g`.")
    for name in {"params", "groups", "device", "maximize", "rule", "frozen"} & {*positional, *keyword}:
        source.refuse(source.tree, f"names something `{name}`, a word the optimizer itself uses; choose another name.")
    t = keyword.pop("t", None)
    if t is not None and t.default is not t.empty:
        source.refuse(source.tree, "gives `t` a default; it is supplied and counts from 1.")
    schema = {name: _hyper(source, q) for name, q in keyword.items()}
    return tuple(positional[2:]), schema, t is not None


def _hyper(source: Formula, q: inspect.Parameter) -> Hyper:
    if q.default is not q.empty and type(q.default) not in (bool, int, float):
        source.refuse(source.tree, f"gives `{q.name}` the default {q.default!r}; expected a number or a bool.")
    annotated = [a for a in get_args(q.annotation) if isinstance(a, Domain)]
    named = [d for names, d in _BY_NAME.items() if q.name in names]
    hyper = Hyper(q.name, q.default, [*annotated, *named, Domain()][0])
    if not hyper.boolean and q.default is not q.empty:
        try:
            hyper.check(q.default, None, f"rule `{source.name}`, default")
        except ConfigError as error:
            source.refuse(source.tree, f"has a bad default: {error}")
    return hyper
