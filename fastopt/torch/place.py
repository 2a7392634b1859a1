"""A CUDA device under a torch optimizer: its clock beside the states, scaled gradients, and a plan of its kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from fastopt import plan, threads
from fastopt.devices import plan as devices
from fastopt.devices.cuda import Cuda
from fastopt.errors import DeviceError
from fastopt.launch import Segment
from fastopt.rows import Rows
from fastopt.rows_launch import RowsLaunch
from fastopt.targets import driver
from fastopt.torch import tensors, where

_multiply: Any = vars(torch)["_foreach_mul_"]
PRECISE = False  # without fused multiply-add: the bits of the CPU


class Place(Cuda):
    """The device of `like`, on torch's current stream there; clock and control are tensors, which torch can write.

    Attributes:
        dense: uint64, where the gradient of each segment is; 0 for one of rows.
    """

    dense: np.ndarray

    def __init__(self, like: torch.Tensor, clock: np.ndarray):
        number = where.device(like)
        super().__init__(driver.get(), number, PRECISE)
        self._producers[where.stream(number)] = None
        begin = [torch.from_numpy(clock), torch.from_numpy(np.array([1.0, 0.0, 0.0]))]
        ticks, self._numbers = (like.detach().new_empty(x.shape, dtype=x.dtype).copy_(x) for x in begin)
        self.clock, self.control = (tensors.view(x, shaped=True) for x in (ticks, self._numbers))

    def capturing(self, stream: int) -> bool:
        _refuse(self.driver, self.device, stream)
        return False

    def scale(self, scale: torch.Tensor | None, found_inf: torch.Tensor, grads: Sequence[torch.Tensor]) -> None:
        """Divide the gradients of the next step by `scale`, and skip it where something was found. Nobody waits.

        What kernels multiply by, `grads` are, too, for whoever reads them after the step; `settle` does that.
        """
        device = self._numbers.device
        found = found_inf.to(device, non_blocking=True).reshape(()) != 0
        self._went = torch.where(found, 0.0, 1.0)
        self._numbers[1] = 1 - self._went
        self._scaled = list(grads) if scale is not None else []
        if scale is not None:
            factor = scale.to(device, non_blocking=True).reshape(()).double().reciprocal()
            self._numbers[0] = factor
            self._factor_of_grads = torch.where(found, 1.0, factor)

    def settle(self) -> torch.Tensor:
        """After such a step: gradients as they were taken, the next step as usual. 0 on the device if it did not go."""
        if self._scaled:
            _multiply(self._scaled, self._factor_of_grads)
        self._scaled = []
        self._numbers[0].fill_(1.0)
        self._numbers[1].fill_(0.0)
        return self._went


def check(device: int) -> None:
    """Raise `DeviceError` while torch's stream on a device is captured in a graph."""
    if device != where.HOST:
        _refuse(driver.get(), device, where.stream(device)())


def _refuse(gpu: driver.Driver, device: int, stream: int) -> None:
    if gpu.capturing(device, stream):
        raise DeviceError(
            "a step in a CUDA graph would count on the host, which replays do not reach. Use capturable=True, which "
            "leaves the step to torch where it has the class, or fastopt.Optimizer."
        )


def build(
    like: torch.Tensor, rows: Any, segments: Sequence[Segment], kinds: tuple[str, ...], clock: np.ndarray, missed: Any
) -> Any:
    """The plan of a step where `like` is: a `Plan`, or a `DevicePlan`. Compiles what is not compiled yet."""
    if where.device(like) == where.HOST:
        return plan.build(rows, segments, kinds, missed)
    return devices.build(Place(like, clock), rows, segments, kinds, missed, threads.epoch)


def point(made: Any, addresses: np.ndarray) -> None:
    """Tell a plan where its dense gradients are, which belong to its first segments."""
    if not isinstance(made, devices.DevicePlan):
        for launch in made.launches:
            launch.addresses[: len(addresses), 1] = addresses
        return
    here = cast(Place, made.place)
    here.dense = np.zeros(len(made.kinds), np.uint64)
    here.dense[: len(addresses)] = addresses
    made.aim(here.dense)


def point_rows(made: Any, given: Mapping[str, Rows]) -> None:
    """The same for gradients of rows, by the parameter's name, whose values are tensors."""
    if not isinstance(made, devices.DevicePlan):
        for launch in made.launches:
            if isinstance(launch, RowsLaunch):
                launch.take(given[launch.name], given[launch.name].values.data_ptr())
        return
    every = cast(Place, made.place).dense.copy()
    for touched in (launch.touched for launch in made.launches if launch.touched is not None):
        mine = given[made.names[touched.segment]]
        touched.take(mine)
        every[touched.segment] = mine.values.data_ptr()
    made.aim(every)
