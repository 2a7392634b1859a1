"""Gradients of rows on the CPU: a parameter's touched rows in order, and what rows that were left out must catch up on.

Three readings of what a step means for a row without a gradient:

lazy    nothing; t counts the optimizer's steps (torch.optim.SparseAdam, and every torch rule given sparse gradients).
exact   what a gradient of zeros would do, done when the row is touched next, with the hyperparameters of each step.
row     nothing, and t counts the steps of the row itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from fastopt import build
from fastopt import work as worklist
from fastopt.errors import ConfigError, GradientError
from fastopt.lowered import Lowered
from fastopt.params import zeros
from fastopt.rows import Rows
from fastopt.schema import MATRIX, Rule

READINGS = ("lazy", "exact", "row")

_MODULE = """\
# What a gradient of rows is turned into before a kernel sees it, for values of {dtype}.

from numba import njit, types

from fastopt.targets.touched import add as _add
from fastopt.targets.touched import outside as _outside
from fastopt.targets.touched import prepare as _prepare

int64s = types.int64[::1]
given = types.Array(types.int64, 1, "C", readonly=True)


@njit(types.int64(given, types.int64), cache=True, nogil=True)
def outside(indices, n_rows):
    return _outside(indices, n_rows)


@njit(types.int64(given, types.int64, int64s, int64s, int64s, types.uint64[:, ::1]), cache=True, nogil=True)
def prepare(indices, n_rows, order, other, starts, places):
    return _prepare(indices, n_rows, order, other, starts, places)


@njit(types.void(types.Array(types.{dtype}, 2, "C", readonly=True), int64s, int64s, types.{dtype}[:, ::1]),
      cache=True, nogil=True)
def add(values, order, starts, merged):
    _add(values, order, starts, merged)
"""


@cache
def helpers(dtype: np.dtype) -> Any:
    """The compiled functions for values of a dtype."""
    return build.load(_MODULE.format(dtype=dtype), f"touched_{dtype}")


def check(rows: Rows, like: np.ndarray, name: str) -> None:
    """Raise `GradientError` for an index that is no row of the parameter."""
    k = helpers(rows.values.dtype).outside(rows.indices, len(like))
    if k >= 0:
        raise GradientError(
            f"gradient of `{name}`: index {rows.indices[k]} at position {k}; expected 0 to {len(like) - 1}, a row."
        )


def lowered(low: Lowered, reading: str, rule: Rule, name: str) -> Lowered:
    """The rule as it runs over touched rows. Raises `ConfigError` for one that cannot."""

    def refuse(why: str, remedy: str) -> ConfigError:
        return ConfigError(f"`{rule.name}` cannot take a gradient of rows for `{name}`: {why}; {remedy}.")

    group = f"give it a dense gradient, or a rule that can: fastopt.Group({name!r}, rule=fastopt.adagrad)"
    if low.matrices or any(q.totals for q in low.passes):
        raise refuse("each of its steps looks at whole parameters", group)
    if reading != "lazy" and low.numbers:
        raise refuse(f"it keeps {', '.join(low.numbers)} for all rows together", 'use sparse="lazy"')
    if reading != "lazy" and low.noises:
        raise refuse("its noise belongs to the optimizer's step", 'use sparse="lazy"')
    if reading != "lazy" and low.rounded:
        raise refuse("its state is rounded by chance", 'use rounding="nearest", or sparse="lazy"')
    if low.scales:
        raise refuse("its state is in blocks of 8 bits", 'use state_dtype="bf16"')
    return replace(low, touched=reading)


@dataclass(eq=False)
class Touched:
    """One parameter's rows: the tables of its launch, made anew at every step, and how far each row has got.

    Attributes:
        steps: int64 (n_rows,); row: steps of each row; exact: how many rows of `table` each row has caught up with.
        table: rows of `hyper`; row: that of a row's t = 1, 2, ...; exact: those of steps that change even rows without
            a gradient.
        kept: how many rows of `table` those are, and pending: from which step on how many.
    """

    array: np.ndarray
    reading: str
    steps: np.ndarray
    table: np.ndarray = field(init=False)
    kept: int = field(init=False, default=0)
    pending: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        self.table = np.zeros((0, 0))
        self.columns = self.array.size // max(1, len(self.array))
        self._zeros = zeros(
            self.columns if self.reading == "exact" else 0, np.float64
        )  # a row of them, as wide as any gradient's
        self.launch: Any = None  # the last one
        self._room: dict[str, np.ndarray] = {}
        self._held: Any = None  # what `take` gave addresses of

    def take(self, rows: Rows) -> tuple[int, dict[str, int]]:
        """How many rows are touched, and addresses by name."""
        k, tools = len(rows.indices), helpers(rows.values.dtype)
        order, other = self._buffer("order", k, np.int64), self._buffer("other", k, np.int64)
        starts, places = self._buffer("starts", k + 1, np.int64), self._buffer("places", 2 * k, np.uint64)
        n = tools.prepare(rows.indices, len(self.array), order, other, starts, places.reshape(-1, 2))
        values = rows.values
        if n < k:
            merged = self._buffer("merged", n * self.columns, values.dtype)[: n * self.columns].reshape(n, self.columns)
            tools.add(values.reshape(k, self.columns), order, starts, merged)
            values = merged
        self._held = rows, values
        return n, {"g": values.ctypes.data, "places": places.ctypes.data}

    def everything(self) -> dict[str, int]:
        """The address of the places of all rows."""
        n = len(self.array)
        places = self._buffer("places", 2 * n, np.uint64)
        places[: 2 * n : 2], places[1 : 2 * n : 2] = np.arange(n), 0
        return {"places": places.ctypes.data}

    def rows(self, n: int) -> np.ndarray:
        """The n rows that are touched."""
        return self._room["places"][: 2 * n : 2]

    def fixed(self) -> dict[str, int]:
        """Addresses that stay, and the length of a row."""
        return {"columns": self.columns, "steps": self.steps.ctypes.data, "zeros": self._zeros.ctypes.data}

    def chunks(self, n: int, segment: int, n_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """`work` and `tasks` of n touched rows."""
        length = max(1, worklist.CHUNK // max(1, self.columns))
        if n <= length:
            return np.array([[0, n, segment, 0]], np.uint64), np.array([0, 1], np.uint64)
        work = worklist.chunks([n], [segment], [0], length)
        return work, worklist.tasks(work, n_threads)

    def release(self) -> None:
        """The step is done: nobody keeps its gradient alive."""
        self._held = None

    def settle(self, done: int) -> int:
        """`kept`, when the parameter has done so many steps: an interrupted step may or may not have been taken."""
        step, kept = self.pending
        if done >= step:
            self.kept = kept
        return self.kept

    def record(self, row: int, values: np.ndarray) -> None:
        """Put values into a row of `table`."""
        if row >= len(self.table):
            grown = np.zeros((max(64, 2 * row), len(values)), values.dtype)
            if self.table.size:
                grown[: len(self.table)] = self.table
            self.table = grown
        self.table[row] = values

    def _buffer(self, name: str, size: int, dtype: Any) -> np.ndarray:
        found = self._room.get(name)
        if found is None or found.size < size or found.dtype != dtype:
            found = self._room[name] = np.empty(max(64, 1 << max(0, size - 1).bit_length()), dtype)
        return found


def idle(rule: Rule, lowered: Lowered, matrix: bool, hyper: dict[str, Any], t: int) -> bool:
    """Does a gradient of zeros leave parameter and state as they are? Then a row that is not touched misses nothing."""
    supplied = {"t": t} if rule.timed else {}
    supplied |= {MATRIX: matrix} if MATRIX in rule.switches else {}
    lives = [n == "p" or n in lowered.state for n in ("p", *rule.state)]
    for p, *others in _SAMPLES[:, : len(lives)].tolist():
        before = p, *map(abs, others)
        try:
            after = rule.formula(p, 0.0, *before[1:], **hyper, **supplied)
        except ArithmeticError:
            return False
        after = after if isinstance(after, tuple) else (after,)
        if any(a != b for a, b, alive in zip(before, after, lives, strict=True) if alive):
            return False
    return True


_SAMPLES = np.random.default_rng(0).standard_normal((8, 32))
