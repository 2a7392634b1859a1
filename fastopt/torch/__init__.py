"""fastopt's optimizers as torch classes: `torch.optim.AdamW` -> `fastopt.torch.AdamW` changes nothing but speed.

Classes that torch has, too, inherit from it: signature, checks, messages and checkpoints are torch's own code.
"""

import torch

from fastopt.rules import lion
from fastopt.torch.base import Fast
from fastopt.torch.make import from_rule
from fastopt.torch.table import KINDS


class SGD(Fast, torch.optim.SGD):
    """`torch.optim.SGD` with fastopt's step."""

    kind = KINDS["SGD"]


class Adagrad(Fast, torch.optim.Adagrad):
    """`torch.optim.Adagrad` with fastopt's step."""

    kind = KINDS["Adagrad"]


class RMSprop(Fast, torch.optim.RMSprop):
    """`torch.optim.RMSprop` with fastopt's step."""

    kind = KINDS["RMSprop"]


class Adam(Fast, torch.optim.Adam):
    """`torch.optim.Adam` with fastopt's step."""

    kind = KINDS["Adam"]


class AdamW(Fast, torch.optim.AdamW):
    """`torch.optim.AdamW` with fastopt's step."""

    kind = KINDS["AdamW"]


Lion = from_rule(lion, "Lion", betas=True, state={"m": "exp_avg"})

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "RMSprop", "from_rule"]
