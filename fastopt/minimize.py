"""The whole optimisation process: full-batch, mini-batch and single-example descent with any rule."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastopt.callbacks import Restarts, Run, assign, copied, hooks, whole
from fastopt.errors import ConfigError, TornStateError, hint
from fastopt.optimizer import Optimizer
from fastopt.rule import Rule


@dataclass(frozen=True, repr=False)
class Result:
    """How a run of `minimize` ended.

    Attributes:
        params: the structure given, updated in place.
        loss, validation: of the last epoch (of the last step, if the run stopped inside its first epoch). In full-batch
            runs they belong to `params` exactly; with mini-batches `loss` is the mean over the epoch's examples, each
            seen on the way. After `KeepBest`: those of the parameters put back.
        best_loss, best_epoch: lowest metric (validation loss, else training loss) after any epoch; 0 is the start.
        best_params: a copy of the parameters of that epoch, with `KeepBest` or `Restarts`; else None.
        history: lists with one entry an epoch: "loss", "lr" (at its first step), "seconds" (since the start), and with
            validation "validation" and "validation.NAME" for the further numbers it returned.
        steps, epochs: how many were done; an epoch cut short by `steps` counts.
        reason: "epochs", "steps", "early stopping", "target", "non-finite loss", "interrupted", or a callback's own word.
        message: the same in a sentence.
        optimizer: with its state, to go on from here.
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
        shown += [f"best_loss={self.best_loss:.6g} (epoch {self.best_epoch})", f"epochs={self.epochs}", f"steps={self.steps}"]
        shown += [f"runs={len(self.runs)}"] if self.runs else []
        return f"Result({', '.join(shown)}, rule={self.optimizer.rule.name}, message={self.message!r})"


class _Stop(Exception):
    def __init__(self, reason: str, message: str = "") -> None:
        self.reason, self.message = reason, message


def minimize(
    loss_and_grad: Callable[..., tuple[Any, Any]],
    params: Any,
    data: Any = None,
    *,
    rule: Rule,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    validation: Callable[[Any], Any] | None = None,
    callbacks: Iterable[Any] = (),
    progress: bool = False,
    groups: Iterable[Any] = (),
    **hyper: Any,
) -> Result:
    """Minimise a loss by `rule`, updating `params` in place, for at most `epochs` epochs and `steps` steps.

    Args:
        loss_and_grad: `(params, *batch) -> (loss, grads)`; loss a number, the mean over the batch's examples; grads of the
            structure of `params` (None for packed parameters whose `.grads` it filled in).
        params: what `fastopt.Optimizer` takes.
        data: one array or a tuple of arrays with the examples along the first axis; or batches that can be iterated over
            once an epoch (`fastopt.minibatches(...)`); or None for a function of the parameters alone.
        batch_size: None for the full set at every step (gradient descent; data order untouched), 1 for single examples.
        epochs, steps: limits, one at least. Without mini-batches an epoch is one step, and the loss is evaluated once
            more at the end so that every number in the history belongs to the parameters after its epoch.
        seed, shuffle: the order of mini-batches.
        validation: `params -> loss`, or a dict of numbers with a key "loss"; called after every epoch, lower is better.
        callbacks: see `fastopt.callbacks`: `EarlyStopping`, `KeepBest`, `Target`, `Restarts`, or your own.
        progress: a live bar (needs rich).
        groups, hyper: for the optimizer. Schedules fed with a metric (`schedules.Plateau`) get it after every epoch.

    A loss that is not finite stops the run before its gradient is applied. Ctrl-C returns what there is.

    Raises:
        ConfigError: for arguments that do not fit together, before anything is changed, or a `loss_and_grad` that returns
            something else. The optimizer's own errors and those of `loss_and_grad` pass through.
    """
    for name, limit in (("epochs", epochs), ("steps", steps)):
        if limit is not None:
            whole("minimize", name, limit, 0)
    if epochs is None and steps is None:
        raise ConfigError("minimize: give `epochs=` or `steps=`; a callback may stop the run earlier.")
    if not isinstance(rule, Rule):
        raise ConfigError(f"minimize: `rule` is {rule!r}; expected a rule such as fastopt.adam.")
    for name in hyper.keys() - rule.schema.keys() - {"device"}:
        options = [*rule.schema, "batch_size", "epochs", "steps", "seed", "shuffle", "validation", "callbacks", "progress"]
        raise ConfigError(f"minimize: `{name}` is no option, and no hyperparameter of `{rule.name}`.{hint(name, options)}")
    batches = _batches(data, batch_size, seed, shuffle)
    groups, callbacks = tuple(groups), list(callbacks)
    restarts = [c for c in callbacks if isinstance(c, Restarts)]
    if len(restarts) > 1:
        raise ConfigError("minimize: `callbacks` holds more than one `Restarts`; give one.")
    callbacks = [c for c in callbacks if not isinstance(c, Restarts)]
    events = hooks(callbacks)
    fed = list({id(v): v for h in (hyper, *(_hyper_of(g) for g in groups)) for v in h.values() if hasattr(v, "observe")}.values())

    def once(events: dict[str, list[Callable[[Run], Any]]]) -> Result:
        optimizer = rule(params, groups=groups, **hyper)
        run = Run(params, optimizer, epochs, steps)
        return _Process(run, loss_and_grad, batches, validation, events, fed).result()

    with _bar(progress) as bar:
        if bar is not None:
            events = hooks([*callbacks, bar])
        return _restarted(restarts[0], once, params, fed) if restarts else once()


