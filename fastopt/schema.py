"""What a rule is: its hyperparameters and their domains, its state, and the formula itself."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from fastopt.errors import ConfigError, hint
from fastopt.formula import Formula

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer

REQUIRED = inspect.Parameter.empty
MATRIX = "matrix"  # a formula that takes it is told, per parameter, whether that is a matrix, as it is told `t`


@dataclass(frozen=True)
class Domain:
    """The interval of finite values a hyperparameter may take; `whole`: the integers there."""

    low: float = -math.inf
    high: float = math.inf
    open_high: bool = False
    open_low: bool = False
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        below = value < self.high if self.open_high else value <= self.high
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and below and (not self.whole or value == math.floor(value))

    def __str__(self) -> str:
        if self.whole:
            return f"an integer in [{self.low:.0f}, {self.high:.0f}]"
        if self.high < math.inf:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"a number in {left}{self.low:g}, {self.high:g}{right}"
        more = ">" if self.open_low else ">="
        return f"a finite number {more} {self.low:g}" if self.low > -math.inf else "a finite number"


# For annotations of hyperparameters whose name does not say it already: `alpha: Fraction = 0.99`.
NonNegative = Annotated[float, Domain(low=0.0)]
Fraction = Annotated[float, Domain(low=0.0, high=1.0, open_high=True)]
OpenFraction = Annotated[float, Domain(low=0.0, high=1.0, open_high=True, open_low=True)]


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


# What every rule's optimizer takes besides hyperparameters, see `Optimizer`.
OPTIONS: dict[str, Any] = {
    "maximize": False,
    "groups": (),
    "device": "auto",
    "precise": False,
    "sparse": "lazy",
    "state_dtype": None,
    "rounding": "stochastic",
    "master": None,
    "memory": None,
    "state_path": None,
    "nonfinite": "ignore",
    "zero_grads": False,
    "copy_out": None,
}


class _Signature:
    """`inspect.signature` of a rule is its optimizer's; of the class `Rule` itself, the usual one."""

    def __get__(self, rule: Any, owner: type) -> inspect.Signature:
        if rule is None:
            raise AttributeError("__signature__")
        return rule._signature()


# What other libraries call it.
_ALIASES = {
    **dict.fromkeys(("learning_rate", "learning_rates", "alpha", "step_size", "eta"), "lr"),
    **dict.fromkeys(("betas", "b1", "beta_1"), "beta1"),
    **dict.fromkeys(("b2", "beta_2"), "beta2"),
    **dict.fromkeys(("wd", "decay", "l2", "weight_decay_rate"), "weight_decay"),
    **dict.fromkeys(("epsilon",), "eps"),
    **dict.fromkeys(("mu", "m"), "momentum"),
    **dict.fromkeys(("rho", "decay_rate"), "alpha"),
}


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule. `rule(params, **hyper)` is an `Optimizer`; `rule.formula(p, g, *state, **hyper)` one step.

    Attributes:
        name: the function's name.
        formula: the function itself, of scalars or (element by element) of NumPy arrays.
        state: names of the state buffers, in the order of the signature. Which of them exist depends on the switches.
        schema: the hyperparameters by name.
        init: how a state starts: a number, the name of a hyperparameter, or "p" for a copy of the parameter. Default 0.
        switches: hyperparameters whose truth chooses the kernel and its state; fixed when an optimizer is built. A
            formula may also take `matrix`, which is true for 2-d parameters.
        timed: whether the formula names the step `t`.
        view: the rule whose new p is what `opt.eval()` shows instead of p, such as an average, or None.
    """

    name: str
    formula: Callable[..., Any]
    source: Formula
    state: tuple[str, ...]
    schema: Mapping[str, Hyper]
    init: Mapping[str, float | str]
    switches: tuple[str, ...]
    timed: bool
    view: Rule | None = None

    @property
    def hyper(self) -> dict[str, Any]:
        """Name -> default; `...` where the caller must give one."""
        return {n: ... if h.default is REQUIRED else h.default for n, h in self.schema.items()}

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.formula.__doc__

    __signature__ = _Signature()

    def _signature(self) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(n, kind, default=h.default) for n, h in self.schema.items()]
        common = [inspect.Parameter(n, kind, default=d) for n, d in OPTIONS.items()]
        return inspect.Signature([inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY), *own, *common])

    def __call__(self, params: Any, *more: Any, **options: Any) -> Optimizer:
        """`Optimizer(self, params, **options)`."""
        if more:
            names = ", ".join(f"{n}=..." for n in list(self.schema)[:2])
            raise TypeError(f"{self.name}() takes the parameters alone by position; name the rest: {names}.")
        from fastopt.optimizer import Optimizer  # the one arrow that points up: a rule given parameters is an optimizer

        return Optimizer(self, params, **options)

    def unknown(self, name: str) -> ConfigError:
        has = ", ".join(self.schema) or "none"
        alias = _ALIASES.get(name)
        close = f" Did you mean `{alias}`?" if alias in self.schema else hint(name, self.schema)
        return ConfigError(f"unknown hyperparameter `{name}` for `{self.name}`; it has {has}.{close}")

    def __repr__(self) -> str:
        shown = ", ".join(n if h.default is REQUIRED else f"{n}={h.default!r}" for n, h in self.schema.items())
        return f"<rule {self.name}({', '.join(('p', 'g', *self.state))}, *, {shown})>"
