"""What `fastopt info` says about this machine and this installation."""

import importlib.metadata
import importlib.util
import math
import platform
import time
from typing import Any

import numpy as np

PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "safetensors",
    "scipy",
    "torch",
    "scikit-learn",
    "rich",
    "matplotlib",
    "numba-cuda",
)
FEATURES = (
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512bf16",
    "neon",
    "sve",
    "bf16",
)


def facts() -> dict[str, str]:
    """Name -> value, in the order to print them. Takes one optimizer step, so that what is reported has run."""
    return {"fastopt": _version("fastopt"), **_software(), **_cpu(), **_kernels(), "CUDA devices": _cuda()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _software() -> dict[str, str]:
    return {
        "Python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})",
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu() -> dict[str, str]:
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:  # not Linux
        pass
    named = [name for name in FEATURES if has.get(name)]
    return {"CPU": f"{model} (LLVM: {binding.get_host_cpu_name()})", "CPU features": " ".join(named) or "none known"}


def _kernels() -> dict[str, str]:
    import numba

    import fastopt
    from fastopt import build, threads

    size = 1 << 20  # enough to start the threads
    p, g = np.zeros(size, np.float32), np.zeros(size, np.float32)
    begin = time.perf_counter()
    optimizer = fastopt.sgd(p, lr=0.0)
    optimizer.step(g)
    first = time.perf_counter() - begin
    again = math.inf
    for _ in range(10):
        begin = time.perf_counter()
        optimizer.step(g)
        again = min(again, time.perf_counter() - begin)
    try:
        layer = numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:
        layer = f"not started (configured: {numba.config.THREADING_LAYER})"  # type: ignore[attr-defined]
    return {
        "threads": f"{threads.count()} (Numba: {numba.get_num_threads()})",
        "threading layer": layer,
        "cache folder": str(build.cache_folder()),
        "first step": f"{first:.2f} s, then {again * 1e6:.0f} µs (sgd, {size} elements)",
    }


def _cuda() -> str:
    if importlib.util.find_spec("numba_cuda") is None:
        remedy = 'pip install ".[cu12]" or ".[cu13]" in a checkout of fastopt'
        return f"none looked for: numba-cuda is not installed ({remedy})"
    from numba import cuda

    try:
        if not cuda.is_available():
            return "none"
        return ", ".join(_device(d) for d in cuda.gpus)
    except Exception as error:  # a driver that is broken or too old raises many kinds; info must still print
        return f"not usable: {type(error).__name__}: {error}"


def _device(gpu: Any) -> str:
    name = gpu.name.decode() if isinstance(gpu.name, bytes) else gpu.name
    return f"{name} (compute capability {'.'.join(map(str, gpu.compute_capability))})"
