"""Who steps a parameter: a kernel over all elements, a kernel over the rows a sparse gradient names, or torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastopt.errors import ConfigError
from fastopt.torch import tensors, where
from fastopt.torch.kind import DENSE, TORCH, Kind


def of_group(kind: Kind, group: Mapping[str, Any]) -> tuple[bool, bool]:
    """Does the group ask for what torch's own step alone does, or refuses? And do kernels take sparse gradients?"""
    return bool(group.get("differentiable") or group.get("capturable")), bool(kind.sparse(group))


def of(kind: Kind, group: Mapping[str, Any], habits: tuple[bool, bool], p: torch.Tensor, g: torch.Tensor) -> int:
    by_torch, sparse = habits
    if by_torch or g.device != p.device or not tensors.ordinary(p) or not kind.takes(group, p):
        return TORCH
    if g.layout is torch.strided:
        return DENSE if kind.dense and g.dtype in tensors.KINDS else TORCH
    if (
        not sparse
        or (kind.torch is not None and where.device(p) != where.HOST)  # who does not ask the host for the rows
        or g.layout is not torch.sparse_coo
        or p.is_complex()
        or g.is_complex()
        or g.dtype not in tensors.KINDS
    ):
        return TORCH
    return g.sparse_dim() if p.is_contiguous() and p.dim() and g.shape == p.shape else TORCH


def refusal(name: str, params: Sequence[torch.Tensor]) -> Exception:
    """What a class without a twin in torch says of parameters that no kernel can step."""
    odd = params[0]
    if any(p.grad is not None and p.grad.layout is not torch.strided for p in params):
        return RuntimeError(f"{name} does not support sparse gradients")
    return ConfigError(
        f"{name}: a parameter of shape {tuple(odd.shape)}, dtype {odd.dtype} on `{odd.device}`, with a gradient of "
        f"dtype {odd.grad.dtype if odd.grad is not None else None}, is none that kernels can step; expected "
        "float32, float64, complex pairs of them, bfloat16 or float16 in CPU memory, or in CUDA memory if the rule "
        "calls no function of whole matrices, as Muon, Shampoo and SOAP do."
    )
