"""The real driver without a GPU: what it says is missing, and that every call suits NVIDIA's bindings."""

import ctypes
import sys

import numpy as np
import pytest
from cuda_twin import needs_numba_cuda

import fastopt as fo
from fastopt.targets import driver

pytestmark = needs_numba_cuda


def test_without_cuda_bindings_the_error_says_what_to_install(monkeypatch):
    driver.install(None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    for call in (lambda: fo.adamw(np.ones(3), device="cuda"), lambda: fo.pack(np.ones(3), device="cuda")):
        with pytest.raises(fo.DeviceError, match=r'needs cuda-bindings: pip install "fastopt\[cu13\]"'):
            call()


def test_without_a_driver_the_error_says_so(monkeypatch):
    driver.install(None)
    if not NO_DRIVER:
        pytest.skip("this machine has a driver")
    with pytest.raises(fo.DeviceError, match=r'no NVIDIA driver was found.*pip install "fastopt\[cu13\]"'):
        fo.adamw(np.ones(3), device="cuda")
    fo.adamw(np.ones(3)).step(np.ones(3))


def _no_driver():
    real = pytest.importorskip("cuda.bindings.driver")
    try:
        real.cuInit(0)
    except Exception:
        return True
    return False


NO_DRIVER = _no_driver()


class Recorded:
    """`cuda.bindings.driver` with functions that only keep accounts; every name must be one of the real module's."""

    def __init__(self, real, count=1):
        self.real, self.calls, self.codes, self.count = real, [], {}, count

    def __getattr__(self, name):
        found = getattr(self.real, name)
        if not name.startswith("cu"):
            return found
        expected = found.__doc__.split("(")[1].split(")")[0]

        def call(*arguments):
            assert len(arguments) == len([a for a in expected.split(",") if a.strip()]), (name, expected)
            self.calls.append((name, arguments))
            if NO_DRIVER:  # the arguments are converted before the library is found to be missing
                with pytest.raises(RuntimeError, match="driver library"):
                    found(*arguments)
            code = self.codes.get(name, self.real.CUresult.CUDA_SUCCESS)
            value = {"cuDeviceGetCount": self.count, "cuDeviceGetName": b"A GPU\0"}.get(name, 1)
            return (code,) if name in _NOTHING else (code, value)

        return call


_NOTHING = {
    "cuInit",
    "cuCtxPushCurrent",
    "cuMemFree",
    "cuMemsetD8Async",
    "cuStreamSynchronize",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuMemcpyDtoDAsync",
    "cuLaunchKernel",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuCtxSynchronize",
}


@pytest.fixture
def recorded(monkeypatch):
    stub = Recorded(pytest.importorskip("cuda.bindings.driver"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", stub)
    driver.install(None)
    yield stub
    driver.install(None)


def test_the_real_driver_calls_what_there_is_with_as_many_arguments(recorded):
    gpu = driver.get()
    host = np.arange(4.0)
    assert (gpu.count(), gpu.name(0), gpu.capability(0)) == (1, "A GPU", (1, 1))
    gpu.free(0, gpu.alloc(0, 32))
    gpu.zero(0, 256, 32)
    gpu.copy_in(0, 256, host, 7)
    gpu.copy_in(0, 256, host)
    gpu.copy_out(0, host, 256)
    gpu.copy(0, 256, 512, 32)
    gpu.wait(0, 7, 8)
    gpu.synchronize(0)
    assert gpu.capturing(0, 7)
    with gpu.relaxed():
        pass
    assert gpu.owner(256) is None  # host memory, says the stub's answer
    function = gpu.load(0, b"image", "kernel")
    assert gpu.blocks(0, function, 256) == 1
    call = gpu.call(function, 3, 256, [11, 2**63, 13])
    del recorded.calls[:]
    gpu.run(0, [call, call], 7)
    assert [n for n, _ in recorded.calls] == ["cuCtxPushCurrent", "cuLaunchKernel", "cuLaunchKernel", "cuCtxPopCurrent"]
    given = recorded.calls[1][1]
    assert given[:9] == (function, 3, 1, 1, 256, 1, 1, 0, 7)
    pointers = (ctypes.c_uint64 * 3).from_address(given[9])
    assert [ctypes.c_uint64.from_address(p).value for p in pointers] == [11, 2**63, 13]


def test_codes_of_the_driver_become_named_errors(recorded):
    gpu = driver.get()
    recorded.codes["cuMemAlloc"] = recorded.real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.alloc(0, 32)
    recorded.codes["cuLaunchKernel"] = recorded.real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    del recorded.calls[:]
    with pytest.raises(fo.DeviceError, match="cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.run(0, [gpu.call(1, 1, 1, [1])], 0)
    assert recorded.calls[-1][0] == "cuCtxPopCurrent"
    driver._forked = True
    try:
        with pytest.raises(fo.DeviceError, match="forked after CUDA had started"):
            gpu.run(0, [gpu.call(1, 1, 1, [1])], 0)
    finally:
        driver._forked = False


def test_a_driver_without_a_device(recorded):
    recorded.count = 0
    with pytest.raises(fo.DeviceError, match="finds no CUDA device; look at `nvidia-smi`"):
        fo.adamw(np.ones(3), device="cuda")
    recorded.count = 1
    recorded.codes["cuInit"] = recorded.real.CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(fo.DeviceError, match="the NVIDIA driver says CUDA_ERROR_NO_DEVICE"):
        fo.adamw(np.ones(3), device="cuda")
