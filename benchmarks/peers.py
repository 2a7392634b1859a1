"""Peers that do not ship with the package: DeepSpeed's CPUAdam, and `out=` forms of the rest of the catalogue."""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import bench
from fastopt.rule import Rule


def deepspeed_step(rule: Rule, params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> bench.Step | None:
    """step() of DeepSpeedCPUAdam over the same memory, or None where it is not installed or cannot be built.

    It compiles its C++ when first used (40 s, then cached): a C++ compiler and `ninja` must be on the PATH.
    """
    if rule.name not in ("adam", "adamw"):
        return None
    try:
        import torch

        with contextlib.redirect_stdout(io.StringIO()):
            logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
            from deepspeed.ops.adam import DeepSpeedCPUAdam  # pyright: ignore[reportMissingImports]

            leaves = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
            for leaf, g in zip(leaves, grads, strict=True):
                leaf.grad = torch.from_numpy(g)
            h = rule.hyper
            return DeepSpeedCPUAdam(
                leaves, lr=h["lr"], betas=(h["beta1"], h["beta2"]), eps=h["eps"], weight_decay=h["weight_decay"],
                adamw_mode=rule.name == "adamw",
            ).step  # fmt: skip
    except (ImportError, RuntimeError, OSError) as error:
        if not isinstance(error, ImportError):
            print(f"DeepSpeed is installed, but its CPUAdam cannot be built: {error}")
        return None


def _adagrad(p: np.ndarray, g: np.ndarray, s: np.ndarray, a: np.ndarray, h: dict[str, Any], t: int) -> None:
    s += np.multiply(g, g, out=a)
    np.divide(g, np.add(np.sqrt(s, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"] / (1 + (t - 1) * h["lr_decay"]), out=a)


def _rmsprop(p: np.ndarray, g: np.ndarray, v: np.ndarray, a: np.ndarray, h: dict[str, Any], t: int) -> None:
    v *= h["alpha"]
    v += np.multiply(np.multiply(g, g, out=a), 1 - h["alpha"], out=a)
    np.divide(g, np.add(np.sqrt(v, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"], out=a)


def _lion(p: np.ndarray, g: np.ndarray, m: np.ndarray, a: np.ndarray, h: dict[str, Any], t: int) -> None:
    m -= g  # both interpolations are g + beta * (m - g)
    np.sign(np.add(np.multiply(m, h["beta1"], out=a), g, out=a), out=a)
    m *= h["beta2"]
    m += g
    if h["weight_decay"]:
        p *= 1 - h["lr"] * h["weight_decay"]
    p -= np.multiply(a, h["lr"], out=a)


bench.OUT.update(adagrad=_adagrad, rmsprop=_rmsprop, lion=_lion)
