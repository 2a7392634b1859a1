"""One launch: the segments that share kernels, with the tables these read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import finite, scratch, threads
from fastopt.codecs import Codec
from fastopt.gradients import Gradients
from fastopt.lowered import Lowered
from fastopt.staged import Staged
from fastopt.targets import cpu


@dataclass(frozen=True, eq=False)
class Segment:
    """One parameter array as kernels see it: `buffers` are p, then its states, by name (g comes with each step)."""

    array: Any  # ndarray, or DeviceArray
    row: int  # in Settings
    lowered: Lowered
    state: dict[str, Any]
    key: int  # of its random numbers
    copy: Any = None  # the array that is given the new parameter, too


@dataclass(eq=False, kw_only=True)
class Launch(Staged):
    """The segments of a step that share a lowered rule, a parameter dtype and a gradient dtype: one kernel a pass."""

    lowered: Lowered
    gradient: Codec
    kernels: tuple[Callable[..., None], ...]
    parallel: bool
    tasks: np.ndarray
    work: np.ndarray
    addresses: np.ndarray
    reduced: tuple[np.ndarray, ...]  # what kernels with totals take besides: parameters, reduced, partials, lanes
    temporary: list[dict[str, np.ndarray]]  # keeps alive what `addresses` points to
    products: list[list[scratch.Product]]  # the calls of functions of matrices after each pass

    def aim(self, gradients: Gradients) -> None:
        """Take in where the gradients are."""
        self.addresses[:, 1] = gradients.addresses

    @property
    def columns(self) -> np.ndarray:
        """The table of columns that kernels read."""
        return self.hyper

    def unscale(self, factor: float) -> None:
        """Multiply gradients by `factor` > 0 from now on; the column has the sign already."""
        np.copysign(factor, self.hyper[:, 0], out=self.hyper[:, 0], casting="same_kind")

    def offender(self) -> int:
        """The first segment whose gradient is not finite, or -1. Its passes that only look have run."""
        norm = self.lowered.norm
        if (
            norm is not None and norm.total is not None
        ):  # a sum of squares is finite unless one is not, or, of float64, unless it is too large
            parameters, reduced, *_ = self.reduced
            if np.isfinite(reduced[parameters[:, 0], norm.total[0]]).all():
                return -1
        return finite.first(self.gradient, self.parallel, self.tasks, self.work, self.addresses)

    def norms(self) -> dict[int, float]:
        """Segment -> norm of its gradient in the last step, if the first thing that the rule takes is that."""
        norm = self.lowered.norm
        if norm is None or norm.total is None:
            return {}
        parameters, reduced, *_ = self.reduced
        return {int(k): math.sqrt(reduced[k, norm.total[0]]) for k in parameters[:, 0]}

    def run(self, q: int, clock: np.ndarray, last: bool) -> None:
        """Pass `q`."""
        arguments = (self.tasks, self.work, self.addresses, self.columns, clock, last, *self.reduced)
        if self.parallel:
            threads.launch(self.kernels[q], *arguments)
        else:
            self.kernels[q](*arguments)
        for product in self.products[q]:
            product.run(self.hyper)


def threads_for(size: int) -> int:
    """Threads for a launch over so many bytes."""
    if size > cpu.PARALLEL_BYTES:
        threads.warn_if_forked()
        return threads.count()
    return 1
