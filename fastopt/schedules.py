"""Schedules: immutable callables of the step t = 1, 2, ... that give a float, for any hyperparameter of any rule.

A schedule is a frozen dataclass (comparable, hashable, picklable, readable when printed) with the lower-case name of a
function. All count the steps already finished, e = t - 1, which is the epoch of `torch.optim.lr_scheduler`: where torch
has the same schedule the numbers are the same. Past its `total` a schedule stays at its end value.

A warm-up of w steps is peak * t / (w + 1) for t <= w, so the first step is not wasted on a zero and the step after the
ramp is the first at the peak. It is torch's LinearLR(start_factor=1 / (w + 1), total_iters=w), and nanoGPT's.
"""

import math
import numbers
import operator
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias

from fastopt.errors import CheckpointError, ConfigError, hint, listing

Schedule: TypeAlias = Callable[[int], float]
"""Anything that gives the value of step t = 1, 2, ...; a plain function will do."""

__all__ = [
    "Plateau", "Schedule", "constant", "cosine", "exponential", "join", "linear", "one_cycle", "polynomial",
    "restarts", "step", "warmup", "wsd",
]  # fmt: skip


def _reject(owner: object, name: str, expected: str) -> ConfigError:
    value = getattr(owner, name)
    return ConfigError(
        f"schedules.{type(owner).__name__}: `{name}` is {value!r} ({type(value).__name__}); expected {expected}."
    )


def _numbers(
    owner: object,
    *names: str,
    expected: str = "a finite number >= 0",
    ok: Callable[[float], bool] = lambda x: x >= 0,
) -> None:
    """Turn these fields into Python floats, or raise."""
    for name in names:
        value = getattr(owner, name)
        try:
            number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and ok(number)):
            raise _reject(owner, name, expected)
        object.__setattr__(owner, name, number)


def _steps(owner: object, *names: str, low: int = 1, high: int = 2**53, why: str = "") -> None:
    """Turn these fields into Python ints, or raise."""
    for name in names:
        value = getattr(owner, name)
        try:
            count = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            count = -1
        if not low <= count <= high:
            limit = f"an int from {low} to {high}{why}" if high < 2**53 else f"an int >= {low}"
            raise _reject(owner, name, f"{limit} (steps)")
        object.__setattr__(owner, name, count)


def _choice(owner: object, name: str, valid: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in valid:
        raise _reject(owner, name, f"one of {listing(valid)}.{hint(value, valid)}".rstrip("."))


def _schedule(owner: object, name: str, value: Any) -> Schedule:
    """A number becomes `constant`."""
    if callable(value) and not isinstance(value, type):
        return value
    if isinstance(value, numbers.Real):
        return constant(value)  # type: ignore[arg-type]
    kind = f"the class {value.__name__}, not called" if isinstance(value, type) else f"{value!r}"
    raise ConfigError(
        f"schedules.{type(owner).__name__}: `{name}` is {kind}; expected a schedule (a callable of the step) or a number."
    )


@dataclass(frozen=True, slots=True)
class constant:
    """The same `value` at every step."""

    value: float

    def __post_init__(self) -> None:
        _numbers(self, "value")

    def __call__(self, t: int) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class linear:
    """start + (end - start) * e / total. torch: LinearLR(start_factor=start / lr, end_factor=end / lr, total_iters=total)."""

    start: float
    end: float
    _: KW_ONLY
    total: int

    def __post_init__(self) -> None:
        _numbers(self, "start", "end")
        _steps(self, "total")

    def __call__(self, t: int) -> float:
        e = t - 1
        return self.end if e >= self.total else self.start + (self.end - self.start) * (e / self.total)


@dataclass(frozen=True, slots=True)
class polynomial:
    """end + (start - end) * (1 - e / total)**power. torch: PolynomialLR(total_iters=total, power=power), whose end is 0."""

    start: float
    _: KW_ONLY
    total: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _numbers(self, "start", "end", "power")
        _steps(self, "total")

    def __call__(self, t: int) -> float:
        e = t - 1
        return self.end if e >= self.total else self.end + (self.start - self.end) * (1 - e / self.total) ** self.power


@dataclass(frozen=True, slots=True)
class step:
    """start * gamma**(e // every): a staircase of `every` steps a stair. torch: StepLR(step_size=every, gamma=gamma).

    Stairs of unequal width are a `join` of constants.
    """

    start: float
    _: KW_ONLY
    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _numbers(self, "start")
        _numbers(self, "gamma", expected="a number from 0 to 1", ok=lambda x: 0 <= x <= 1)
        _steps(self, "every")

    def __call__(self, t: int) -> float:
        return self.start * self.gamma ** ((t - 1) // self.every)


@dataclass(frozen=True, slots=True)
class exponential:
    """start * gamma**e. torch: ExponentialLR(gamma=gamma).

    With `total` the value stays where it is after `total` steps; a gamma above 1 needs it (the learning-rate range
    test of Smith 2017, arXiv:1506.01186, grows like this).
    """

    start: float
    _: KW_ONLY
    gamma: float
    total: int | None = None

    def __post_init__(self) -> None:
        _numbers(self, "start", "gamma")
        if self.total is not None:
            _steps(self, "total")
        if self.gamma > 1 and (self.total is None or self.total * math.log(self.gamma) > 700):
            raise _reject(self, "gamma", f"a number <= 1, or a `total` that keeps the value finite; total={self.total}")

    def __call__(self, t: int) -> float:
        return self.start * self.gamma ** (t - 1 if self.total is None else min(t - 1, self.total))


@dataclass(frozen=True, slots=True)
class cosine:
    """Linear warm-up to `peak`, then half a cosine down to `floor`: floor + (peak - floor) * (1 + cos(pi * x)) / 2,
    x = (e - warmup) / (total - warmup).

    Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts; the warm-up is Goyal et al. 2017,
    arXiv:1706.02677. torch: CosineAnnealingLR(T_max=total - warmup, eta_min=floor), after the LinearLR named above in a
    SequentialLR(milestones=[warmup]); torch climbs again after T_max, this stays at `floor`. `total` counts the warm-up.
    A floor above the peak is allowed: the curve then rises (weight decay in DINO, 0.04 to 0.4).
    """

    peak: float
    _: KW_ONLY
    total: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _numbers(self, "peak", "floor")
        _steps(self, "total")
        _steps(self, "warmup", low=0, high=self.total, why=" = `total`")

    def __call__(self, t: int) -> float:
        e = t - 1
        if e < self.warmup:
            return self.peak * (t / (self.warmup + 1))
        if e >= self.total:
            return self.floor
        x = (e - self.warmup) / (self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * x)) / 2


@dataclass(frozen=True, slots=True)
class restarts:
    """SGDR: `cosine` from `peak` to `floor` over `period` steps, again and again, each period `mult` times the last.

    Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5. torch: CosineAnnealingWarmRestarts(T_0=period, T_mult=mult,
    eta_min=floor). It has no end.
    """

    peak: float
    _: KW_ONLY
    period: int
    mult: int = 1
    floor: float = 0.0

    def __post_init__(self) -> None:
        _numbers(self, "peak", "floor")
        _steps(self, "period", "mult")

    def __call__(self, t: int) -> float:
        e, period = t - 1, self.period
        if self.mult == 1:
            e %= period
        while e >= period:  # whole numbers: a logarithm is off by one period at some restarts
            e -= period
            period *= self.mult
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * e / period)) / 2


@dataclass(frozen=True, slots=True)
class one_cycle:
    """Up from peak / div_factor to `peak` in the first `pct_start` of `total`, then down to that start / final_div_factor.

    `three_phase` comes down to the start as fast as it went up, and only then further. Smith & Topin 2018,
    arXiv:1708.07120; the numbers, `shape` and defaults are those of torch's OneCycleLR(max_lr=peak, total_steps=total).
    Torch also moves the momentum: give the rule a second schedule for that.
    """

    peak: float
    _: KW_ONLY
    total: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    shape: Literal["cosine", "linear"] = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        _numbers(self, "peak")
        _numbers(self, "div_factor", "final_div_factor", expected="a finite number > 0", ok=lambda x: x > 0)
        _steps(self, "total")
        _choice(self, "shape", ("cosine", "linear"))
        if not isinstance(self.three_phase, bool):
            raise _reject(self, "three_phase", "True or False")
        if self.three_phase:
            _numbers(self, "pct_start", expected="a number in [0, 0.5]: two of three phases", ok=lambda x: 0 <= x <= 0.5)
        else:
            _numbers(self, "pct_start", expected="a number in [0, 1)", ok=lambda x: 0 <= x < 1)

    def __call__(self, t: int) -> float:
        e, last, up = t - 1, self.total - 1, self.pct_start * self.total - 1
        a = self.peak / self.div_factor
        if e <= up:
            b, x = self.peak, e / up if up else 1.0
        elif self.three_phase and e <= 2 * up:
            a, b, x = self.peak, a, (e - up) / up
        else:
            b = a / self.final_div_factor
            if e >= last:
                return b
            if self.three_phase:
                up *= 2
            else:
                a = self.peak
            x = (e - up) / (last - up)
        return a + (b - a) * (x if self.shape == "linear" else (1 - math.cos(math.pi * x)) / 2)


@dataclass(frozen=True, slots=True)
class wsd:
    """Warm-up, stable, decay: up to `peak` in `warmup` steps, flat, down to `floor` in the last `decay` of `total`.

    With x the part of the decay that is done, the way from `peak` to `floor` left is 1 - x ("linear"), 1 - sqrt(x)
    ("sqrt", the best of Haegele et al. 2024, arXiv:2405.18392) or (1 + cos(pi x)) / 2 ("cosine").
    Hu et al. 2024, arXiv:2404.06395, sec. 4 (they decay exponentially: `join` with `exponential`).
    """

    peak: float
    _: KW_ONLY
    total: int
    decay: int
    warmup: int = 0
    floor: float = 0.0
    shape: Literal["linear", "sqrt", "cosine"] = "linear"

    def __post_init__(self) -> None:
        _numbers(self, "peak", "floor")
        _steps(self, "total")
        _steps(self, "warmup", low=0, high=self.total, why=" = `total`")
        _steps(self, "decay", low=0, high=self.total - self.warmup, why=" = `total` - `warmup`")
        _choice(self, "shape", ("linear", "sqrt", "cosine"))

    def __call__(self, t: int) -> float:
        e = t - 1
        if e < self.warmup:
            return self.peak * (t / (self.warmup + 1))
        x = e - self.total + self.decay
        if x <= 0 and e < self.total:
            return self.peak
        if e >= self.total:
            return self.floor
        x /= self.decay
        left = 1 - x if self.shape == "linear" else 1 - math.sqrt(x)
        if self.shape == "cosine":
            left = (1 + math.cos(math.pi * x)) / 2
        return self.floor + (self.peak - self.floor) * left
