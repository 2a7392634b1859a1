"""A gradient of rows on a device: its table of places, made on the host and copied in the step's order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastopt.devices.array import DeviceArray, zeros
from fastopt.lowered import Lowered
from fastopt.rows import Rows
from fastopt.targets.cuda_touched import HEAD
from fastopt.touched import helpers

if TYPE_CHECKING:
    from fastopt.devices.cuda import Cuda

CHUNKS = 256  # that a look at the values is cut into
_SMALLEST = 1 << 10  # elements of such a chunk


class DeviceRows:
    """One parameter's rows.

    Attributes:
        segment: the parameter.
        work: uint64 (CHUNKS, 4), columns lo, hi, segment, group: runs of the values, for a look at them.
        table: uint64, on the device: n, how many rows are touched, and k, of how many gradients; n + 1 pairs of a row
            and where its part of the order begins; then the order, the positions of the k gradients, row after row.
    """

    def __init__(self, place: Cuda, array: DeviceArray, segment: int):
        self.segment, self._place = segment, place
        self._n_rows, self._columns = len(array), math.prod(array.shape[1:])
        self.work = np.zeros((CHUNKS, 4), np.uint64)
        self.work[:, 2] = segment
        self._host = np.zeros(HEAD + 2, np.uint64)
        self._room, self._pointed = 0, 0
        self._grow(64)

    def _grow(self, size: int) -> None:
        """Make room for so many indices. What is queued may still read the old table: waits for it."""
        place, room = self._place, 1 << (size - 1).bit_length()
        with place.driver.relaxed():
            if self._room:
                place.driver.synchronize(place.device)
            self.table = zeros(place.driver, place.device, HEAD + 2 * (room + 1) + room, np.uint64)
        self._order, self._other = np.empty((2, room), np.int64)
        self._places = np.empty((room + 1, 2), np.uint64)
        self._room = room

    @property
    def moved(self) -> bool:
        """Is the table elsewhere than where `point` said?"""
        return self._pointed != self.table.address

    def point(self, addresses: np.ndarray, lowered: Lowered) -> None:
        """Write where the table is."""
        self._pointed = addresses[self.segment, lowered.buffers.index("places")] = self.table.address

    def take(self, given: Rows) -> None:
        """Put the rows of a step in order, on the host."""
        k = len(given.indices)
        if k > self._room:
            self._grow(k)
        n = helpers().prepare(
            given.indices, self._n_rows, self._order, self._other, self._places, np.zeros((1, 4), np.uint64)
        )
        parts = np.array([n, k], np.uint64), self._places[: n + 1].ravel(), self._order[:k].view(np.uint64)
        self._host = np.concatenate(parts)
        size = k * self._columns
        chunk = max(_SMALLEST, -(-size // CHUNKS))
        self.work[:, 0] = np.minimum(np.arange(CHUNKS) * chunk, size)
        self.work[:, 1] = np.minimum(np.arange(1, CHUNKS + 1) * chunk, size)

    @property
    def places(self) -> dict[str, int]:
        """What the table of addresses says; "order" and "sums" are the CPU's."""
        return {"columns": self._columns, "places": self.table.address, "order": 0, "sums": 0}

    def upload(self, stream: int, work_at: DeviceArray | None) -> None:
        """Copy the table, and the runs of the values to where they belong, in order on a stream."""
        self._place.copy_in(self.table, self._host, stream)
        if work_at is not None:
            self._place.copy_in(work_at, self.work, stream)
