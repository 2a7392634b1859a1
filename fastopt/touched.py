"""Gradients of rows on the CPU: a parameter's touched rows in order, and what rows that were left out must catch up on.

Four readings of what a step means for a row without a gradient:

lazy    nothing; t counts the optimizer's steps (torch.optim.SparseAdam, and every torch rule given sparse gradients).
exact   what a gradient of zeros would do, done when the row is touched next, with the hyperparameters of each step.
closed  the same in one go, whatever the number of steps, where that is linear in parameter and state; but for rounding.
row     nothing, and t counts the steps of the row itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from fastopt import build
from fastopt.blocks import BLOCK
from fastopt.errors import ConfigError, GradientError
from fastopt.lowered import Lowered
from fastopt.missed import Products
from fastopt.params import zeros
from fastopt.rows import Rows
from fastopt.schema import Rule
from fastopt.statements import VECTORS, Level

READINGS = ("lazy", "exact", "closed", "row")
BEHIND = ("exact", "closed")  # rows have something to catch up on

_MODULE = """\
# What a gradient of rows is turned into before a kernel sees it.

from numba import njit, types

from fastopt.targets.touched import outside as _outside
from fastopt.targets.touched import prepare as _prepare

int64s, table = types.int64[::1], types.uint64[:, ::1]
given = types.Array(types.int64, 1, "C", readonly=True)


@njit(types.int64(given, types.int64), cache=True, nogil=True)
def outside(indices, n_rows):
    return _outside(indices, n_rows)


@njit(types.int64(given, types.int64, int64s, int64s, table, table), cache=True, nogil=True)
def prepare(indices, n_rows, order, other, places, work):
    return _prepare(indices, n_rows, order, other, places, work)
"""


@cache
def helpers() -> Any:
    """The compiled functions."""
    return build.load(_MODULE, "touched")


def check(rows: Rows, like: np.ndarray, name: str) -> None:
    """Raise `GradientError` for an index that is no row of the parameter."""
    k = helpers().outside(rows.indices, len(like))
    if k >= 0:
        raise GradientError(
            f"gradient of `{name}`: index {rows.indices[k]} at position {k}; expected 0 to {len(like) - 1}, a row."
        )


def lowered(low: Lowered, reading: str, rule: Rule, name: str, shape: tuple[int, ...]) -> Lowered:
    """The rule as it runs over touched rows of a parameter. Raises `ConfigError` for one that cannot."""

    def refuse(why: str, remedy: str) -> ConfigError:
        return ConfigError(f"`{rule.name}` cannot take a gradient of rows for `{name}`: {why}; {remedy}.")

    group = f"give it a dense gradient, or a rule that can: fastopt.Group({name!r}, rule=fastopt.adagrad)"
    numbers = [n for q in low.passes for n in q.numbers]
    sums = {n.level for n in numbers if n.total} | {Level.REDUCED for n in numbers if n.inner in VECTORS}
    if low.matrices or sums - {Level.ROW}:
        raise refuse("each of its steps looks at whole parameters", group)
    common = [s for s, level in low.numbers.items() if level is not Level.ROW]
    if reading != "lazy" and common:
        raise refuse(f"it keeps {', '.join(common)} for all rows together", 'use sparse="lazy"')
    if reading == "closed" and sums:
        raise refuse("it sums over rows", 'use sparse="exact"')
    if reading != "lazy" and low.noises:
        raise refuse("its noise belongs to the optimizer's step", 'use sparse="lazy"')
    if reading in BEHIND and low.rounded:
        raise refuse("its state is rounded by chance", 'use rounding="nearest", or sparse="lazy"')
    if low.scales and (columns := math.prod(shape[1:])) % BLOCK:
        raise refuse(
            f"its state is in blocks of {BLOCK} numbers, which rows of {columns} would share",
            f'keep it in 16 bits: groups=[fastopt.Group({name!r}, state_dtype="bf16")]',
        )
    return replace(low, touched=reading)


@dataclass(eq=False)
class Touched:
    """One parameter's rows: the tables of its launch, made anew at every step, and how far each row has got.

    Attributes:
        steps: int64 (n_rows,); row: steps of each row; else: how many of the kept steps each row has caught up with.
        table: rows of `hyper`; row: that of a row's t = 1, 2, ...; exact: those of the kept steps.
        products: closed: the matrices of the kept steps.
        kept: how many steps are kept, which change even rows without a gradient; pending: from which step on how many.
        addresses: by name, where the tables are, and the length of a row; another dict when one of them has moved.
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
        # a row of them, as wide as any gradient's
        self._zeros = zeros(self.columns if self.reading == "exact" else 0, np.float64)
        self.products: Products | None = None
        self.launch: Any = None  # the last one
        self.addresses = {"columns": self.columns, "steps": self.steps.ctypes.data, "zeros": self._zeros.ctypes.data}
        self._room = 0  # indices that there is room for
        self._places, self._order = np.empty((1, 2), np.uint64), np.empty(0, np.int64)
        self._other = self._order
        self._work: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def take(self, indices: np.ndarray, segment: int, n_threads: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Put the rows that are touched in order; returns their number, and `work` and `tasks` for so many threads."""
        if len(indices) > self._room or n_threads not in self._work:
            self._grow(len(indices), segment, n_threads)
        work, tasks = self._work[n_threads]
        n = helpers().prepare(indices, len(self.array), self._order, self._other, self._places, work)
        return n, work, tasks

    def rows(self, n: int) -> np.ndarray:
        """The n rows that are touched."""
        return self._places[:n, 0]

    def _grow(self, size: int, segment: int, n_threads: int) -> None:
        """Make room for so many indices and threads."""
        if size > self._room:
            self._room = max(64, 1 << (size - 1).bit_length())
            self._order, self._other = np.empty((2, self._room), np.int64)
            self._places = np.empty((self._room + 1, 2), np.uint64)
        if n_threads not in self._work:
            work = np.zeros((n_threads, 4), np.uint64)
            work[:, 2] = segment
            self._work[n_threads] = work, np.arange(n_threads + 1, dtype=np.uint64)
            self._sums = zeros(max(self._work) * (8 * self.columns + 64), np.uint8)  # a row for each thread
        tables = {"places": self._places, "order": self._order, "sums": self._sums}
        self.addresses = self.addresses | {name: table.ctypes.data for name, table in tables.items()}

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
