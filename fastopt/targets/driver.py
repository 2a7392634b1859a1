"""The only file that talks to the CUDA driver. Devices, addresses and streams are ints; stream 0 is the default one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastopt.errors import DeviceError
from fastopt.targets import toolkit
from fastopt.targets.toolkit import INSTALL


class Call(NamedTuple):
    """A launch with everything in place: nothing is left to do per step but to hand it to the driver."""

    function: Any
    blocks: int
    threads: int
    arguments: Any
    kept: Any = None  # memory that `arguments` points to


class Driver(Protocol):
    """What fastopt asks of a GPU. Failures raise `DeviceError` with the driver's name for them; no memory: MemoryError.

    Work on a `stream` of None is finished when the call returns, and waits for nothing that is under way elsewhere.
    """

    def count(self) -> int: ...
    def name(self, device: int) -> str: ...
    def capability(self, device: int) -> tuple[int, int]: ...
    def alloc(self, device: int, size: int) -> int: ...
    def free(self, device: int, address: int) -> None: ...
    def zero(self, device: int, address: int, size: int) -> None: ...
    def copy_in(self, device: int, address: int, host: np.ndarray, stream: int | None = None) -> None: ...
    def copy_out(self, device: int, host: np.ndarray, address: int) -> None: ...
    def copy(self, device: int, target: int, source: int, size: int) -> None: ...
    def owner(self, address: int) -> int | None:
        """The device on which an address is allocated; None: on none, or no longer."""
        ...

    def assemble(self, ptx: str, capability: tuple[int, int]) -> bytes: ...
    def load(self, device: int, image: bytes, name: str) -> Any: ...
    def blocks(self, device: int, function: Any, threads: int) -> int:
        """How many blocks of a function run at once."""
        ...

    def call(self, function: Any, blocks: int, threads: int, arguments: Sequence[int]) -> Call: ...
    def run(self, device: int, calls: Sequence[Call], stream: int) -> None: ...
    def wait(self, device: int, stream: int, other: int) -> None:
        """`stream` goes on when what is on `other` now is done."""
        ...

    def synchronize(self, device: int) -> None: ...
    def capturing(self, device: int, stream: int) -> bool:
        """Is work on the stream recorded into a graph instead of run?"""
        ...

    def relaxed(self) -> Any:
        """A `with` block in which memory may be allocated and copied although a graph is being recorded."""
        ...


_made: Driver | None = None
_forked = False


def get() -> Driver:
    """The driver. Raises `DeviceError`, with the remedy, if there is none, or no GPU."""
    global _made
    if _made is None:
        _made = _Cuda()
    return _made


def install(driver: Driver | None) -> None:
    """Use another driver from now on; None: look for the real one again. For tests."""
    global _made
    _made = driver


def _after_fork() -> None:
    global _forked
    _forked = _made is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Cuda:
    """`Driver` on NVIDIA's library, through cuda-bindings."""

    def __init__(self) -> None:
        try:
            driver: Any = import_module("cuda.bindings.driver")
        except ImportError as error:
            raise DeviceError(f"the CUDA target needs cuda-bindings: {INSTALL}. ({error})") from error
        self._cu = driver
        try:
            (code,) = driver.cuInit(0)
        except Exception as error:  # cuda-bindings has an exception of its own for a library that is not there
            raise DeviceError(
                f"no NVIDIA driver was found on this machine: install one, and {INSTALL}; or leave out device='cuda'. "
                f"({error})"
            ) from error
        if int(code) or not self.count():
            found = "the driver finds no CUDA device" if not int(code) else f"the NVIDIA driver says {code.name}"
            raise DeviceError(f"{found}; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or leave out device='cuda'.")
        self._context = cache(lambda device: self._ask("cuDevicePrimaryCtxRetain", device))
        self._own = cache(lambda device: self._ask("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._event = cache(lambda device: self._ask("cuEventCreate", driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))

    def _ask(self, function: str, *arguments: Any) -> Any:
        code, *values = getattr(self._cu, function)(*arguments)
        if int(code):
            raise self._error(code, function)
        return values[0] if values else None

    def _error(self, code: Any, function: str) -> Exception:
        if code == self._cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            return MemoryError(f"{function}: {code.name}")
        forked = " (this process was forked after CUDA had started; start workers with `spawn`)" if _forked else ""
        return DeviceError(f"{function}: {code.name}{forked}")

    @contextmanager
    def _on(self, device: int) -> Iterator[None]:
        self._ask("cuCtxPushCurrent", self._context(device))
        try:
            yield
        finally:
            self._cu.cuCtxPopCurrent()  # other libraries find their own context again

    def _attribute(self, device: int, name: str) -> int:
        attribute = getattr(self._cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return self._ask("cuDeviceGetAttribute", attribute, device)

    # ---------------------------------------------------------------- devices and memory
    def count(self) -> int:
        return self._ask("cuDeviceGetCount")

    def name(self, device: int) -> str:
        return self._ask("cuDeviceGetName", 128, device).split(b"\0")[0].decode()

    def capability(self, device: int) -> tuple[int, int]:
        return tuple(self._attribute(device, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))  # type: ignore[return-value]

    def alloc(self, device: int, size: int) -> int:
        with self._on(device):
            return int(self._ask("cuMemAlloc", size))

    def free(self, device: int, address: int) -> None:
        with self._on(device):
            self._ask("cuMemFree", address)

    def zero(self, device: int, address: int, size: int) -> None:
        with self._on(device):
            self._ask("cuMemsetD8Async", address, 0, size, self._own(device))
            self._ask("cuStreamSynchronize", self._own(device))

    def copy_in(self, device: int, address: int, host: np.ndarray, stream: int | None = None) -> None:
        # from pageable memory the driver takes its own copy before it returns: `host` may change at once
        with self._on(device):
            on = self._own(device) if stream is None else stream
            self._ask("cuMemcpyHtoDAsync", address, host.ctypes.data, host.nbytes, on)
            if stream is None:
                self._ask("cuStreamSynchronize", on)

    def copy_out(self, device: int, host: np.ndarray, address: int) -> None:
        with self._on(device):
            self._ask("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, self._own(device))
            self._ask("cuStreamSynchronize", self._own(device))

    def copy(self, device: int, target: int, source: int, size: int) -> None:
        with self._on(device):
            self._ask("cuMemcpyDtoDAsync", target, source, size, self._own(device))
            self._ask("cuStreamSynchronize", self._own(device))

    def owner(self, address: int) -> int | None:
        what = self._cu.CUpointer_attribute
        wanted = (what.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, what.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
        kind, ordinal = (self._cu.cuPointerGetAttribute(attribute, address) for attribute in wanted)
        on_device = not int(kind[0]) and int(kind[1]) == int(self._cu.CUmemorytype.CU_MEMORYTYPE_DEVICE)
        return int(ordinal[1]) if on_device and not int(ordinal[0]) else None

    # ---------------------------------------------------------------- kernels
    def assemble(self, ptx: str, capability: tuple[int, int]) -> bytes:
        return toolkit.cubin(ptx, capability)

    def load(self, device: int, image: bytes, name: str) -> Any:
        with self._on(device):
            module = self._ask("cuModuleLoadData", image)
            return self._ask("cuModuleGetFunction", module, name.encode())

    def blocks(self, device: int, function: Any, threads: int) -> int:
        with self._on(device):
            each = self._ask("cuOccupancyMaxActiveBlocksPerMultiprocessor", function, threads, 0)
        return max(1, each) * self._attribute(device, "MULTIPROCESSOR_COUNT")

    def call(self, function: Any, blocks: int, threads: int, arguments: Sequence[int]) -> Call:
        values = np.array(arguments, np.uint64)
        pointers = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        return Call(function, blocks, threads, pointers.ctypes.data, (values, pointers))

    def run(self, device: int, calls: Sequence[Call], stream: int) -> None:
        launch = self._cu.cuLaunchKernel
        self._ask("cuCtxPushCurrent", self._context(device))  # not `_on`: every step comes here
        try:
            for function, blocks, threads, arguments, _ in calls:
                (code,) = launch(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, 0)
                if int(code):
                    raise self._error(code, "cuLaunchKernel")
        finally:
            self._cu.cuCtxPopCurrent()

    # ---------------------------------------------------------------- streams
    def wait(self, device: int, stream: int, other: int) -> None:
        with self._on(device):
            event = self._event(device)
            self._ask("cuEventRecord", event, other)
            self._ask("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, device: int) -> None:
        with self._on(device):
            self._ask("cuCtxSynchronize")

    def capturing(self, device: int, stream: int) -> bool:
        self._ask("cuCtxPushCurrent", self._context(device))
        try:
            code, status = self._cu.cuStreamIsCapturing(stream)
        finally:
            self._cu.cuCtxPopCurrent()
        return not int(code) and int(status) != 0  # an error here is one of the launch, too, which reports it

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        mode = self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = self._ask("cuThreadExchangeStreamCaptureMode", mode)
        try:
            yield
        finally:
            self._cu.cuThreadExchangeStreamCaptureMode(before)
