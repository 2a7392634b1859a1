"""Who steps a parameter: a kernel over all elements, a kernel over the rows a sparse gradient names, or torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastopt.torch import tensors
from fastopt.torch.kind import DENSE, TORCH, Kind


def of_group(kind: Kind, group: Mapping[str, Any]) -> tuple[bool, bool]:
    """Does the group ask for what torch's own step alone does, or refuses? And do kernels take sparse gradients?"""
    return bool(group.get("differentiable") or group.get("capturable")), bool(kind.sparse(group))


def of(kind: Kind, group: Mapping[str, Any], habits: tuple[bool, bool], p: torch.Tensor, g: torch.Tensor) -> int:
    by_torch, sparse = habits
    if by_torch or g.device.type != "cpu" or not tensors.ordinary(p) or not kind.takes(group, p):
        return TORCH
    if g.layout is torch.strided:
        return DENSE if kind.dense and g.dtype in tensors.KINDS else TORCH
    if (
        not sparse
        or g.layout is not torch.sparse_coo
        or p.is_complex()
        or g.is_complex()
        or g.dtype not in tensors.KINDS
    ):
        return TORCH
    return g.sparse_dim() if p.is_contiguous() and p.dim() and g.shape == p.shape else TORCH
