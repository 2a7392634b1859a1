"""Hyperparameters of an optimizer, seen and changed between steps."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from fastopt.groups import Settings


class GroupInfo(NamedTuple):
    """A group as it stands: its pattern, its parameters' names, whether it is frozen, its current hyperparameters."""

    pattern: str
    names: tuple[str, ...]
    frozen: bool
    hyper: dict[str, float | bool]


class Tuning:
    """The part of an optimizer that shows and changes hyperparameters."""

    names: tuple[str, ...]
    _settings: Settings
    _place: Any
    _clock: Any

    if TYPE_CHECKING:

        def _alone(self) -> threading.Lock: ...

        @property
        def t(self) -> int: ...

    @property
    def groups(self) -> tuple[GroupInfo, ...]:
        """The groups as they stand, the optimizer's own row (pattern "*") last; values as of the next step."""
        settings = self._settings
        return tuple(
            GroupInfo(
                p,
                tuple(n for n, r in zip(self.names, settings.of, strict=True) if r == k),
                settings.frozen[k],
                self.hyper(p),
            )
            for k, p in enumerate(settings.patterns)
        )

    def hyper(self, pattern: str | None = None) -> dict[str, float | bool]:
        """Values for the next step, schedules evaluated: the optimizer's own, a group's (pattern) or a parameter's."""
        settings = self._settings
        row = settings.row(pattern)
        return dict(zip(settings.schema(row), settings.evaluate(row, self.t + 1), strict=True))

    def set(self, pattern: str | None = None, **hyper: Any) -> None:
        """Change hyperparameters from the next step on: the optimizer's own, or those of the group of a pattern.

        Groups inherit what they did not set themselves. Nothing is compiled again. Raises `ConfigError` and changes
        nothing for an unknown name or a bad value, or a switch (such as `amsgrad`), which is fixed at construction.
        """
        with self._alone():
            self._settings.update(pattern, hyper)
            self._place.changed(self._settings, self._clock, None)
