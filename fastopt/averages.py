"""`opt.eval()` and `opt.train()`: the parameters turned, in place, into what their rule's view shows, and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import is_
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastopt.errors import ConfigError
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.lower import lower

_T, _DIRTY, _STEPS = 0, 1, 2  # the clock, see optimizer.py
SHOWN, TURNING = 2, 3  # values of its dirty flag, so that a step asks no second question


class Averages:
    """The half of an optimizer that turns parameters into averages and back.

    While they are averages, the parameters of training lie aside, so that `train()` puts back the same bits.
    """

    params: Any
    _place: Any
    _settings: Settings
    _segments: list[Segment]
    _clock: np.ndarray
    _aside: list[tuple[np.ndarray, np.ndarray]] | None = None  # (an array, what it held)

    if TYPE_CHECKING:

        def _alone(self) -> threading.Lock: ...

        _leaves: Any
        _list: Any

        def _replaced(self) -> NoReturn: ...
        def _catch_up(self) -> None: ...
        def _torn(self) -> NoReturn: ...

    def eval(self) -> None:
        """Turn the parameters, in place, into what the rule shows: an average, for schedule-free rules and ASGD.

        `train()` brings back the parameters of training, every bit of them, so whatever is written into the parameters
        in between is lost; until then steps, `state_dict` and `load_state_dict` raise `ConfigError`. Parameters in
        groups whose rule shows nothing else, or that have not moved yet, stay as they are. Takes a copy of the others.
        Again is the same as once.

        Raises `ConfigError` if no rule of this optimizer has an average. After an interrupt the parameters are those of
        training, or `train()` restores them: every other call says so.
        """
        with self._alone():
            if self._clock[_DIRTY] == SHOWN:
                return
            self._catch_up()
            if self._leaves and not all(map(is_, self._list(self.params), self._leaves)):
                self._replaced()
            clock = self._place.read(self._clock).copy()  # of the step that has been done last
            clock[_T] = max(int(clock[_T]) - 1, 0)
            segments, kinds = self._views(clock)
            moved = [s for s, kind in zip(self._segments, kinds, strict=True) if kind]
            arrays = [a for s in moved for a in (s.array, s.state.get("master")) if a is not None]
            self._aside = [(a, self._place.copied(a)) for a in arrays]
            self._clock[_DIRTY] = TURNING
            try:
                if any(kinds):
                    self._place.show(self._settings, segments, kinds, clock)
                self._clock[_DIRTY] = SHOWN
            except BaseException:
                self._restore()
                raise

    def train(self) -> None:
        """Put the parameters of training back, see `eval`. Without an `eval` before it does nothing."""
        with self._alone():
            if self._clock[_DIRTY] in (SHOWN, TURNING):
                self._clock[_DIRTY] = TURNING
                self._restore()
            elif self._clock[_DIRTY]:
                self._torn()

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """`with opt.averaged() as params:` is `eval()`, and `train()` at its end, whatever happens in between.

        Inside of `eval()` or another `averaged()` it changes nothing.
        """
        shown = self._clock[_DIRTY] == SHOWN
        self.eval()
        try:
            yield self.params
        finally:
            if not shown:
                self.train()

    def _views(self, clock: np.ndarray) -> tuple[list[Segment], tuple[str, ...]]:
        """What shows the averages: the segments and kinds of gradients of a step whose rule is the view."""
        settings = self._settings
        if all(rule.view is None for rule in settings.rules):
            raise ConfigError(
                f"`{settings.title}` has no average to show; opt.eval() is for rules that keep one, such as "
                "fastopt.schedule_free_adamw."
            )
        segments, kinds = [], []
        for k, segment in enumerate(self._segments):
            view = settings.rule(k).view
            moved = clock[_STEPS + k] > 0 and not settings.frozen[segment.row]
            if view is not None and moved:
                shown = lower(view, settings.chosen(k, segment.array))
                shown = replace(settings.stored(shown, k, segment.array), rounded=())
                segment = replace(segment, lowered=shown)
            kinds.append(segment.array.dtype.char if view is not None and moved else "")
            segments.append(segment)
        return segments, tuple(kinds)

    def _restore(self) -> None:
        for array, kept in self._aside or ():
            array[...] = kept
        self._clock[_DIRTY] = 0
        self._aside = None

    def _refuse(self) -> NoReturn:
        """For every call that needs the parameters of training."""
        if self._clock[_DIRTY] == TURNING:
            raise ConfigError(
                "opt.eval() or opt.train() was interrupted: some parameters are averages and some are not. Call "
                "opt.train(): it puts those of training back."
            )
        raise ConfigError(
            "the parameters are averages now, since opt.eval(). Call opt.train() first: it puts those of training back."
        )
