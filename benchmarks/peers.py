"""The peer that does not ship with the package: DeepSpeed's CPUAdam."""

import contextlib
import io
import logging
from collections.abc import Sequence

import numpy as np

from fastopt.commands.peers import Step
from fastopt.schema import Rule


def deepspeed_step(rule: Rule, params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> Step | None:
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
