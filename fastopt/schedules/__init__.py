"""Schedules: functions of the step t = 1, 2, ... for any hyperparameter of any rule; a plain function will do as well.

Each is written here as its formula in e = t - 1, the steps already done, which is also the epoch of
`torch.optim.lr_scheduler`: where torch has the same schedule it gives the same numbers. Called with its values, as in
`cosine(peak=3e-4, warmup=2_000, total=100_000)`, it checks them (`ConfigError`) and gives an immutable `Schedule`, a
callable of t that can be compared, hashed, printed and pickled. Past its `total` a schedule stays at its end.

Warm-up over w steps is peak * t / (w + 1): the first step is not wasted on a zero, and step w + 1 is the first at the
peak. It is nanoGPT's, and torch's LinearLR(start_factor=1 / (w + 1), total_iters=w) before the rest in a SequentialLR.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

from fastopt.schedules.declare import (
    NUMBER,
    STEPS,
    Count,
    Fraction,
    Kind,
    Number,
    Positive,
    Schedule,
    Share,
    Steps,
    Switch,
    one_of,
    or_none,
    schedule,
)
from fastopt.schedules.plateau import Plateau

__all__ = [
    "Plateau", "Schedule", "constant", "cosine", "exponential", "join", "linear", "one_cycle", "polynomial",
    "restarts", "step", "warmup", "wsd",
]  # fmt: skip


def _between(a: float, b: float, x: float) -> float:
    """Half a cosine from a (x = 0, exactly) to b (x = 1)."""
    return a + (b - a) * (1 - math.cos(math.pi * x)) / 2


@schedule()
def constant(e: int, /, value: Number) -> float:
    """The same `value` at every step."""
    return value


@schedule()
def linear(e: int, /, start: Number, end: Number, *, total: Steps) -> float:
    """A straight line. torch: LinearLR(start_factor=start / lr, end_factor=end / lr, total_iters=total)."""
    return end if e >= total else start + (end - start) * (e / total)


@schedule()
def polynomial(e: int, /, start: Number, *, total: Steps, power: Number = 1.0, end: Number = 0.0) -> float:
    """A line bent by `power`. torch: PolynomialLR(total_iters=total, power=power), where `end` is 0."""
    return end if e >= total else end + (start - end) * (1 - e / total) ** power


@schedule()
def step(e: int, /, start: Number, *, every: Steps, gamma: Share = 0.1) -> float:
    """Stairs, `every` steps wide. torch: StepLR(step_size=every, gamma=gamma). For unequal stairs `join` constants."""
    return start * gamma ** (e // every)


@schedule(
    "gamma <= 1, or a `total` at which the value is still finite",
    lambda v: (
        v["gamma"] <= 1
        or (v["total"] is not None and v["total"] * math.log(v["gamma"]) + math.log(max(1, v["start"])) < 709)
    ),
)
def exponential(
    e: int, /, start: Number, *, gamma: Number, total: Annotated[int | None, or_none(STEPS)] = None
) -> float:
    """A constant factor a step. torch: ExponentialLR(gamma=gamma).

    A `gamma` above 1 makes the learning-rate range test of Smith 2017, arXiv:1506.01186, sec. 3.3; it needs a `total`.
    """
    return start * gamma ** (e if total is None or e < total else total)


@schedule("`warmup` <= `total`", lambda v: v["warmup"] <= v["total"])
def cosine(e: int, /, peak: Number, *, total: Steps, warmup: Count = 0, floor: Number = 0.0) -> float:
    """Warm-up to `peak`, then half a cosine to `floor`, reached after `total` steps, warm-up included.

    Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 without restarts; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    torch: CosineAnnealingLR(T_max=total - warmup, eta_min=floor), which climbs again after T_max: this stays.
    A floor above the peak is allowed, the curve then rises (weight decay in DINO, 0.04 to 0.4).
    """
    if e < warmup:
        return peak * ((e + 1) / (warmup + 1))
    return floor if e >= total else _between(peak, floor, (e - warmup) / (total - warmup))


@schedule()
def restarts(e: int, /, peak: Number, *, period: Steps, mult: Steps = 1, floor: Number = 0.0) -> float:
    """SGDR: half a cosine from `peak` to `floor` again and again, each period `mult` times the one before. No end.

    Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5. torch: CosineAnnealingWarmRestarts(period, mult, floor).
    """
    if mult == 1:
        e %= period
    while e >= period:  # in whole numbers: with logarithms some restarts come a step late
        e -= period
        period *= mult
    return _between(peak, floor, e / period)


@schedule("`pct_start` <= 0.5 with three phases", lambda v: v["pct_start"] <= 0.5 or not v["three_phase"])
def one_cycle(
    e: int, /, peak: Number, *, total: Steps, pct_start: Fraction = 0.3, div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4, three_phase: Switch = False,
    shape: Annotated[Literal["cosine", "linear"], one_of("cosine", "linear")] = "cosine",
) -> float:  # fmt: skip
    """From peak / div_factor up to `peak` in the first `pct_start` of `total`, then down to that / final_div_factor.

    With `three_phase` it comes down to where it began as fast as it went up, and only then further. Smith & Topin 2018,
    arXiv:1708.07120. torch: OneCycleLR(peak, total, ...), same names, defaults and numbers, `shape` is its
    anneal_strategy; the momentum, which torch moves the other way, can have a schedule of its own.
    """
    low, up, last = peak / div_factor, pct_start * total - 1, total - 1
    if e >= last:
        return low / final_div_factor
    if e <= up:
        a, b, x = low, peak, e / up if up else 1.0
    elif three_phase and e <= 2 * up:
        a, b, x = peak, low, e / up - 1
    else:
        a, up = (low, 2 * up) if three_phase else (peak, up)
        b, x = low / final_div_factor, (e - up) / (last - up)
    return _between(a, b, x) if shape == "cosine" else a + (b - a) * x


@schedule("`warmup` + `decay` <= `total`", lambda v: v["warmup"] + v["decay"] <= v["total"])
def wsd(
    e: int, /, peak: Number, *, total: Steps, decay: Count, warmup: Count = 0, floor: Number = 0.0,
    shape: Annotated[Literal["linear", "sqrt", "cosine"], one_of("linear", "sqrt", "cosine")] = "linear",
) -> float:  # fmt: skip
    """Warm-up, stable, decay: up to `peak` in `warmup` steps, flat, down to `floor` in the last `decay` of `total`.

    Hu et al. 2024, arXiv:2404.06395, sec. 4 (their exponential decay: `join` with `exponential`). `shape` "sqrt" is the
    1 - sqrt(x) that Haegele et al. 2024, arXiv:2405.18392, found best.
    """
    if e < warmup:
        return peak * ((e + 1) / (warmup + 1))
    if e >= total or e < total - decay:
        return floor if e >= total else peak
    x = (e - total + decay) / decay
    if shape == "cosine":
        return _between(peak, floor, x)
    return peak + (floor - peak) * (x if shape == "linear" else math.sqrt(x))


def _part(value: Any) -> Callable[[int], float]:
    if isinstance(value, type) or hasattr(value, "makes_schedules"):
        raise TypeError  # `cosine` where `cosine(...)` was meant
    return cast(Callable[[int], float], value) if callable(value) else constant(value)


Part = Annotated[Any, Kind("a schedule (made by calling one), a function of the step or a number >= 0", _part)]
Parts = Annotated[Any, Kind("a list of schedules, functions or numbers", lambda value: tuple(map(_part, value)))]
Cuts = Annotated[Any, Kind("a list of ints >= 1", lambda value: tuple(map(STEPS.read, value)))]


@schedule()
def warmup(e: int, /, schedule: Part, *, steps: Steps, start: Annotated[float | None, or_none(NUMBER)] = None) -> float:
    """A line up to the first value of `schedule` (or number), which then begins, at its own t = 1, after `steps` steps.

    `start` is the value of step 1; None is the even share 1 / (steps + 1) used everywhere here.
    torch: LinearLR(start_factor=start / lr, total_iters=steps), then the other, in a SequentialLR(milestones=[steps]).
    """
    if e >= steps:
        return schedule(e + 1 - steps)
    peak = schedule(1)
    return peak * ((e + 1) / (steps + 1)) if start is None else start + (peak - start) * (e / steps)


@schedule(
    "one boundary fewer than schedules, each above the one before",
    lambda v: len(v["schedules"]) == len(v["boundaries"]) + 1 and sorted(set(v["boundaries"])) == list(v["boundaries"]),
)
def join(e: int, /, schedules: Parts, boundaries: Cuts) -> float:
    """Schedules (or numbers) one after the other: the first for steps up to boundaries[0], and so on.

    Each counts its own t from 1. torch: SequentialLR(milestones=boundaries).
    """
    i = bisect_right(boundaries, e)
    return schedules[i](e + 1 - boundaries[i - 1] if i else e + 1)
