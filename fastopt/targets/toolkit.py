"""The only file that touches the inside of Numba's CUDA target, so that a successor replaces this file and no other."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fastopt.errors import DeviceError

INSTALL = 'pip install "fastopt[cu13]" (or [cu12], for a driver older than 580)'


def require() -> Any:
    """`numba.cuda` as NVIDIA's numba-cuda provides it. Raises `DeviceError` with the remedy."""
    try:
        from numba import cuda
    except ImportError as error:
        raise DeviceError(f"the CUDA target needs numba-cuda: {INSTALL}. ({error})") from error
    if "numba_cuda" not in (cuda.__file__ or ""):
        raise DeviceError(f"the CUDA target needs numba-cuda; Numba's own, deprecated target was found: {INSTALL}.")
    return cuda


def ptx(kernel: Callable[..., Any], signature: Any, capability: tuple[int, int], *, fma: bool) -> str:
    """Compile a kernel to PTX for a compute capability, without a GPU or a driver."""
    cuda = require()
    with _no_device(capability), _contraction(fma):
        return cuda.compile_ptx(kernel, signature, cc=capability)[0]


def entry(ptx_text: str) -> str:
    """The name under which a kernel is found in what its PTX becomes."""
    return re.findall(r"\.entry (\w+)", ptx_text)[0]


def cubin(ptx_text: str, capability: tuple[int, int]) -> bytes:
    """Machine code of PTX for a compute capability, by nvJitLink: without a GPU or a driver. Raises `DeviceError`."""
    try:
        core: Any = import_module("cuda.core")
    except ImportError as error:
        raise DeviceError(f"machine code for CUDA needs cuda-core: {INSTALL}. ({error})") from error
    major, minor = capability
    try:
        options = core.LinkerOptions(arch=f"sm_{major}{minor}")
        return bytes(core.Linker(core.ObjectCode.from_ptx(ptx_text.encode()), options=options).link("cubin").code)
    except Exception as error:  # nvJitLink's own class of errors has moved between versions
        raise DeviceError(f"nvJitLink makes no code for compute capability {major}.{minor}: {error}") from error


@contextmanager
def _no_device(capability: tuple[int, int]) -> Iterator[None]:
    # device functions are typed for "the current device", which asks the driver
    from numba.cuda import dispatcher

    with mock.patch.object(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability)):
        yield


@contextmanager
def _contraction(fma: bool) -> Iterator[None]:
    # `compile_ptx` has no argument for it, though NVVM has an option
    from numba.cuda import compiler

    compile_cuda: Callable[..., Any] = getattr(compiler, "compile_cuda")  # noqa: B009 (numba has no stub for it)

    def without_fma(*args: Any, **options: Any) -> Any:
        return compile_cuda(*args, **{**options, "nvvm_options": {**options["nvvm_options"], "fma": False}})

    with mock.patch.object(compiler, "compile_cuda", compile_cuda if fma else without_fma):
        yield
