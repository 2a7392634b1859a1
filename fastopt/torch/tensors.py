"""What a torch tensor is to a kernel: memory it can walk through, memory to copy first, or none of its business."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from fastopt import codecs
from fastopt.errors import ConfigError, DeviceError
from fastopt.params import ALIGN

KINDS = {
    torch.float32: "f",
    torch.float64: "d",
    torch.float16: "e",
    torch.bfloat16: "bfloat16",
    torch.complex64: "f",
    torch.complex128: "d",
}
_DISPATCH = getattr(torch.Tensor, "__torch_dispatch__", None)  # subclasses with another are no plain memory


def strided(x: torch.Tensor) -> bool:
    """Is it strided CPU memory, with its numbers as they stand there?"""
    return (
        getattr(type(x), "__torch_dispatch__", _DISPATCH) is _DISPATCH
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not x.is_conj()
        and not x.is_neg()
    )


def ordinary(x: torch.Tensor) -> bool:
    """Is it such memory, of a dtype that kernels know?"""
    return x.dtype in KINDS and strided(x)


def check_device(params: Sequence[torch.Tensor], name: str) -> None:
    """Raise `DeviceError` for the first parameter that is not in CPU memory."""
    for k, p in enumerate(params):
        if p.device.type not in ("cpu", "meta"):
            raise DeviceError(
                f"fastopt.torch.{name}: parameter {k} of shape {tuple(p.shape)} is on `{p.device}`; this version has "
                "no CUDA target. Keep the parameters on the CPU, or use torch's own class for them."
            )


def view(x: torch.Tensor, *, shaped: bool) -> np.ndarray | None:
    """The memory of an ordinary tensor as a C-contiguous array; None where it has gaps.

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
    if x.dtype == torch.bfloat16:  # which NumPy does not know
        return codecs.tensor(x)
    return x.numpy()


def overlapping(arrays: Sequence[np.ndarray]) -> bool:
    """Do two of them share memory?"""
    spans = sorted((a.ctypes.data, a.nbytes) for a in arrays if a.size)
    return any(start + n > after for (start, n), (after, _) in pairwise(spans))


def adopt(value: torch.Tensor, like: torch.Tensor, what: str) -> torch.Tensor:
    """A state tensor as kernels can update it beside `like`: itself, or a copy in `like`'s dtype and layout."""
    if value.shape != like.shape:
        raise ConfigError(f"{what} has shape {tuple(value.shape)}; expected {tuple(like.shape)}.")
    if strided(value) and value.dtype == like.dtype and value.stride() == like.stride():
        return value
    value = value.detach() if value.layout is torch.strided else value.detach().to_dense()
    return torch.empty_like(like, requires_grad=False).copy_(value)


def flat_like(params: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Zeros shaped and laid out as `params`, and the buffers, one a dtype, that they are views of."""
    found: dict[int, torch.Tensor] = {}
    buffers = []
    for dtype in dict.fromkeys(p.dtype for p in params):
        members = [k for k, p in enumerate(params) if p.dtype == dtype]
        line = ALIGN // dtype.itemsize
        ends = np.cumsum([0, *(-(-params[k].numel() // line) * line for k in members)]).tolist()
        buffers.append(torch.zeros(ends[-1], dtype=dtype))
        for k, start in zip(members, ends, strict=False):
            like = torch.empty_like(params[k], device="meta")  # without the gaps that the parameter may have
            found[k] = buffers[-1].as_strided(like.shape, like.stride(), start)
    return [found[k] for k in range(len(params))], buffers
