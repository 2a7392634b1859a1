"""What a torch tensor is to a kernel: memory it can walk through, memory to copy first, or none of its business."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fastopt import codecs
from fastopt.devices.array import DeviceArray
from fastopt.errors import ConfigError, DeviceError
from fastopt.params import ALIGN
from fastopt.targets import driver, toolkit
from fastopt.torch import where

KINDS = {
    torch.float32: "f",
    torch.float64: "d",
    torch.float16: "e",
    torch.bfloat16: "H",  # as its codes
    torch.complex64: "f",
    torch.complex128: "d",
}
_DISPATCH = getattr(torch.Tensor, "__torch_dispatch__", None)  # subclasses with another are no plain memory


def strided(x: torch.Tensor) -> bool:
    """Is it strided CPU or CUDA memory, with its numbers as they stand there?"""
    return (
        getattr(type(x), "__torch_dispatch__", _DISPATCH) is _DISPATCH
        and x.device.type in ("cpu", "cuda")
        and x.layout is torch.strided
        and not x.is_conj()
        and not x.is_neg()
    )


def ordinary(x: torch.Tensor) -> bool:
    """Is it such memory, of a dtype that kernels know?"""
    return x.dtype in KINDS and strided(x)


def check_device(params: Sequence[torch.Tensor], name: str) -> None:
    """Raise `DeviceError` for the first parameter in memory where no kernel runs: here, or at all."""
    for k, p in enumerate(params):
        problem = ""
        if p.device.type not in ("cpu", "cuda", "meta"):
            problem = "kernels are for CPU and CUDA memory. Keep the parameters there"
        elif where.device(p) != where.HOST:
            try:
                toolkit.require()
                driver.get()
            except DeviceError as error:
                problem = f"{error} Or keep the parameters on the CPU"
        if problem:
            raise DeviceError(
                f"fastopt.torch.{name}: parameter {k} of shape {tuple(p.shape)} is on `{p.device}`; {problem}, or use "
                "torch's own class for them."
            )


def view(x: torch.Tensor, *, shaped: bool) -> Any:
    """The memory of an ordinary tensor as a C-contiguous array, of NumPy or a `DeviceArray`; None where it has gaps.

    Complex numbers are pairs. Unless `shaped`, axes may come in another order, as in the format channels_last.
    """
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    if not x.is_contiguous() and not shaped:
        strides = x.stride()
        x = x.permute(sorted(range(x.dim()), key=lambda d: (-strides[d], -x.shape[d])))
    if not x.is_contiguous():
        return None
    if (device := where.device(x)) != where.HOST:
        dtype = codecs.array_dtype(str(x.dtype).removeprefix("torch."))
        return DeviceArray(driver.get(), device, x.data_ptr(), tuple(x.shape), dtype, x)
    if x.dtype == torch.bfloat16:  # which NumPy does not know
        return codecs.tensor(x)
    return x.numpy()


def overlapping(arrays: Sequence[Any]) -> bool:
    """Do two of them, of one device, share memory?"""
    spans = sorted((_address(a), a.nbytes) for a in arrays if a.size)
    return any(start + n > after for (start, n), (after, _) in pairwise(spans))


def _address(array: Any) -> int:
    return array.address if isinstance(array, DeviceArray) else array.ctypes.data


def adopt(value: torch.Tensor, like: torch.Tensor, what: str) -> torch.Tensor:
    """A state tensor as kernels can update it beside `like`: itself, or a copy in `like`'s dtype and layout."""
    if value.shape != like.shape:
        raise ConfigError(f"{what} has shape {tuple(value.shape)}; expected {tuple(like.shape)}.")
    placed = where.device(value) == where.device(like) and value.stride() == like.stride()
    if placed and strided(value) and value.dtype == like.dtype:
        return value
    value = value.detach() if value.layout is torch.strided else value.detach().to_dense()
    return torch.empty_like(like, requires_grad=False).copy_(value)


def flat_like(params: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Zeros shaped and laid out as `params`, and the buffers, one a dtype and device, that they are views of."""
    found: dict[int, torch.Tensor] = {}
    buffers = []
    kinds = [(p.dtype, where.device(p)) for p in params]
    for dtype, device in dict.fromkeys(kinds):
        members = [k for k, kind in enumerate(kinds) if kind == (dtype, device)]
        line = ALIGN // dtype.itemsize
        ends = np.cumsum([0, *(-(-params[k].numel() // line) * line for k in members)]).tolist()
        buffers.append(params[members[0]].detach().new_zeros(ends[-1]))
        for k, start in zip(members, ends, strict=False):
            like = torch.empty_like(params[k], device="meta")  # without the gaps that the parameter may have
            found[k] = buffers[-1].as_strided(like.shape, like.stride(), start)
    return [found[k] for k in range(len(params))], buffers
