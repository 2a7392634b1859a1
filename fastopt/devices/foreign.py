"""Arrays of other libraries on a GPU: where they are, and on which stream their numbers will be ready."""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, cast

import numpy as np

from fastopt import codecs
from fastopt.codecs import Codec
from fastopt.devices.array import DeviceArray
from fastopt.errors import ArrayTypeError, ConfigError, DeviceError, GradientError
from fastopt.targets import driver
from fastopt.targets.driver import Driver

EXPECTED = "expected float32, float64, float16 or bfloat16"
Producer = Callable[[], int]  # the stream, at the time of the call, on which a library makes its arrays


class View(NamedTuple):
    """What a kernel has to know about an array."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype  # of a bfloat16 as `codecs.array_dtype` says
    device: int
    contiguous: bool
    writeable: bool
    producer: Producer | None

    @property
    def codec(self) -> Codec | None:
        """How its numbers are stored; None for numbers that are not ours."""
        return codecs.of(self.dtype) if self.dtype.isnative and self.dtype.char in "fdeEH" else None


def on_gpu(x: Any) -> bool:
    """Does `x` live on a GPU, whatever library it is from?"""
    if isinstance(x, DeviceArray):
        return True
    if isinstance(x, np.ndarray | np.generic | int | float):
        return False
    if _is_tensor(x):
        return x.is_cuda
    if hasattr(x, "__cuda_array_interface__"):
        return True
    return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged


def view(x: Any, driver: Driver) -> View:
    """Where an array is. Raises `DeviceError` for memory that is freed, `ArrayTypeError` for what has odd types."""
    if isinstance(x, DeviceArray):
        return View(x.address, x.shape, x.dtype, x.device, True, True, None)
    if _is_tensor(x):
        return _tensor(x)
    if not hasattr(x, "__cuda_array_interface__"):
        return _dlpack(x)
    told = x.__cuda_array_interface__
    dtype, shape = _named(told["typestr"]), tuple(told["shape"])
    address, readonly = told["data"]
    if told.get("mask") is not None:
        raise ArrayTypeError(f"a masked {type(x).__name__}; expected an array without a mask.")
    device = driver.owner(address) if address else 0
    if device is None:
        raise DeviceError(
            f"a {type(x).__name__} at address {address:#x}, where nothing is allocated on any GPU: it was freed."
        )
    producer = _cupy_stream if _is_cupy(x) else _fixed(told["stream"]) if told.get("stream") else None
    return View(address, shape, dtype, device, _packed(told.get("strides"), shape, dtype), not readonly, producer)


def fetched(x: Any) -> np.ndarray:
    """A copy of integers or bools on the host; waits for whoever writes them. Raises `GradientError`, `DeviceError`."""
    gpu = driver.get()
    try:
        v = view(x, gpu)
    except ArrayTypeError as error:
        raise GradientError(f"rows: a {type(x).__name__} of indices; expected int64, int32, or bools.") from error
    if v.dtype.kind not in "ib" or not v.contiguous:
        raise GradientError(
            f"rows: indices on a GPU of dtype {v.dtype} and shape {v.shape}; expected contiguous int64 or bools."
        )
    host = np.empty(v.shape, v.dtype)
    if host.size:
        if v.producer and gpu.capturing(v.device, v.producer()):
            raise DeviceError("rows: indices on a GPU go to the host, which a CUDA graph cannot wait for.")
        gpu.synchronize(v.device)
        gpu.copy_out(v.device, host, v.address)
    return host


def stream_of(stream: Any) -> int:
    """The handle of a stream of any library. Raises `ConfigError`."""
    if type(stream) is int and stream >= 0:
        return stream
    found: Any = getattr(stream, "__cuda_stream__", None)  # of cuda.core
    if found is not None:
        return int(cast(Any, found() if callable(found) else found)[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        if hasattr(stream, name):
            handle = getattr(stream, name)
            return int(getattr(handle, "value", handle) or 0)
    raise ConfigError(
        f"stream is {stream!r}; expected a stream of PyTorch, CuPy, Numba or cuda.core, or its handle as an int."
    )


# ---------------------------------------------------------------- libraries
def _is_tensor(x: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _is_cupy(x: Any) -> bool:
    cupy: Any = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def _tensor(x: Any) -> View:
    # a tensor that requires grad refuses the array interface; and this is several times as fast
    device = x.device.index or 0
    return View(x.data_ptr(), tuple(x.shape), _dtype(x.dtype), device, x.is_contiguous(), True, torch_stream(device))


@cache
def _dtype(dtype: Any) -> np.dtype:
    return _named(str(dtype).removeprefix("torch."))


def _named(name: str) -> np.dtype:
    """A dtype by its name or the array interface's text for it; integers are not taken for codes."""
    if name in ("bfloat16", "<V2"):  # as arrays of ml_dtypes call it
        return codecs.array_dtype("bfloat16")
    try:
        found = np.dtype(name)
    except TypeError as error:
        raise ArrayTypeError(f"an array of {name}; {EXPECTED}.") from error
    if found.kind == "u":
        raise ArrayTypeError(f"an array of dtype {found}; {EXPECTED}.")
    return found


def _dlpack(x: Any) -> View:
    utils = import_module("cuda.core.utils")
    found = utils.StridedMemoryView.from_dlpack(x, stream_ptr=1)  # its producer makes the default stream wait
    shape, dtype = tuple(found.shape), _named(str(found.dtype))
    strides = None if found.strides is None else tuple(s * dtype.itemsize for s in found.strides)
    return View(found.ptr, shape, dtype, found.device_id, _packed(strides, shape, dtype), not found.readonly, _fixed(0))


def _packed(strides: tuple[int, ...] | None, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Is it C-contiguous?"""
    if strides is None or 0 in shape:
        return True
    expected = dtype.itemsize
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


# ---------------------------------------------------------------- streams
@cache
def torch_stream(device: int) -> Producer:
    """PyTorch's current stream on a device."""
    import torch

    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # 0.1 us, an object of torch.cuda takes 1.5
    return (lambda: raw(device)) if raw else (lambda: torch.cuda.current_stream(device).cuda_stream)


def _cupy_stream() -> int:
    import cupy  # type: ignore[import-not-found]

    return cupy.cuda.get_current_stream().ptr


@cache
def _fixed(stream: int) -> Producer:
    return lambda: stream
