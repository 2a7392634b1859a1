"""The launch of a parameter with a gradient of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.codecs import Codec
from fastopt.errors import ConfigError
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Launch, threads_for
from fastopt.missed import Products, Zero
from fastopt.rows import Rows
from fastopt.schema import Rule
from fastopt.targets import cpu
from fastopt.touched import BEHIND, Touched


@dataclass(eq=False, kw_only=True)
class RowsLaunch(Launch):
    """What is touched changes from step to step, and with it the tables."""

    rule: Rule
    dtype: Codec
    name: str
    segment: int
    touched: Touched
    places: dict[str, int]  # columns of `addresses`
    _n: int = 0
    _values: Sequence[Any] = ()
    _factor: float = 1.0
    _given: Any = None  # the values of the gradient
    _known: Any = None  # the addresses of `touched` that are in the table
    _seen: bytes | None = None  # the columns, without the sign, that the next two are of
    _moves: bool = False  # does a step change rows without a gradient?
    _matrix: Any = None  # closed: how

    def aim(self, gradients: Gradients) -> None:
        self.take(gradients.rows[self.name], gradients.addresses[self.segment])

    def take(self, given: Rows, address: int) -> None:
        """Take in a gradient, whose values are at `address`."""
        self._given = given.values
        self._share(given.indices)
        self.addresses[self.segment, 1] = address

    def release(self) -> None:
        """The step is done."""
        self._given = None

    def _share(self, indices: np.ndarray) -> None:
        """Share out the rows that are touched."""
        itemsize = (len(self.lowered.state) + 1) * self.dtype.itemsize + self.gradient.itemsize
        n_threads = threads_for(_APART * len(indices) * self.touched.columns * itemsize)
        if self.parallel != n_threads > 1:
            self.parallel = n_threads > 1
            self.kernels = cpu.kernels(self.rule.name, self.lowered, self.dtype, self.gradient, self.parallel)
        self._n, self.work, self.tasks = self.touched.take(indices, self.segment, n_threads)
        if self._known is not self.touched.addresses:
            self._known = self.touched.addresses
            self._point(**self._known)

    def _point(self, **numbers: int) -> None:
        """Write some of the row of `addresses`."""
        for name, number in numbers.items():
            if name in self.places:
                self.addresses[self.segment, self.places[name]] = number

    @property
    def columns(self) -> np.ndarray:
        return self.touched.table if self.touched.reading in ("exact", "row") else self.hyper

    def write_hyper(self, settings: Settings, t: int) -> None:
        super().write_hyper(settings, t)
        (row, missed), values = self.rows[0], self._fixed[0]
        self._values = settings.evaluate(row, t) if values is None else values
        # a kernel knows of hyperparameters and t what is in the columns
        if self.touched.reading in BEHIND and self._seen != (columns := self.hyper[0, 1:].tobytes()):
            hyper = dict(zip(self.rule.schema, self._values, strict=False))
            self._look(hyper, t - missed)
            self._seen = columns

    def _look(self, hyper: dict[str, Any], t: int) -> None:
        """Find out what a row misses by the next step. Raises `ConfigError`."""

        def zero(t: int) -> Zero:
            return Zero(self.rule, self.lowered, self.touched.array.ndim == 2, hyper, t)

        if self.touched.reading == "exact":
            # what is in 8 bits is decoded and encoded again even if it stays
            self._moves = bool(self.lowered.scales) or not zero(t).idle()
            return
        first = self._seen is None
        self._matrix = matrix = zero(t).linear(thorough=first)
        # refused at the first step, also if it is linear in the first steps alone, as radam's
        if matrix is None or (first and zero(t + 10**6).linear(thorough=True) is None):
            names = ", ".join(("p", *self.lowered.state))
            raise ConfigError(
                f'`{self.rule.name}` cannot take a gradient of rows for `{self.name}` with sparse="closed": what a '
                f'gradient of zeros does to {names} is not linear in them; use sparse="exact".'
            )
        self._moves = bool((matrix != np.eye(len(matrix))).any())
        if self.touched.products is None:
            self.touched.products = Products(len(matrix))

    def unscale(self, factor: float) -> None:
        super().unscale(factor)
        self._factor = factor

    def offender(self) -> int:
        return -1 if np.isfinite(codecs.widened(self._given)).all() else self.segment

    def run(self, q: int, clock: np.ndarray, last: bool) -> None:
        touched, t = self.touched, int(clock[0]) + 1 - self.rows[0][1]
        if touched.reading in BEHIND:
            now = touched.settle(t - 1)
            if touched.reading == "exact":
                touched.record(now, self.hyper[0])
            elif self._moves and touched.products is not None:
                touched.products.record(now, self._matrix)
            self._missed(now=now, present=now, end=now + self._moves)
            touched.pending = t, now + self._moves
        elif touched.reading == "row":
            for done in np.unique(touched.steps[touched.rows(self._n)]).tolist():
                self.stages[0].write(self.hyper, 0, *self.stages[0].evaluate(*self._values, done + 1))
                super().unscale(self._factor)
                touched.record(done, self.hyper[0])
        super().run(q, clock, last)

    def _missed(self, **numbers: int) -> None:
        """Write how far rows are to get, and where it says how."""
        if self.touched.products is not None:
            numbers["products"] = self.touched.products.table.ctypes.data
        self._point(**numbers)

    def catch_up(self, clock: np.ndarray) -> None:
        """exact, closed: bring all rows to the present."""
        touched = self.touched
        kept = touched.settle(int(clock[2 + self.segment]))
        if not kept or touched.steps.min(initial=kept) == kept:
            return
        clock, n = np.zeros(2 + len(self.addresses), np.int64), len(touched.array)
        for first in range(0, n, _BLOCK):  # or the tables would be as long as the parameter
            self._share(np.arange(first, min(first + _BLOCK, n)))
            self._missed(now=kept - (touched.reading == "exact"), present=2**64 - 1, end=kept)
            super().run(0, clock, False)


_APART = 3  # rows here and there take that much longer than as many neighbours
_BLOCK = 1 << 18  # rows
