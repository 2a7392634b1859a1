"""The launch of a parameter with a gradient of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.codecs import Codec
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Launch, threads_for
from fastopt.lowered import Lowered
from fastopt.schema import Rule
from fastopt.targets import cpu
from fastopt.touched import Touched, idle


@dataclass(eq=False, kw_only=True)
class RowsLaunch(Launch):
    """What is touched changes from step to step, and with it the tables."""

    rule: Rule
    lowered: Lowered
    kinds: tuple[Codec, Codec]  # of the parameter and of the gradient
    name: str
    segment: int
    touched: Touched
    places: dict[str, int]  # columns of `addresses`
    _n: int = 0
    _values: Sequence[Any] = ()

    def aim(self, gradients: Gradients) -> None:
        self._n, addresses = self.touched.take(gradients.rows[self.name])
        self._point(**addresses)

    def _point(self, **numbers: int) -> None:
        """Write the row of `addresses`, and share out what is touched."""
        for name, number in numbers.items():
            self.addresses[self.segment, self.places[name]] = number
        itemsize = (len(self.lowered.state) + 1) * self.kinds[0].itemsize + self.kinds[1].itemsize
        n_threads = threads_for(self._n * self.touched.columns * itemsize)
        if self.parallel != n_threads > 1:
            self.parallel = n_threads > 1
            self.kernels = cpu.kernels(self.rule.name, self.lowered, *self.kinds, self.parallel)
        self.work, self.tasks = self.touched.chunks(self._n, self.segment, n_threads)

    @property
    def columns(self) -> np.ndarray:
        return self.hyper if self.touched.reading == "lazy" else self.touched.table

    def write_hyper(self, settings: Settings, t: int) -> None:
        super().write_hyper(settings, t)
        (row, _), values = self.rows[0], self._fixed[0]
        self._values = settings.evaluate(row, t) if values is None else values

    def run(self, q: int, clock: np.ndarray, last: bool) -> None:
        touched, t = self.touched, int(clock[0]) + 1 - self.rows[0][1]
        if touched.reading == "exact":
            now = touched.settle(t - 1)
            touched.record(now, self.hyper[0])
            hyper = dict(zip(self.rule.schema, self._values, strict=False))
            end = now + (not idle(self.rule, self.lowered, touched.array.ndim == 2, hyper, t))
            self._point(now=now, present=now, end=end)
            touched.pending = t, end
        elif touched.reading == "row":
            for done in np.unique(touched.steps[touched.rows(self._n)]).tolist():
                self.stages[0].write(self.hyper, 0, *self.stages[0].evaluate(*self._values, done + 1))
                touched.record(done, self.hyper[0])
        super().run(q, clock, last)

    def catch_up(self, clock: np.ndarray) -> None:
        """exact: bring all rows to the present."""
        touched = self.touched
        if not touched.settle(int(clock[2 + self.segment])) or touched.steps.min(initial=touched.kept) == touched.kept:
            return
        self._n = len(touched.array)
        none = 2**64 - 1
        self._point(**touched.everything(), now=touched.kept - 1, present=none, end=touched.kept)
        super().run(0, np.zeros(2 + len(self.addresses), np.int64), False)
