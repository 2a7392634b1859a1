"""The rows of `hyper`: what depends on hyperparameters and `t` alone, brought to every step in float64."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastopt.errors import ConfigError
from fastopt.groups import Settings
from fastopt.lowered import Lowered
from fastopt.math import NUMBERS


@dataclass(eq=False, kw_only=True)
class Staged:
    """The rows of `hyper` of a launch."""

    stages: tuple[Stage, Stage]  # of all columns, and of those that change with t
    rows: list[tuple[int, int]]  # (row of Settings, steps its segments have missed): a row of `hyper` each
    hyper: np.ndarray
    values: list[list[Any]] = field(default_factory=list)  # of the schema, then `maximize`, as they were written last
    _fixed: list[list[Any] | None] = field(default_factory=list)  # values of the rows without schedules
    _version: int = -1  # of the settings they are from

    def write_hyper(self, settings: Settings, t: int) -> None:
        """Bring the columns of every row to step `t`. Raises `ConfigError` and launches nothing."""
        if self._version != settings.version:
            self.values = [[] for _ in self.rows]
            self._fixed, self._version = [None] * len(self.rows), settings.version
        every, timed = self.stages
        for k, (row, missed) in enumerate(self.rows):
            values = self._fixed[k]
            stage = timed if values is not None else every
            if values is None:
                values = self.values[k] = settings.evaluate(row, t)
            try:
                columns = stage.evaluate(*values, t - missed)
                if math.isfinite(sum(columns)):
                    stage.write(self.hyper, k * self.hyper.strides[0] + stage.offset, *columns)
                    if stage is every and not settings.scheduled(row):
                        self._fixed[k] = values
                    continue
                bad = next((n for n, c in zip(stage.names, columns, strict=True) if not math.isfinite(c)), "their sum")
                reason = f"`{bad}` is not finite"
            except (ArithmeticError, ValueError, struct.error) as error:
                reason = str(error)
            shown = ", ".join(f"{n}={v!r}" for n, v in zip(settings.schema(row), values, strict=True))
            raise ConfigError(f"`{settings.rules[row].name}` cannot be evaluated at step {t} with {shown}: {reason}.")


class Stage(NamedTuple):
    """Neighbouring columns of `hyper`: the functions that compute and write them, rounded to `hyper`'s dtype."""

    names: tuple[str, ...]
    evaluate: Callable[..., tuple[float, ...]]  # of the schema's values, `maximize`, and t
    write: Callable[..., None]
    offset: int  # bytes from the row's start


@lru_cache(maxsize=512)
def stages(schema: tuple[str, ...], lowered: Lowered, dtype: np.dtype) -> tuple[Stage, Stage]:
    """All columns of a row, and the last ones alone, which change with t."""
    expressions = ("-1.0 if maximize else 1.0", *(c.expression for c in lowered.columns))

    def stage(first: int) -> Stage:
        chosen = expressions[first:]
        # expressions that lower.py wrote from the rule's own syntax tree
        # "=": unlike the native format, it raises for a number that the dtype cannot hold
        function = eval(
            f"lambda {', '.join((*schema, 'maximize', 't'))}: ({''.join(f'{e}, ' for e in chosen)})", dict(NUMBERS)
        )
        return Stage(chosen, function, struct.Struct(f"={len(chosen)}{dtype.char}").pack_into, first * dtype.itemsize)

    return stage(0), stage(len(expressions) - lowered.timed)
