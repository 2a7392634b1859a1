"""`Checkpoint`: a run of `minimize` that saves itself, and goes on where it was when it is started again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.callbacks import Run, whole
from fastopt.checkpoint.manager import Manager
from fastopt.data import Minibatches
from fastopt.errors import CheckpointError, ConfigError, listing
from fastopt.params import assign, copied, foreign, survey

_NUMBERS = ("step", "epoch", "loss", "validation", "best_loss", "best_epoch", "so_far", "reason", "message")


class Checkpoint:
    """Save every `every` steps (None: after every epoch), and begin by loading the newest whole checkpoint, if any.

    The same call of `minimize`, started again after any interruption, ends with the same bits as one that was not
    interrupted. Saved are parameters, optimizer, place in the data, history, and the state of callbacks that have
    `state_dict()` and `load_state_dict(state)`, as `EarlyStopping` and `KeepBest`. Data other than
    `fastopt.minibatches` and arrays is saved between epochs only, with its `state_dict` if it has one. A run that a
    callback has stopped stays stopped.
    """

    last = True  # of the callbacks: it saves what the others have made of an event

    def __init__(self, manager: Manager, every: int | None = None):
        if not isinstance(manager, Manager):
            what = type(manager).__name__
            raise ConfigError(f"Checkpoint: `manager` is a {what}; expected a fastopt.checkpoint.Manager(folder).")
        if every is not None:
            whole("Checkpoint", "every", every, 1)
        self.manager, self.every, self._due = manager, every, False

    def __repr__(self) -> str:
        return f"Checkpoint({self.manager!r}, every={self.every})"

    def on_start(self, run: Run) -> str | None:
        self._due = False
        self.manager.restore(run.optimizer, lambda extra: _restore(run, extra), params=True)
        return run.reason or None

    def on_step(self, run: Run) -> None:
        if self.every is not None and run.step % self.every == 0:
            self._due = True
            if _inside(run):
                self._save(run)  # between epochs: when the epoch's numbers are there, too

    def on_epoch(self, run: Run) -> None:
        if (self._due or self.every is None) and not _inside(run):  # inside: `steps` has cut the epoch short
            self._save(run)

    def on_end(self, run: Run) -> None:
        self.manager.wait()

    def _save(self, run: Run) -> None:
        self._due = False
        self.manager.save(run.optimizer, extra={"minimize": _state(run)})


def _inside(run: Run) -> bool:
    """Is this the middle of an epoch, at a place that can be found again?"""
    return isinstance(run.batches, Minibatches) and run.batches.position != 0


def _state(run: Run) -> dict[str, Any]:
    best = None
    if run.best_params is not None:
        tree, arrays = survey(run.best_params)
        best = {n: foreign(a, n) for n, a in zip(tree.names(), arrays, strict=True)}
    return {
        **{name: getattr(run, name) for name in _NUMBERS},
        "seconds": time.perf_counter() - run.began,
        "history": {name: np.array(values, np.float64) for name, values in run.history.items()},
        "best_params": best,
        "data": run.batches.state_dict() if hasattr(run.batches, "state_dict") else None,
        "callbacks": [[type(c).__name__, c.state_dict()] for c in _stateful(run)],
    }


def _stateful(run: Run) -> list[Any]:
    return [c for c in run.callbacks if hasattr(c, "state_dict") and hasattr(c, "load_state_dict")]


def _restore(run: Run, extra: Any) -> None:
    """Bring the run, its data and its callbacks to where `_state` was taken, or raise `CheckpointError`."""
    state = extra.get("minimize") if isinstance(extra, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError("the newest checkpoint of the manager was not saved by a `Checkpoint` of minimize.")
    before = run.batches.state_dict() if hasattr(run.batches, "state_dict") else None
    try:
        now = _resumed(run, state)
    except BaseException as error:
        if before is not None:
            run.batches.load_state_dict(before)
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError | IndexError):
            raise CheckpointError(f"the state of the run cannot be restored: {error}") from error
        raise
    for name, value in now.items():
        setattr(run, name, value)


def _resumed(run: Run, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the attributes of `run` are to be; its data and callbacks have already got their state."""
    names, here = [name for name, _ in state["callbacks"]], [type(c).__name__ for c in _stateful(run)]
    if names != here:
        raise CheckpointError(f"the checkpoint was saved with callbacks {listing(names)}; here are {listing(here)}.")
    if (state["data"] is not None) != hasattr(run.batches, "state_dict"):
        raise CheckpointError("the checkpoint was saved with other data: its place in them cannot be found.")
    now = {name: state[name] for name in _NUMBERS}
    now["so_far"] = None if state["so_far"] is None else tuple(state["so_far"])
    now["began"] = time.perf_counter() - state["seconds"]
    now["history"] = {name: values.tolist() for name, values in state["history"].items()}
    now["best_params"] = None
    if state["best_params"] is not None:
        now["best_params"] = copied(run.params)
        names = survey(run.params)[0].names()
        assign(survey(now["best_params"])[1], [state["best_params"][n] for n in names], "the best parameters")
    if state["data"] is not None:
        run.batches.load_state_dict(state["data"])
    for callback, (_, saved) in zip(_stateful(run), state["callbacks"], strict=True):
        callback.load_state_dict(saved)
    return now
