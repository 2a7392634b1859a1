"""`DeviceArray`: a C-contiguous array of numbers on a CUDA device, which every GPU library can look into."""

from __future__ import annotations

import math
import weakref
from importlib import import_module
from typing import Any, NoReturn

import numpy as np

from fastopt.errors import ArrayTypeError, DeviceError
from fastopt.targets.driver import Driver

_HOST_CHUNK = 1 << 20  # bytes of a number repeated on the host, where a buffer is filled with it


class Memory:
    """An allocation, freed with the last array that looks into it."""

    def __init__(self, driver: Driver, device: int, size: int):
        self.address = driver.alloc(device, size)
        weakref.finalize(self, _free, driver, device, self.address).atexit = False


def _free(driver: Driver, device: int, address: int) -> None:
    try:
        driver.free(device, address)
    except DeviceError:  # the context is lost: so is its memory, and the next step says why
        pass


class DeviceArray:
    """Numbers in GPU memory: optimizer state, or a packed parameter.

    CuPy, PyTorch, Numba and JAX take it as it is, without a copy: `torch.as_tensor(x, device="cuda")`,
    `cupy.asarray(x)`. `copy_to_host()` gives a NumPy array; `x[...] = values` writes.
    """

    __slots__ = ("__weakref__", "_driver", "_owner", "address", "device", "dtype", "shape")

    def __init__(
        self, driver: Driver, device: int, address: int, shape: tuple[int, ...], dtype: np.dtype, owner: object
    ):
        self._driver, self._owner = driver, owner
        self.device, self.address, self.shape, self.dtype = device, address, shape, dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d array has no length")
        return self.shape[0]

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory in another shape."""
        if math.prod(shape) != self.size:
            raise ValueError(f"{self.shape} cannot become {shape}")
        return DeviceArray(self._driver, self.device, self.address, tuple(map(int, shape)), self.dtype, self._owner)

    def __getitem__(self, key: Any) -> DeviceArray:
        """A contiguous part along the first axis; nothing else, which other libraries do better."""
        if key is Ellipsis:
            return self
        if not isinstance(key, slice) or key.step not in (None, 1) or not self.shape:
            raise TypeError("a DeviceArray gives x[...] and x[i:j]; use cupy.asarray(x) or torch.as_tensor(x) for more")
        first, last, _ = key.indices(self.shape[0])
        shape = (max(0, last - first), *self.shape[1:])
        offset = first * math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self._driver, self.device, self.address + offset, shape, self.dtype, self._owner)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write a number, a NumPy array, or another GPU array of this shape and dtype; waits until it is done."""
        self[key]._write(value)

    def _write(self, value: Any) -> None:
        from fastopt.devices.foreign import on_gpu, view  # which knows this class

        if not self.size:
            return
        self._driver.synchronize(self.device)  # whoever still reads or writes this memory, or `value`
        if on_gpu(value):
            given = view(value, self._driver)
            if given.shape != self.shape or given.dtype != self.dtype or not given.contiguous:
                raise ArrayTypeError(
                    f"got {given.dtype} {given.shape} on the GPU; expected contiguous {self.dtype} {self.shape}."
                )
            self._driver.copy(self.device, self.address, given.address, self.nbytes)
            return
        value = np.asarray(value)
        if value.ndim:
            if value.shape != self.shape:
                raise ArrayTypeError(f"got an array of shape {value.shape}; expected {self.shape}.")
            self._driver.copy_in(self.device, self.address, np.ascontiguousarray(value, self.dtype))
            return
        chunk = np.full(min(self.size, _HOST_CHUNK // self.dtype.itemsize), value, self.dtype)
        for first in range(0, self.size, chunk.size):
            part = chunk[: self.size - first]
            self._driver.copy_in(self.device, self.address + first * self.dtype.itemsize, part)

    def copy_to_host(self) -> np.ndarray:
        """A NumPy copy, when all work on the device is done."""
        host = np.empty(self.shape, self.dtype)
        if self.size:
            self._driver.synchronize(self.device)
            self._driver.copy_out(self.device, host, self.address)
        return host

    def copy(self) -> np.ndarray:
        """`copy_to_host()`."""
        return self.copy_to_host()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a DeviceArray cannot become a NumPy array without a copy")
        return self.copy_to_host().astype(dtype or self.dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # what fastopt writes is in order on the stream of the step
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        # whatever the consumer's stream is: an array does not know on which one the last step was
        self._driver.synchronize(self.device)
        utils = import_module("cuda.core.utils")
        view = utils.StridedMemoryView.from_cuda_array_interface(self, stream_ptr=-1)
        return view.__dlpack__(stream=-1, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device  # kDLCUDA

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DeviceArray is memory of this process; pickle or copy x.copy_to_host() instead.")

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {self.shape} on cuda:{self.device}>"


def zeros(driver: Driver, device: int, size: int, dtype: Any) -> DeviceArray:
    """A 1-d array of zeros, aligned to 256 bytes. Raises MemoryError."""
    dtype = np.dtype(dtype)
    if not size:
        return DeviceArray(driver, device, 0, (0,), dtype, None)
    memory = Memory(driver, device, size * dtype.itemsize)
    driver.zero(device, memory.address, size * dtype.itemsize)
    return DeviceArray(driver, device, memory.address, (size,), dtype, memory)


def upload(driver: Driver, device: int, host: np.ndarray) -> DeviceArray:
    """A copy of a NumPy array on the device, made at once, behind nothing that is under way. Raises MemoryError."""
    if not host.size:
        return DeviceArray(driver, device, 0, host.shape, host.dtype, None)
    memory = Memory(driver, device, host.nbytes)
    driver.copy_in(device, memory.address, np.ascontiguousarray(host))
    return DeviceArray(driver, device, memory.address, host.shape, host.dtype, memory)
