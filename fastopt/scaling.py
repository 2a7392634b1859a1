"""Dynamic loss scaling: gradients of 16 bits are kept off zero by a loss as large as they allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastopt.errors import CheckpointError, ConfigError

_LARGEST = 2.0**126  # one doubling below the largest float32


class LossScale:
    """What to multiply the loss by, grown while gradients stay finite and cut back when they do not.

    `loss * scale.value` is what to differentiate, and `opt.step(grads, scale=scale)` divides by it again. Micikevicius
    et al. 2018, arXiv:1710.03740, section 3.2, with the defaults of torch.amp.GradScaler.

    Args:
        initial: the first value.
        growth: factor > 1 after `interval` steps in a row with finite gradients.
        backoff: factor in (0, 1) after a step without, which is skipped.

    Attributes:
        value: the scale now; a power of 2 if the three factors are.
        good: finite steps since it changed.
    """

    def __init__(self, initial: float = 2.0**16, *, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000):
        for name, number, fits in (
            ("initial", initial, lambda x: 0 < x <= _LARGEST),
            ("growth", growth, lambda x: 1 < x < math.inf),
            ("backoff", backoff, lambda x: 0 < x < 1),
            ("interval", interval, lambda x: x >= 1 and x == int(x)),
        ):
            if isinstance(number, bool) or not isinstance(number, int | float) or not fits(number):
                expected = "an initial > 0, growth > 1, 0 < backoff < 1 and a whole interval >= 1"
                raise ConfigError(f"LossScale: `{name}` is {number!r}; expected {expected}.")
        self.value: float = float(initial)
        self.good: int = 0
        self.growth, self.backoff, self.interval = float(growth), float(backoff), int(interval)

    def update(self, found: bool) -> None:
        """A step has been taken, or skipped because a gradient that is not finite was `found`. `step` calls it."""
        if found:
            self.value, self.good = max(self.value * self.backoff, 2.0**-126), 0
        elif self.good + 1 == self.interval:
            self.value, self.good = min(self.value * self.growth, _LARGEST), 0
        else:
            self.good += 1

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint: opt.save(path, extra={"scale": scale.state_dict()})."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, saved: Any) -> None:
        """Take over what `state_dict` gave. Raises `CheckpointError` and changes nothing for anything else."""
        fits = isinstance(saved, Mapping) and set(saved) == {"value", "good"}
        if fits:
            value, good = saved["value"], saved["good"]
            if isinstance(value, float) and type(good) is int and 0 < value <= _LARGEST and good >= 0:
                self.value, self.good = value, good
                return
        raise CheckpointError(f"LossScale: {saved!r} is no state of one; expected what state_dict() returned.")

    def __repr__(self) -> str:
        return f"<LossScale {self.value:g}, {self.good} of {self.interval} steps to the next>"
