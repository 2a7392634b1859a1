"""A step length that satisfies the strong Wolfe conditions. Nocedal & Wright 2006, Algorithms 3.5 and 3.6."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Trial(NamedTuple):
    """A step length, the loss there, and its slope along the direction."""

    length: float
    loss: float
    slope: float


def strong_wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    first: float,
    *,
    c1: float,
    c2: float,
    most: int,
    rounding: float,
) -> Trial | None:
    """The first trial that is low and flat enough, from `start` (length 0, a negative slope); None if there is none.

    Args:
        evaluate: length -> `Trial`; a loss that is not finite counts as too high.
        first: the first length to try.
        c1, c2: a trial is low enough below the line of slope c1 times the starting one, and flat enough if its slope
            is at most c2 times that. After `most` evaluations the lowest trial that is low enough will do.
        rounding: of the loss, relative: a loss that is higher by this alone is not taken for higher.
    """
    slack = rounding * abs(start.loss)
    count = 0

    def tried(length: float) -> Trial:
        nonlocal count
        count += 1
        trial = evaluate(length)
        return trial if math.isfinite(trial.loss + trial.slope) else Trial(length, math.inf, math.nan)

    def high(trial: Trial) -> bool:
        return trial.loss > start.loss + c1 * trial.length * start.slope + slack

    def flat(trial: Trial) -> bool:
        return abs(trial.slope) <= -c2 * start.slope

    before, now = start, tried(first)
    while not (high(now) or (before.length and now.loss > before.loss + slack)):  # Algorithm 3.5
        if flat(now):
            return now
        if now.slope >= 0:
            before, now = now, before
            break
        if count >= most:
            return now if now.loss < start.loss else None
        width = now.length - before.length
        guess = cubic(before, now)
        guess = now.length + 4 * width if math.isnan(guess) or guess <= now.length else guess
        before, now = now, tried(min(max(guess, now.length + 0.5 * width), now.length + 9 * width))
    low, far = before, now
    while count < most:  # Algorithm 3.6: the interval between them holds what is sought, and `low` is the lower end
        width = abs(far.length - low.length)
        if width <= 1e-14 * max(low.length, far.length):
            break
        guess = cubic(low, far)
        left, right = sorted((low.length, far.length))
        if math.isnan(guess) or not left + 0.1 * width <= guess <= right - 0.1 * width:
            guess = min(max(guess, left + 0.1 * width), right - 0.1 * width) if guess == guess else left + 0.5 * width
        trial = tried(guess)
        if high(trial) or trial.loss > low.loss + slack:
            far = trial
            continue
        if flat(trial):
            return trial
        if trial.slope * (far.length - low.length) >= 0:
            far = low
        low = trial
    return low if low.length and low.loss < start.loss else None


def cubic(a: Trial, b: Trial) -> float:
    """Where the cubic through two trials with their slopes has its minimum (equation 3.59); NaN if it has none."""
    if not math.isfinite(a.loss + b.loss):
        return math.nan
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.length - b.length)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), b.length - a.length)
    below = b.slope - a.slope + 2 * d2
    return b.length - (b.length - a.length) * (b.slope + d2 - d1) / below if below else math.nan
