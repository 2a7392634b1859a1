"""A CUDA device as the place of an optimizer: its memory, its clock, its streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from fastopt import threads
from fastopt.devices import plan
from fastopt.devices.array import DeviceArray, upload, zeros
from fastopt.devices.foreign import EXPECTED, Producer, on_gpu, stream_of, view
from fastopt.devices.gradients import DeviceGradients
from fastopt.errors import ArrayTypeError, DeviceError
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.params import Tree
from fastopt.targets import cubins, cuda, driver
from fastopt.targets.driver import Call
from fastopt.touched import Touched

_T, _DIRTY, _STEPS = 0, 1, 2  # the clock: steps done, is one under way, then the steps of each parameter


class Cuda:
    """A CUDA device, as one optimizer uses it.

    Attributes:
        clock: int64, the optimizer's clock; what the host holds is a copy, and ahead of it by the steps under way.
        control: float64 (3,): factor of the gradients, skip this step (not 0), norm of the gradients.
        captured: plans that graphs hold; kept as long as the optimizer.
    """

    blocks_by_rows = False
    clock: DeviceArray
    control: DeviceArray

    def __init__(self, gpu: driver.Driver, device: int, precise: bool):
        self.driver, self.device, self.precise = gpu, device, precise
        self.captured: list[plan.DevicePlan] = []
        self._producers: dict[Producer, None] = {}
        self._incoming: DeviceGradients | None = None
        self._factor = 1.0  # of the gradients, as it was written last
        self._last: int | None = None  # the stream of the last step

    # ---------------------------------------------------------------- memory
    def parameter(self, x: Any, name: str) -> DeviceArray:
        """`x` as an array that a kernel can update in place. Raises `DeviceError` or `ArrayTypeError`."""
        if not on_gpu(x):
            raise DeviceError(
                f"parameter `{name}` is a {type(x).__name__} in host memory, and the optimizer works on "
                f"cuda:{self.device}; use fastopt.pack(params, device='cuda'), or give the arrays of a GPU library."
            )
        try:
            v = view(x, self.driver)
        except (ArrayTypeError, DeviceError) as error:
            raise type(error)(f"parameter `{name}`: {error}") from error
        if v.device != self.device and v.address:
            raise DeviceError(f"parameter `{name}` is on cuda:{v.device}; others are on cuda:{self.device}.")
        if v.codec is None:
            raise ArrayTypeError(f"parameter `{name}` has dtype {v.dtype}; {EXPECTED}.")
        if not v.contiguous:
            raise ArrayTypeError(f"parameter `{name}` of shape {v.shape} is not C-contiguous; pass a contiguous copy.")
        if v.address % v.dtype.itemsize:
            raise ArrayTypeError(f"parameter `{name}` starts at no multiple of {v.dtype.itemsize} bytes; pass a copy.")
        if not v.writeable:
            raise ArrayTypeError(f"parameter `{name}` is read-only; pass a writable copy.")
        if v.producer:
            self._producers[v.producer] = None
        return DeviceArray(self.driver, self.device, v.address, v.shape, v.dtype, x)

    def output(self, x: Any, name: str) -> DeviceArray | None:
        """`x` as an array that a kernel can write; None for one that none can. Raises `DeviceError`."""
        if not on_gpu(x):
            raise DeviceError(f"{name} is a {type(x).__name__} in host memory; the parameter is on cuda:{self.device}.")
        try:
            v = view(x, self.driver)
        except ArrayTypeError:
            return None
        except DeviceError as error:
            raise DeviceError(f"{name}: {error}") from error
        if v.device != self.device and v.address:
            raise DeviceError(f"{name} is on cuda:{v.device}; the parameter is on cuda:{self.device}.")
        if v.codec is None or not v.contiguous or not v.writeable or v.address % v.dtype.itemsize:
            return None
        if v.producer:
            self._producers[v.producer] = None
        return DeviceArray(self.driver, self.device, v.address, v.shape, v.dtype, x)

    def span(self, array: DeviceArray) -> tuple[int, int]:
        return array.address, array.address + array.nbytes

    def zeros(self, size: int, dtype: Any) -> DeviceArray:
        return zeros(self.driver, self.device, size, dtype)

    def mapped(self, path: Any) -> NoReturn:
        raise DeviceError(f"state_path is {str(path)!r}, which is for parameters in host memory; leave it out.")

    def copy_in(self, target: DeviceArray, host: np.ndarray, stream: int | None) -> None:
        """Copy, in order on a stream; None: at once."""
        if host.size and stream is not None:
            self.driver.copy_in(self.device, target.address, host, stream)
        elif host.size:
            with self.driver.relaxed():
                self.driver.copy_in(self.device, target.address, host)

    def check(self, settings: Settings, owned: Sequence[DeviceArray], sparse: str) -> None:
        if sparse != "lazy":
            raise DeviceError(
                f"sparse is {sparse!r}, which parameters on a GPU cannot have; there rows without a gradient wait: "
                "leave it out, or say sparse='lazy'."
            )
        for k, array in enumerate(owned):
            if settings.lowered(k, array).matrices:
                raise DeviceError(
                    f"`{settings.rule(k).name}` calls functions of whole matrices, which the CUDA target cannot run; "
                    "keep these parameters on the CPU, or give their group another rule."
                )

    # ---------------------------------------------------------------- the clock
    def start(self, n: int) -> np.ndarray:
        clock = np.zeros(_STEPS + n, np.int64)
        self.clock = upload(self.driver, self.device, clock)
        self.control = upload(self.driver, self.device, np.array([1.0, 0.0, 0.0]))
        return clock

    def read(self, clock: np.ndarray) -> np.ndarray:
        dirty = clock[_DIRTY]
        clock[...] = self.clock.copy_to_host()
        clock[_DIRTY] = dirty
        return clock

    def write(self, clock: np.ndarray) -> None:
        now = clock.copy()
        now[_DIRTY] = 0
        self.clock[...] = now

    # ---------------------------------------------------------------- steps
    def gradients(
        self, tree: Tree, names: Sequence[str], owned: Sequence[Any], frozen: Sequence[bool], flats: Any, packed: Any
    ) -> Gradients:
        self._incoming = DeviceGradients(self.driver, self.device, tree, names, owned, frozen, flats, packed)
        return self._incoming

    def build(
        self,
        settings: Settings,
        segments: Sequence[Segment],
        kinds: tuple[str, ...],
        clock: np.ndarray,
        touched: dict[str, Touched],
        reading: str,
        stream: int | None,
    ) -> plan.DevicePlan:
        capturing = self.capturing(self.ready(stream))
        if capturing and (k := next((k for k, kind in enumerate(kinds) if kind[:1] == "r"), None)) is not None:
            raise DeviceError(
                f"gradient of `{settings.names[k]}`: which rows it touches is known to the host alone, which a CUDA "
                "graph cannot ask; give it a dense gradient, or step outside of the graph."
            )
        if not capturing:  # waiting would spoil a graph, and what matters here does not change
            self.driver.synchronize(self.device)
        with self.driver.relaxed():
            now = np.empty_like(clock)
            self.driver.copy_out(self.device, now, self.clock.address)
            missed = (now[_T] - now[_STEPS:]).tolist()
            return plan.build(self, settings, segments, kinds, missed, threads.epoch)

    def copied(self, array: DeviceArray) -> DeviceArray:
        made = self.zeros(array.size, array.dtype).reshape(array.shape)
        made[...] = array
        return made

    def show(self, settings: Settings, segments: Sequence[Segment], kinds: tuple[str, ...], clock: np.ndarray) -> None:
        missed, now = (clock[_T] + 1 - clock[_STEPS:]).tolist(), self.read(clock.copy())
        made = plan.build(self, settings, segments, kinds, missed, threads.epoch)
        made.aim(np.zeros(len(segments), np.uint64))  # a view reads no gradient
        self.write(clock)
        try:
            made.run(settings, clock, None)
        finally:
            self.write(now)  # which waits

    def call(self, module: Any, name: str, grid: str, arguments: list[int], limit: int = 1) -> Call:
        """A kernel of a generated module with its arguments; `limit`: more blocks than that would find no work."""
        function = cubins.function(self.driver, self.device, module, name, self.precise)
        count = getattr(module, "THREADS", cuda.THREADS)
        blocks = 1 if grid == "one" else min(limit, self.driver.blocks(self.device, function, count))
        return self.driver.call(function, max(1, blocks), count, arguments)

    def stream(self, stream: Any) -> int:
        return stream_of(stream)

    def ready(self, stream: int | None) -> int:
        """The stream of a step: the given one, or that of a library whose arrays it takes; it waits for the others'."""
        incoming = self._incoming.producers if self._incoming else ()
        made = [ask() for ask in self._producers] + [ask() for ask in incoming if ask not in self._producers]
        if stream is None:
            stream = made[0] if made else 0
        for other in dict.fromkeys(made):
            if other != stream and other + stream != 1:  # 0 and 1 are names of the same, the default stream
                self.driver.wait(self.device, stream, other)
        return stream

    def follow(self, stream: int, capturing: bool) -> None:
        """A step begins on a stream: behind the one before."""
        if self._last not in (None, stream) and not capturing:
            self.driver.synchronize(self.device)
        if not capturing:
            self._last = stream

    def unscale(self, factor: float, stream: int) -> None:
        """Multiply gradients by `factor` from now on; 1 leaves what others have written into `control`."""
        if factor != self._factor:
            self._factor = factor
            self.copy_in(self.control[:1], np.array([factor]), stream)

    def capturing(self, stream: int) -> bool:
        return self.driver.capturing(self.device, stream)

    def changed(self, settings: Settings, clock: np.ndarray, stream: int | None, replay: bool = False) -> None:
        if not self.captured:
            return
        if replay and (stream is not None or self._producers):
            stream = self.ready(stream)
        else:  # in order with a replay on whatever stream
            self.driver.synchronize(self.device)
            stream = None
        for captured in self.captured:
            captured.write(settings, int(clock[_T]) + 1, stream)
        clock[_T] += replay
