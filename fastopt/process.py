"""One run of `minimize`: what happens in a step, in an epoch and at the end, and what is reported."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt.callbacks import Run
from fastopt.errors import ConfigError, listing
from fastopt.optimizer import Optimizer
from fastopt.schedules import Plateau


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """How a run of `minimize` ended.

    Attributes:
        params: the structure given, updated in place.
        loss, validation: of the last epoch (of the last step, if the run stopped inside its first epoch). In full-batch
            runs they belong to `params` (unless Ctrl-C came between a step and its loss); with mini-batches `loss` is
            the mean over the epoch's examples, each seen on the way. After `KeepBest`: those of what was put back.
        best_loss, best_epoch: lowest metric (validation loss, else training loss) after any epoch; 0 is the start.
        best_params: a copy of the parameters of that epoch, with `KeepBest` or `Restarts`; else None.
        history: lists with one entry an epoch: "loss", "lr" (at its first step), "seconds" (cumulative: from the start
            of the run to the end of the epoch), with validation also "validation", and "validation.NAME" for the
            further numbers it returned.
        steps, epochs: how many were done; an epoch cut short by `steps` counts.
        reason: "epochs", "steps", "early stopping", "target", "non-finite loss", "interrupted", with lbfgs also
            "converged" and "line search"; or what a callback returned.
        message: the same in a sentence.
        optimizer: with its state, to go on from here (with lbfgs: of the class `fastopt.lbfgs.Search`).
        runs: with `Restarts`, the final metric of every run.
    """

    params: Any
    loss: float
    validation: float | None
    best_loss: float
    best_epoch: int
    best_params: Any
    history: dict[str, list[float]]
    steps: int
    epochs: int
    reason: str
    message: str
    optimizer: Optimizer
    runs: tuple[float, ...] = field(default=())

    @property
    def metric(self) -> float:
        return self.loss if self.validation is None else self.validation

    def __repr__(self) -> str:
        shown = [f"reason={self.reason!r}", f"loss={self.loss:.6g}"]
        if self.validation is not None:
            shown.append(f"validation={self.validation:.6g}")
        shown += [
            f"best_loss={self.best_loss:.6g} (epoch {self.best_epoch})",
            f"epochs={self.epochs}",
            f"steps={self.steps}",
        ]
        shown += [f"runs={len(self.runs)}"] if self.runs else []
        return f"Result({', '.join(shown)}, rule={self.optimizer.rule.name}, message={self.message!r})"


class _Stop(Exception):
    def __init__(self, reason: str, message: str = "") -> None:
        self.reason, self.message = reason, message


@dataclass
class Process:
    """One run: what happens in a step, in an epoch and at the end."""

    run: Run
    loss_and_grad: Callable[..., tuple[Any, Any]]
    validation: Callable[[Any], Any] | None
    events: dict[str, list[Callable[[Run], Any]]]
    plateaus: list[Plateau]
    sam: float | None = None  # how far uphill gradients are taken
    finite: float = math.nan
    started: bool = False
    keep: bool = False

    def result(self, batches: Iterable[Any], full: bool) -> Result:
        run = self.run
        try:
            (self.full if full else self.epochs)(batches)
            reason = "epochs" if run.epoch == run.epochs else "steps"
            message = f"{run.epoch} epochs and {run.step} steps done"
        except _Stop as stop:
            reason, message = stop.reason, stop.message or stop.reason
        except KeyboardInterrupt:
            run.step = run.optimizer.t  # the kernel's own count: ours may have missed the last step
            reason, message = "interrupted", f"interrupted after step {run.step}, in epoch {run.epoch + 1}"
            if run.optimizer.torn:
                message += (
                    f"; step {run.step + 1} was cut in two: some parameters have taken it and some have not, and the "
                    "optimizer refuses further steps until it is loaded with a saved state"
                )
        if self.started:
            self.tell("on_end")
        history = {name: list(values) for name, values in run.history.items()}
        return Result(
            params=run.params,
            loss=run.loss,
            validation=run.validation,
            best_loss=run.best_loss,
            best_epoch=run.best_epoch,
            best_params=run.best_params,
            history=history,
            steps=run.step,
            epochs=run.epoch,
            reason=reason,
            message=message,
            optimizer=run.optimizer,
        )

    def full(self, batch: Any) -> None:
        """Every step sees everything. The gradient for the next step comes with the loss after this one."""
        run = self.run
        # validation and callbacks come between a gradient and its step: they may call a loss that reuses its arrays
        self.keep = self.validation is not None or any(self.events.values())
        self.evaluate(batch)
        run.measured()
        self.tell("on_start")
        if run.step:  # a callback has put an earlier run back in place
            self.evaluate(batch)
        while self.more():
            lr = self.rate()
            self.step(batch)
            self.evaluate(batch)
            self.tell("on_step")
            self.close(lr)

    def epochs(self, batches: Iterable[Any]) -> None:
        run = self.run
        self.tell("on_start")
        while self.more():
            lr, total, seen = run.so_far or (self.rate(), 0.0, 0)
            for batch in batches:
                batch = batch if isinstance(batch, tuple | list) else (batch,)
                self.evaluate(batch)
                self.step(batch)
                n = len(batch[0]) if getattr(batch[0], "ndim", 0) else 1
                total, seen = total + run.loss * n, seen + n
                run.so_far = lr, total, seen
                self.tell("on_step")
                if run.step == run.steps:
                    break
            if not seen:
                raise ConfigError("minimize: `data` gave no batch; is there fewer than one batch of examples?")
            run.loss, run.so_far = total / seen, None
            self.close(lr)

    def more(self) -> bool:
        run = self.run
        return (run.epochs is None or run.epoch < run.epochs) and (run.steps is None or run.step < run.steps)

    def rate(self) -> float:
        return self.run.optimizer.hyper().get("lr", math.nan)

    def evaluate(self, batch: Iterable[Any]) -> None:
        run = self.run
        answer = self.loss_and_grad(run.params, *batch)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise ConfigError(f"minimize: `loss_and_grad` returned a {type(answer).__name__}; expected (loss, grads).")
        run.loss, run.grads = number(answer[0], "minimize: the loss of `loss_and_grad`"), answer[1]
        if math.isfinite(run.loss):
            self.finite = run.loss
            if self.keep:
                run.grads = _copy(getattr(run.params, "grads", None) if run.grads is None else run.grads)
            return
        raise _Stop(
            "non-finite loss",
            f"the loss is {run.loss} at step {run.step + 1}, epoch {run.epoch + 1}; the last finite one was "
            f"{self.finite:.6g}. The gradient was not applied: the parameters are those after step {run.step}. "
            "Try a lower learning rate, or bound the loss where it can overflow",
        )

    def uphill(self, batch: Iterable[Any]) -> None:
        """Take the gradient where the loss rises most, `sam` away; the loss stays that of the parameters."""
        run, loss = self.run, self.run.loss
        assert self.sam is not None
        run.optimizer.perturb(run.grads, rho=self.sam)
        try:
            self.evaluate(batch)
        except BaseException:
            run.optimizer.unperturb()
            raise
        run.loss = loss

    def step(self, batch: Iterable[Any]) -> None:
        if self.sam is not None:
            self.uphill(batch)
        if "loss" in self.run.optimizer.rule.schema:  # a step from the value of the loss, such as polyak's
            self.run.optimizer.set(loss=self.run.loss)
        self.run.optimizer.step(self.run.grads)
        self.run.step += 1

    def close(self, lr: float) -> None:
        """The end of an epoch, with its loss in `run.loss`."""
        run = self.run
        entry = {"loss": run.loss, "lr": lr}
        if self.validation is not None:
            scores = self.validation(run.params)
            scores = scores if isinstance(scores, Mapping) else {"loss": scores}
            if "loss" not in scores:
                raise ConfigError(f"minimize: `validation` returned {listing(scores)}; the key `loss` is missing.")
            numbers = {name: number(value, f"minimize: `{name}` of `validation`") for name, value in scores.items()}
            entry["validation"] = run.validation = numbers.pop("loss")
            entry |= {f"validation.{name}": value for name, value in numbers.items()}
        entry["seconds"] = time.perf_counter() - run.began
        for name, value in entry.items():
            run.history.setdefault(name, []).append(value)
        run.epoch += 1
        run.measured()
        for plateau in self.plateaus:
            plateau.update(run.metric)
        self.tell("on_epoch")

    def tell(self, event: str) -> None:
        wrong = None
        for hook in self.events[event]:
            answer = hook(self.run)
            if event == "on_end" or answer is None:
                continue
            if not isinstance(answer, str | bool | np.bool_):
                wrong = wrong or ConfigError(
                    f"minimize: the callback {_name(hook)} returned {answer!r} ({type(answer).__name__}) at `{event}`; "
                    "expected None to go on, or True or a string, the reason, to stop."
                )
            elif answer and not self.run.reason:
                self.run.reason = str(answer) if isinstance(answer, str) else "callback"
        self.started = True  # from the end of on_start on, on_end is owed
        if wrong:
            raise wrong
        if self.run.reason and event != "on_end":
            raise _Stop(self.run.reason, self.run.message)


def _name(hook: Any) -> str:
    """`Class.method` or `function`, without the address that a repr shows."""
    return f"`{getattr(hook, '__qualname__', type(hook).__name__)}`"


def _copy(grads: Any) -> Any:
    """Gradients of any structure, the arrays copied."""
    if isinstance(grads, Mapping):
        return {key: _copy(value) for key, value in grads.items()}
    if isinstance(grads, Sequence):
        return [_copy(value) for value in grads]
    return None if grads is None else np.array(grads)


def number(value: Any, what: str) -> float:
    """A real number, or an array of one, as a float; NaN and infinities pass."""
    try:
        return float(value) if np.ndim(value) == 0 else float(np.asarray(value).item())
    except (TypeError, ValueError, OverflowError):
        text = f"an array of shape {np.shape(value)}" if np.ndim(value) else repr(value)
        raise ConfigError(f"{what} is {text}; expected a real number.") from None
