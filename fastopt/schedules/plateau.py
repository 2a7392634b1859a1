"""The one schedule that is fed: smaller when a metric stops improving. Public as `fastopt.schedules.Plateau`."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Annotated, Any, Literal

from fastopt.errors import CheckpointError, ConfigError, listing
from fastopt.schedules.declare import Count, Fraction, Kind, Number, number, one_of, or_none, read, real

_METRIC = Annotated[float, Kind("a number", number)]
_BEST = Annotated[float | None, or_none(real("a finite number", math.isfinite))]
_STATE = {"value": Number, "best": _BEST, "bad": Count, "resting": Count}


@dataclass(eq=False)
class Plateau:
    """`start`, multiplied by `factor` whenever the metric given to `update` has not improved for `patience` updates.

    torch: ReduceLROnPlateau, same names (`floor` is its min_lr), defaults and numbers. An improvement smaller than
    `threshold` is none, the `cooldown` updates after a reduction do not count, one by less than `eps` is not made.
    It is a function of the metrics it saw and not of t, so it has a state: plain numbers and None.
    """

    start: Number
    _: KW_ONLY
    mode: Annotated[Literal["min", "max"], one_of("min", "max")] = "min"
    factor: Fraction = 0.1
    patience: Count = 10
    threshold: Number = 1e-4
    threshold_mode: Annotated[Literal["rel", "abs"], one_of("rel", "abs")] = "rel"
    cooldown: Count = 0
    floor: Number = 0.0
    eps: Number = 1e-8
    value: float = field(init=False)
    _best: float | None = field(init=False, repr=False, default=None)
    _bad: int = field(init=False, repr=False, default=0)
    _resting: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.init:
                setattr(self, f.name, read("Plateau", f.name, f.type, getattr(self, f.name)))
        if self.floor > self.start:
            raise ConfigError(f"schedules.Plateau: `floor` is {self.floor}; expected at most `start`, {self.start}.")
        self.value = self.start

    def __call__(self, t: int) -> float:
        return self.value

    def update(self, metric: Any) -> bool:
        """Take the next metric, any scalar. NaN and infinities never improve. True if this made the value smaller."""
        metric, sign, bar = read("Plateau", "metric", _METRIC, metric), 1 if self.mode == "min" else -1, self._best
        if bar is not None:
            bar = bar * (1 - sign * self.threshold) if self.threshold_mode == "rel" else bar - sign * self.threshold
        if math.isfinite(metric) and (bar is None or sign * metric < sign * bar):
            self._best, self._bad = metric, 0
        else:
            self._bad += 1
        if self._resting:
            self._resting, self._bad = self._resting - 1, 0
        if self._bad <= self.patience:
            return False
        before, self._bad, self._resting = self.value, 0, self.cooldown
        smaller = max(before * self.factor, self.floor)
        if before - smaller > self.eps:
            self.value = smaller
        return self.value < before

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "best": self._best, "bad": self._bad, "resting": self._resting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the `Plateau` that gave `state`. Raises `CheckpointError`, then nothing is changed."""
        if not isinstance(state, Mapping) or state.keys() != _STATE.keys():
            raise CheckpointError(f"schedules.Plateau: the state is {state!r}; expected a dict of {listing(_STATE)}.")
        try:
            value, best, bad, resting = (read("Plateau", f"state[{k}]", kind, state[k]) for k, kind in _STATE.items())
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if not self.floor <= value <= self.start:
            limits = f"from `floor` to `start`, {self.floor} to {self.start}"
            raise CheckpointError(f"schedules.Plateau: the saved value is {value}; expected a number {limits}.")
        self.value, self._best, self._bad, self._resting = value, best, bad, resting
