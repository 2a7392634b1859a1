"""The whole optimisation process: full-batch, mini-batch and single-example descent with any rule."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from fastopt.callbacks import Restarts, Run, hooks, whole
from fastopt.checkpoint.callback import Checkpoint
from fastopt.data import minibatches
from fastopt.errors import ConfigError, hint, listing
from fastopt.group import Group
from fastopt.lbfgs import Descent, lbfgs
from fastopt.params import assign, copied, survey
from fastopt.process import Process, Result
from fastopt.schedules import Plateau
from fastopt.schedules.declare import Schedule
from fastopt.schema import OPTIONS, Rule


def minimize(
    loss_and_grad: Callable[..., tuple[Any, Any]],
    params: Any,
    data: Any = None,
    *,
    rule: Rule | lbfgs,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    validation: Callable[[Any], Any] | None = None,
    callbacks: Any = (),
    progress: bool = False,
    sam: float | None = None,
    groups: Group | Iterable[Group] = (),
    **hyper: Any,
) -> Result:
    """Minimise a loss by `rule`, updating `params` in place, for at most `epochs` epochs and `steps` steps.

    Args:
        loss_and_grad: `(params, *batch) -> (loss, grads)`; loss a number, the mean over the batch's examples; grads of
            the structure of `params` (None for packed parameters whose `.grads` it filled in).
        params: what `fastopt.Optimizer` takes.
        data: one array or a tuple of arrays with the examples along the first axis; or batches that can be iterated
            over once an epoch (`fastopt.minibatches(...)`); or None for a function of the parameters alone.
        batch_size: None for the full set at every step (gradient descent; data order untouched), 1 for single examples.
        rule: such as `fastopt.adam`; or `fastopt.lbfgs(...)`, which takes all data at every step.
        epochs, steps: limits, one at least. Without mini-batches an epoch is one step, and the loss is evaluated once
            more at the end so that every number in the history belongs to the parameters after its epoch.
        seed, shuffle: the order of mini-batches.
        validation: `params -> loss`, or a dict of numbers with a key "loss"; called after every epoch, lower is better.
        callbacks: one or several: `EarlyStopping`, `KeepBest`, `Target`, `Restarts`, `Checkpoint`, or your own, a
            function `on_epoch` or an object with any of `on_start(run)`, `on_step(run)`, `on_epoch(run)` and
            `on_end(run)`; to stop the run they return a string, the reason, or True, else None. `run` is a
            `fastopt.callbacks.Run`.
        progress: a live bar (needs rich).
        sam: sharpness-aware minimisation with this rho, see `Optimizer.perturb`; two gradients a step.
        groups, hyper: for the optimizer, but for `maximize`. Schedules fed with a metric (`schedules.Plateau`) get it
            after every epoch. A rule that asks for the `loss`, such as `polyak`, is told it before every step.

    A loss that is not finite stops the run before its gradient is applied. Ctrl-C returns what there is.

    Raises:
        ConfigError: for arguments that do not fit together, before anything is changed, or a `loss_and_grad` that
            returns something else. The optimizer's own errors and those of `loss_and_grad` pass through.
    """
    if rule is lbfgs:
        raise ConfigError("minimize: `rule` is lbfgs itself; call it, with its settings: rule=fastopt.lbfgs().")
    if not isinstance(rule, Rule | lbfgs):
        raise ConfigError(f"minimize: `rule` is {rule!r}; expected a rule such as fastopt.adam.")
    _check_names(rule, hyper)  # before the limits: a misspelt limit is not a missing one
    for name, limit in (("epochs", epochs), ("steps", steps)):
        if limit is not None:
            whole("minimize", name, limit, 0)
    if epochs is None and steps is None:
        raise ConfigError("minimize: give `epochs=` or `steps=`; a callback may stop the run earlier.")
    if not callable(loss_and_grad):
        what = f"of type {type(loss_and_grad).__name__}; expected a function (params, *batch) -> (loss, grads)"
        raise ConfigError(f"minimize: `loss_and_grad` is {what}.")
    if validation is not None and not callable(validation):
        remedy = "such as lambda params: loss_and_grad(params, X_val, y_val)[0]"
        what = f"of type {type(validation).__name__}; expected a function params -> loss, {remedy}"
        raise ConfigError(f"minimize: `validation` is {what}.")
    batches, full = _batches(data, batch_size, seed, shuffle)
    if isinstance(rule, lbfgs) and not full:
        raise ConfigError(
            "minimize: lbfgs compares losses and gradients of one function, so it takes all data at every step: give "
            "`data` as arrays and no `batch_size`."
        )
    if not isinstance(groups, Iterable | Group):
        raise ConfigError(f"minimize: `groups` is {groups!r}; expected a list of fastopt.Group(pattern, ...).")
    groups = (groups,) if isinstance(groups, Group) else tuple(groups)
    callbacks = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    if isinstance(rule, lbfgs) and any(isinstance(c, Checkpoint) for c in callbacks):
        raise ConfigError(
            "minimize: lbfgs has no state to save: it starts from the parameters alone. Leave out the `Checkpoint` "
            "and save the parameters in a callback of your own."
        )
    restarts = [c for c in callbacks if isinstance(c, Restarts)]
    if len(restarts) > 1:
        raise ConfigError("minimize: `callbacks` holds more than one `Restarts`; give one.")
    callbacks = [c for c in callbacks if not isinstance(c, Restarts)]
    if (saving := sum(isinstance(c, Checkpoint) for c in callbacks)) > 1 or (saving and restarts):
        other = "`Restarts`, whose runs are several" if restarts else "another"
        raise ConfigError(f"minimize: `callbacks` holds a `Checkpoint` and {other}; give one of them.")
    if sam is not None and (
        isinstance(rule, lbfgs) or isinstance(sam, bool) or not isinstance(sam, int | float) or not 0 < sam < math.inf
    ):
        what = "is not for lbfgs, which compares losses" if isinstance(rule, lbfgs) else f"is {sam!r}"
        raise ConfigError(f"minimize: `sam` {what}; expected a number > 0, such as 0.05, or None.")
    hooks(callbacks)
    given = [hyper, *(g.hyper for g in groups if isinstance(g, Group))]
    plateaus = list({id(p): p for h in given for v in h.values() for p in _plateaus(v)}.values())
    fresh = [p.state_dict() for p in plateaus]

    with _bar(progress) as bar:
        events = hooks([*callbacks, *bar])

        def once() -> Result:
            for plateau, state in zip(plateaus, fresh, strict=True):
                plateau.load_state_dict(state)
            optimizer: Any = rule(params, groups=groups, **hyper)
            known = None if validation is None else math.nan
            held = None if full else batches
            run = Run(params, optimizer, epochs, steps, validation=known, batches=held, callbacks=callbacks)
            process = Descent if isinstance(rule, lbfgs) else Process
            return process(run, loss_and_grad, validation, events, plateaus, sam).result(batches, full)

        return _restarted(restarts[0], once, params, _frozen(params, groups)) if restarts else once()


def _check_names(rule: Rule | lbfgs, hyper: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a keyword that is neither an option of `minimize` nor a hyperparameter."""
    if "maximize" in hyper:
        raise ConfigError(
            "minimize: `maximize` is not for minimize, which minimises; negate the loss and its gradient, or write the "
            f"loop yourself with {rule.name}(params, maximize=True)."
        )
    if "loss" in hyper and "loss" in rule.schema:
        raise ConfigError(f"minimize: `loss` of `{rule.name}` is set at every step by minimize itself; leave it out.")
    if isinstance(rule, lbfgs) and (mine := sorted(hyper.keys() & vars(rule).keys())):
        raise ConfigError(f"minimize: `{mine[0]}` is a setting of lbfgs: rule=fastopt.lbfgs({mine[0]}=...).")
    options = list(minimize.__kwdefaults__ or {})
    for name in sorted(hyper.keys() - rule.schema.keys() - OPTIONS.keys()):
        better = hint(name, [*options, *rule.schema])
        better = better or f" The options are {listing(options, 99)}; its own are {listing(rule.schema, 99)}."
        raise ConfigError(f"minimize: `{name}` is no option, and no hyperparameter of `{rule.name}`.{better}")


def _batches(data: Any, batch_size: int | None, seed: int, shuffle: bool) -> tuple[Any, bool]:
    """What is iterated over once an epoch, False; or the one batch of every step, True."""
    if batch_size is not None:
        whole("minimize", "batch_size", batch_size, 1)
    arrays = data if isinstance(data, tuple) else (data,)
    if data is not None and all(hasattr(a, "shape") and len(a.shape) for a in arrays) and arrays:
        sizes = [a.shape[0] for a in arrays]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ConfigError(f"minimize: the arrays of `data` hold {sizes} examples; expected one number, at least 1.")
        if batch_size is None:
            return arrays, True
        return minibatches(*arrays, batch_size=batch_size, seed=seed, shuffle=shuffle), False
    for i, a in enumerate(data if isinstance(data, tuple) else ()):
        if not (hasattr(a, "shape") and len(a.shape)):
            what = (
                "has no examples along a first axis (shape ())" if hasattr(a, "shape") else f"is a {type(a).__name__}"
            )
            raise ConfigError(
                f"minimize: element {i} of `data` {what}; expected arrays: use numpy.asarray(...) on each."
            )
    if batch_size is not None:
        raise ConfigError("minimize: `batch_size` is for `data` given as arrays, with examples along the first axis.")
    if data is None:
        return (), True
    if isinstance(data, list) and data and all(isinstance(a, np.ndarray) for a in data):
        raise ConfigError("minimize: `data` is a list of arrays; write a tuple for arrays of examples: data=(X, Y).")
    if isinstance(data, tuple) or not isinstance(data, Iterable) or isinstance(data, Iterator):
        remedy = (
            "an iterator, which is empty after one epoch" if isinstance(data, Iterator) else f"a {type(data).__name__}"
        )
        raise ConfigError(
            f"minimize: `data` is {remedy}; expected an array, a tuple of arrays, or fastopt.minibatches(...)."
        )
    return data, False


def _plateaus(value: Any) -> Iterator[Plateau]:
    """The schedules inside a hyperparameter that want the metric."""
    if isinstance(value, Plateau):
        yield value
    parts = [v for _, v in value.values] if isinstance(value, Schedule) else value if isinstance(value, tuple) else ()
    for part in parts:
        yield from _plateaus(part)


def _bar(progress: bool) -> Any:
    """A context that gives the callbacks of a live bar, or none."""
    if not progress:
        return nullcontext(())
    from fastopt.progress import Bar

    return Bar()


def _restarted(restarts: Restarts, once: Callable[[], Result], params: Any, frozen: list[str]) -> Result:
    """Run again and again from other points; put the best end back into `params`."""
    start, rng = copied(params), np.random.default_rng(restarts.seed)
    runs: list[float] = []
    best, kept = None, start
    stopped = False
    try:
        for k in range(restarts.n + 1):
            if k:
                restarts.place(params, start, rng, frozen)
            result = once()
            stopped = result.reason == "interrupted"
            score = math.inf if math.isnan(result.metric) else result.metric
            if best is None or score < min(runs):
                best, kept = result, copied(params)
            runs.append(score)
            if stopped:
                break
    except KeyboardInterrupt:  # between two runs
        if best is None:
            raise
        stopped = True
    assert best is not None
    assign(params, kept)
    place = f"best of {len(runs)} runs, number {runs.index(min(runs)) + 1}: {best.message}"
    reason = "interrupted" if stopped else best.reason
    return replace(best, best_params=kept, runs=tuple(runs), reason=reason, message=place)


def _frozen(params: Any, groups: tuple[Any, ...]) -> list[str]:
    """Names of the parameters whose group is frozen. The optimizer has checked the groups, or will."""
    known = [g for g in groups if isinstance(g, Group)]
    names = survey(params)[0].names()
    return [n for n in names if next((g.frozen for g in known if fnmatchcase(n, g.pattern)), False)]
