"""Kernels of a generated module as code for one GPU: compiled once a machine, loaded once a process and device."""

import hashlib
import importlib.metadata
from functools import cache
from types import ModuleType
from typing import Any

from fastopt import build
from fastopt.targets import cuda, driver, toolkit

# whatever turns a generated text into machine code
_TOOLS = ("numba", "numba-cuda", "llvmlite", "cuda-core", "cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink")


@cache
def tools() -> str:
    """The versions of the tools that compile."""
    return " ".join(f"{tool}={_version(tool)}" for tool in _TOOLS)


def _version(tool: str) -> str:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def image(gpu: driver.Driver, module: ModuleType, name: str, capability: tuple[int, int], precise: bool) -> bytes:
    """The code of a kernel, whose entry is called `name`. From the cache folder, or compiled and put there."""

    def make() -> bytes:
        text = cuda.ptx(module, name, capability, precise)
        return gpu.assemble(text.replace(toolkit.entry(text), name), capability)

    # the name of a generated module holds the hash of its text and of what that imports
    sm = "sm{}{}".format(*capability) + "_precise" * precise
    key = hashlib.sha256(f"{module.__name__} {name} {sm} {type(gpu).__name__} {tools()}".encode()).hexdigest()[:16]
    return build.keep(f"{module.__name__.removeprefix('fastopt_kernel_')}_{name}_{sm}_{key}.cubin", make)


@cache
def function(gpu: driver.Driver, device: int, module: ModuleType, name: str, precise: bool) -> Any:
    """A kernel on a device, ready to launch."""
    return gpu.load(device, image(gpu, module, name, gpu.capability(device), precise), name)
