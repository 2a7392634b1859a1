"""One launch of a step on a CUDA device, and what the host asks launches about: norms, and gradients not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.codecs import Codec
from fastopt.devices.array import DeviceArray, zeros
from fastopt.devices.rows import DeviceRows
from fastopt.lowered import Lowered
from fastopt.schema import Rule
from fastopt.staged import Staged
from fastopt.targets import cuda_finite
from fastopt.targets.driver import Call

if TYPE_CHECKING:
    from fastopt.devices.cuda import Cuda


@dataclass(eq=False)
class DeviceLaunch(Staged):
    """The segments that share a lowered rule and dtypes. What `Staged` has on the host only serves to check values."""

    rule: Rule
    addresses: np.ndarray
    addresses_at: DeviceArray
    partials: DeviceArray
    lowered: Lowered
    gradient: Codec
    n_chunks: int
    work_at: DeviceArray
    reduced: DeviceArray
    members: list[int]  # the segments
    everywhere: dict[str, tuple[int, ...]]  # kernel -> the totals over all parameters that it leaves in `partials`
    calls: dict[tuple[int, int], Call]  # (pass, place in the pass) -> kernel
    prologue: Call
    kept: list[Any]
    touched: DeviceRows | None = None  # of gradients of rows


class Watch:
    """The look at gradients before a step."""

    def __init__(self, place: Cuda, n_segments: int, launches: Sequence[DeviceLaunch]):
        self._place = place
        self._found = zeros(place.driver, place.device, n_segments, np.int64)
        module = cuda_finite.module()
        self._calls = [place.call(module, "begin", "one", [n_segments, self._found.address])]
        for x in launches:
            given = [x.n_chunks, x.addresses.shape[1], x.work_at.address, x.addresses_at.address]
            given += [self._found.address, place.control.address]
            self._calls.append(place.call(module, f"look_{x.gradient}", "chunks", given, x.n_chunks))

    def look(self, on: int) -> int:
        """The first segment whose gradient is not finite, or -1. Waits for the device, and puts the skip flag back."""
        place = self._place
        place.driver.run(place.device, self._calls, on)
        bad = np.flatnonzero(self._found.copy_to_host())
        if bad.size:
            place.control[1:2] = 0.0
        return int(bad[0]) if bad.size else -1


def norms(launches: Sequence[DeviceLaunch]) -> tuple[float | None, dict[int, float]]:
    """Of the gradients in the last step, of all and by segment, where they were taken first. Waits."""
    whole: float | None = None
    each: dict[int, float] = {}
    for launch in launches:
        number = launch.lowered.norm
        if number is None or number.total is None or number.total[1] == "group":
            continue
        reduced = launch.reduced.copy_to_host().reshape(-1, launch.lowered.slots)
        squares = {k: float(reduced[k, number.slot]) for k in launch.members}
        if number.total[1] == "all":
            whole = math.sqrt(squares[launch.members[0]])
        else:
            each |= {k: math.sqrt(x) for k, x in squares.items()}
    return whole, each
