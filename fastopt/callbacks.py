"""What may watch and steer `fastopt.minimize`: early stopping, keeping the best parameters, targets, restarts.

A callback is any object with one or more of these methods, each taking the `Run`; a plain function is an `on_epoch`.

    on_start(run)   before the first step
    on_step(run)    after every step
    on_epoch(run)   after every epoch, when `run.metric` is known and belongs to `run.params`
    on_end(run)     after on_start, however the run stopped (but not when an exception leaves `minimize`)

The first three return None (or False) to go on; to stop, a string, the reason (`run.message` may say more), or True.
Anything else is a `ConfigError`. Every callback hears an event before the run stops. One that keeps state resets it in
`on_start`, since `Restarts` makes several runs.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.errors import ConfigError
from fastopt.params import assign, copied, foreign, survey

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer

EVENTS = ("on_start", "on_step", "on_epoch", "on_end")


@dataclass(repr=False)
class Run:
    """A run of `minimize` while it goes on.

    Attributes:
        params, optimizer: what is being trained, and by what. `optimizer.set(lr=...)` works from a callback.
        grads: gradients of the last step; in full-batch runs those at `params`, not applied yet.
        loss: of the last step; in `on_epoch` the epoch's (see `minimize`).
        validation: the last validation loss; None where there is no validation.
        step, epoch: steps and epochs done. steps, epochs: their limits, None where not given.
        best_loss, best_epoch: lowest `metric` of any epoch and when; `improved`: whether this epoch was it.
        best_params: a copy of the parameters of that epoch, where `KeepBest` is at work.
        history: see `Result`.
        message: set by a callback that stops the run, for the result. reason: the first one that a callback gave.
        batches: what is iterated over once an epoch, None in full-batch runs. callbacks: all of them.
        so_far: of a mini-batch epoch that is under way: learning rate at its start, sum of losses, examples seen.
        began: when, in `time.perf_counter()`.
    """

    params: Any
    optimizer: "Optimizer"
    epochs: int | None = None
    steps: int | None = None
    grads: Any = None
    loss: float = math.nan
    validation: float | None = None
    step: int = 0
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_params: Any = None
    improved: bool = False
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "lr": [], "seconds": []})
    message: str = ""
    reason: str = ""
    batches: Any = None
    callbacks: list[Any] = field(default_factory=list)
    so_far: tuple[float, float, int] | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def metric(self) -> float:
        """The validation loss where there is validation, else the training loss. Lower is better."""
        return self.loss if self.validation is None else self.validation

    def __repr__(self) -> str:
        place = f"epoch={self.epoch}, step={self.step}, loss={self.loss:.6g}, validation={self.validation}"
        return f"Run({place}, best_loss={self.best_loss:.6g} (epoch {self.best_epoch}))"

    def measured(self) -> None:
        """Compare a new `metric`, which belongs to `params`, with the best so far. A NaN is never the best."""
        self.improved = self.metric < self.best_loss
        if self.improved:
            self.best_loss, self.best_epoch = self.metric, self.epoch


@dataclass
class EarlyStopping:
    """Stop when the metric has not fallen by more than `min_delta` for `patience` epochs: "early stopping".

    The metric is the validation loss, or without validation the training loss. Together with `KeepBest()` the run
    ends at the best parameters instead of the last.
    """

    patience: int = 10
    min_delta: float = 0.0
    _best: float = field(default=math.inf, init=False, repr=False)
    _since: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("EarlyStopping", "patience", self.patience, 1)
        finite("EarlyStopping", "min_delta", self.min_delta, 0.0)

    def on_start(self, run: Run) -> None:
        self._best, self._since = math.inf, 0

    def on_epoch(self, run: Run) -> str | None:
        if run.metric < self._best - self.min_delta:
            self._best, self._since = run.metric, 0
            return None
        self._since += 1
        if self._since < self.patience:
            return None
        run.message = f"no improvement of more than {self.min_delta:g} over {self._best:.6g} for {self.patience} epochs"
        return "early stopping"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._since = float(state["best"]), int(state["since"])


@dataclass
class KeepBest:
    """Copy the parameters whenever the metric is the lowest so far, and end the run with that copy put back in place.

    If no epoch had a finite metric, the parameters are put back to where the run began. The optimizer's state stays
    that of the last step. `result.loss` and `result.validation` are those of the parameters put back.
    """

    _scores: tuple[float, float | None] = field(default=(math.nan, None), init=False, repr=False)

    def on_start(self, run: Run) -> None:
        self._keep(run)

    def on_epoch(self, run: Run) -> None:
        if run.improved:
            self._keep(run)

    def on_end(self, run: Run) -> None:
        assign(run.params, run.best_params)
        run.loss, run.validation = self._scores

    def state_dict(self) -> dict[str, Any]:
        """Without the parameters, which are the run's."""
        return {"scores": list(self._scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        loss, validation = state["scores"]
        self._scores = loss, validation

    def _keep(self, run: Run) -> None:
        # a new copy each time: overwriting the old one would leave a mixture of the two if Ctrl-C came meanwhile
        run.best_params = copied(run.params)
        self._scores = run.loss, run.validation


@dataclass(frozen=True)
class Target:
    """Stop when the metric is at or below `loss`: "target"."""

    loss: float

    def __post_init__(self) -> None:
        finite("Target", "loss", self.loss, -math.inf)

    def on_start(self, run: Run) -> str | None:
        return self.on_epoch(run)

    def on_epoch(self, run: Run) -> str | None:
        if run.metric <= self.loss:
            run.message = f"{run.metric:.6g} is at or below {self.loss:g}"
            return "target"
        return None


@dataclass(frozen=True, repr=False)
class Restarts:
    """Against local minima: `n` further whole runs from other starting points, of which the best is kept.

    The points are the first one plus normal noise of standard deviation `perturb` (in the parameters' own unit; frozen
    parameters stay), or whatever `redraw(rng)` returns: arrays of the same structure and shapes. Each run has a fresh
    optimizer. Best is the lowest final metric (with `KeepBest` the lowest of any epoch).
    """

    n: int
    perturb: float | None = None
    redraw: Callable[[np.random.Generator], Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole("Restarts", "n", self.n, 1)
        if (self.perturb is None) == (self.redraw is None):
            raise ConfigError("Restarts: give either `perturb` (a standard deviation) or `redraw` (rng -> parameters).")
        if self.perturb is not None:
            finite("Restarts", "perturb", self.perturb, 0.0)

    def __repr__(self) -> str:
        how = f"perturb={self.perturb!r}"
        if self.redraw is not None:  # its own repr is an address
            how = f"redraw={getattr(self.redraw, '__name__', type(self.redraw).__name__)}"
        return f"Restarts(n={self.n}, {how}, seed={self.seed})"

    def place(self, params: Any, start: Any, rng: np.random.Generator, frozen: Collection[str] = ()) -> None:
        """Write the next starting point into `params`."""
        if self.redraw is not None:
            assign(params, self.redraw(rng), "Restarts: what `redraw` returned")
            return
        assign(params, start)
        tree, arrays = survey(params)
        for name, array in zip(tree.names(), arrays, strict=True):
            if name not in frozen:
                view = foreign(array, name)
                view += (self.perturb * rng.standard_normal(view.shape)).astype(view.dtype)


def hooks(callbacks: Iterable[Any]) -> dict[str, list[Callable[[Run], Any]]]:
    """Event -> what to call. Raises `ConfigError` for an object that has none of the methods."""
    found: dict[str, list[Callable[[Run], Any]]] = {event: [] for event in EVENTS}
    for one in sorted(callbacks, key=lambda c: bool(getattr(c, "last", False))):
        methods = {event: getattr(one, event) for event in EVENTS if hasattr(one, event)}
        if isinstance(one, type) or not (methods or callable(one)):
            remedy = f"; write {one.__name__}(...)" if isinstance(one, type) else ""
            plain = isinstance(one, type | str | int | float | None)  # else a repr may be an address, or pages
            what = repr(one) if plain else f"an object of class {type(one).__name__}"
            raise ConfigError(f"minimize: {what} is not a callback; it needs one of {', '.join(EVENTS)}{remedy}.")
        for event, method in (methods or {"on_epoch": one}).items():
            found[event].append(method)
    return found


def whole(who: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{who}: `{name}` is {value!r}; expected an int >= {least}.")


def finite(who: str, name: str, value: Any, least: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:
        bound = f" >= {least:g}" if math.isfinite(least) else ""
        raise ConfigError(f"{who}: `{name}` is {value!r}; expected a finite number{bound}.")
