"""Where an optimizer works, chosen once from its arrays: what it asks of memory, on the host and on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fastopt import params as arrays
from fastopt import plan
from fastopt.devices.cuda import Cuda
from fastopt.devices.foreign import on_gpu, view
from fastopt.errors import ArrayTypeError, ConfigError, DeviceError
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.mapped import Mapped
from fastopt.params import Tree
from fastopt.targets import driver
from fastopt.touched import Touched

_T, _STEPS = 0, 2  # the clock: steps done, is one under way, then the steps of each parameter


class Place(Protocol):
    """The operations in which host and device differ.

    `blocks_by_rows`: can kernels of rules that walk along rows take state in 8 bits?
    """

    blocks_by_rows: bool

    def parameter(self, x: Any, name: str) -> Any: ...
    def output(self, x: Any, name: str) -> Any:
        """`x` as an array that a kernel can write, or None."""
        ...

    def span(self, array: Any) -> tuple[int, int]: ...
    def zeros(self, size: int, dtype: Any) -> Any: ...
    def mapped(self, path: Any) -> Callable[[int, Any], Any]:
        """`zeros` in a file."""
        ...

    def check(self, settings: Settings, owned: Sequence[Any], sparse: str) -> None:
        """Raise `DeviceError` for what cannot run here."""
        ...

    def start(self, n: int) -> np.ndarray:
        """The clock of `n` parameters, on the host; `read` brings it up to date, `write` makes it hold."""
        ...

    def gradients(
        self, tree: Tree, names: Sequence[str], owned: Sequence[Any], frozen: Sequence[bool], flats: Any, packed: Any
    ) -> Gradients: ...
    def read(self, clock: np.ndarray) -> np.ndarray: ...
    def write(self, clock: np.ndarray) -> None: ...
    def build(
        self,
        settings: Settings,
        segments: Sequence[Segment],
        kinds: tuple[str, ...],
        clock: np.ndarray,
        touched: dict[str, Touched],
        reading: str,
        stream: int | None,
    ) -> Any: ...
    def stream(self, stream: Any) -> int: ...
    def copied(self, array: Any) -> Any:
        """Another array that holds the same, for as long as parameters are shown otherwise."""
        ...

    def show(self, settings: Settings, segments: Sequence[Segment], kinds: tuple[str, ...], clock: np.ndarray) -> None:
        """A step that counts nowhere, whose rules are views: `clock` is that before the last step."""
        ...

    def changed(self, settings: Settings, clock: np.ndarray, stream: int | None, replay: bool = False) -> None:
        """Bring new hyperparameters to graphs that were captured. `replay`: the host hears of a step in this way."""
        ...


class Host:
    """The CPU."""

    blocks_by_rows = True
    parameter = staticmethod(arrays.parameter)
    output = staticmethod(arrays.output)
    zeros = staticmethod(arrays.zeros)
    span = staticmethod(arrays.span)

    def mapped(self, path: Any) -> Callable[[int, Any], np.ndarray]:
        return Mapped(path).zeros

    def check(self, settings: Settings, owned: Sequence[np.ndarray], sparse: str) -> None:
        pass

    def start(self, n: int) -> np.ndarray:
        return np.zeros(_STEPS + n, np.int64)

    def gradients(self, *arguments: Any) -> Gradients:
        return Gradients(*arguments)

    def read(self, clock: np.ndarray) -> np.ndarray:
        return clock

    def write(self, clock: np.ndarray) -> None:
        pass

    def build(
        self,
        settings: Settings,
        segments: Sequence[Segment],
        kinds: tuple[str, ...],
        clock: np.ndarray,
        touched: dict[str, Touched],
        reading: str,
        stream: int | None,
    ) -> plan.Plan:
        return plan.build(settings, segments, kinds, (clock[_T] - clock[_STEPS:]).tolist(), touched, reading)

    def copied(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def show(self, settings: Settings, segments: Sequence[Segment], kinds: tuple[str, ...], clock: np.ndarray) -> None:
        missed = (clock[_T] + 1 - clock[_STEPS:]).tolist()
        plan.build(settings, segments, kinds, missed, {}, "lazy").run(settings, clock)

    def stream(self, stream: Any) -> int:
        raise ConfigError(f"stream is {stream!r}; these parameters are in host memory, where there are no streams.")

    def changed(self, settings: Settings, clock: np.ndarray, stream: int | None, replay: bool = False) -> None:
        pass


def choose(device: str, leaves: Sequence[Any], names: Sequence[str], precise: bool) -> Host | Cuda:
    """The place of an optimizer. Raises `DeviceError` for what is not there, or arrays of several places."""
    kind, number = _parse(device)
    there = [on_gpu(x) for x in leaves]
    if kind == "cpu" or (kind == "auto" and not any(there)):
        if any(there):
            name = names[there.index(True)]
            raise DeviceError(f"device is 'cpu', but `{name}` lives on a GPU; leave `device` out, or copy it.")
        return Host()
    gpu = driver.get()
    if not all(there):
        here, away = names[there.index(False)], next((n for n, t in zip(names, there, strict=True) if t), None)
        mixed = f", and `{away}` on a GPU" if away else f", but device is {device!r}"
        raise DeviceError(
            f"parameter `{here}` is in host memory{mixed}; parameters are updated where they are. Use "
            "fastopt.pack(params, device='cuda'), or give the arrays of a GPU library."
        )
    found = _device_of(leaves, names, gpu)
    if number is not None and number != found:
        raise DeviceError(f"device is {device!r}, but `{names[0]}` is on cuda:{found}.")
    return Cuda(gpu, found, precise)


def room(device: str, leaves: Sequence[Any], names: Sequence[str]) -> Cuda | None:
    """Where copies of arrays go: a CUDA device, or None for host memory. Raises `DeviceError`."""
    kind, number = _parse(device)
    there = [x for x in leaves if on_gpu(x)]
    if kind == "cpu" or (kind == "auto" and not there):
        return None
    gpu = driver.get()
    if number is None:
        number = _device_of(there, names, gpu) if there else 0
    if number >= gpu.count():
        raise DeviceError(f"device is {device!r}, but the last one here is cuda:{gpu.count() - 1}.")
    return Cuda(gpu, number, False)


def _parse(device: Any) -> tuple[str, int | None]:
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:1'.")
    return kind, int(number) if number else None


def _device_of(leaves: Sequence[Any], names: Sequence[str], gpu: driver.Driver) -> int:
    """The device of the first array that has memory."""
    for leaf, name in zip(leaves, names, strict=False):
        try:
            v = view(leaf, gpu)
        except (ArrayTypeError, DeviceError) as error:
            raise type(error)(f"parameter `{name}`: {error}") from error
        if v.address:
            return v.device
    return 0
