"""Sparse gradients, torch.sparse_coo: rows that a kernel steps, once what they name is known to be rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastopt import touched
from fastopt.rows import Rows
from fastopt.rows_launch import RowsLaunch
from fastopt.torch import place, where
from fastopt.torch.part import Part


class Sparse:
    """The gradients of `parts`, which are `places` among all parameters and called `names`; lazily, as torch has it."""

    def __init__(self, parts: Sequence[Part], places: Sequence[int], names: Sequence[str]):
        self.places = places
        self._taken: dict[str, Rows] = {}  # whose memory kernels read
        self._parts = list(zip(parts, places, names, strict=True))

    def aim(self, made: Any, given: Sequence[Any]) -> None:
        """Raises `GradientError` for indices outside a parameter; otherwise the next step goes over their rows."""
        if not self._parts:
            return
        rows = {name: _rows(given[k], mine.array) for mine, k, name in self._parts}
        for mine, _, name in self._parts:
            touched.check(rows[name], mine.array, name)
        place.point_rows(made, rows)
        self._taken = rows

    def release(self, made: Any) -> None:
        """The step is done: gradients that are set to None must be free."""
        if self._parts:
            self._taken = {}
            for launch in made.launches:
                if isinstance(launch, RowsLaunch):
                    launch.release()


def _rows(g: torch.Tensor, array: Any) -> Rows:
    """Indices need not be coalesced: the step sums rows that come twice. Those on a device the host waits for."""
    indices, values = where.host(g._indices()), g._values().detach()
    values = values if values.dtype == torch.float64 else values.float()
    if indices.shape[0] == 1:
        index = indices[0].numpy()
    else:
        # an index that is out of range in its own axis may still be one of a row: so it becomes -1, which is none
        index = np.zeros(indices.shape[1], np.int64)
        good = np.ones(indices.shape[1], np.bool_)
        for axis, n in zip(indices.numpy(), g.shape, strict=False):
            index = index * n + axis
            good &= (axis >= 0) & (axis < n)
        index = np.where(good, index, -1)
    return Rows(np.ascontiguousarray(index), values.reshape(len(values), array.shape[1]).contiguous())
