"""fastopt's optimizers as torch classes: `torch.optim.AdamW` -> `fastopt.torch.AdamW` changes nothing but speed.

Classes that torch has, too, inherit from it: signature, checks, messages and checkpoints are torch's own code.
"""

import torch

from fastopt.rules import adabelief, adopt, lamb, lars, lion, novograd, prodigy, yogi
from fastopt.torch.base import Fast
from fastopt.torch.make import from_rule
from fastopt.torch.table import KINDS, MOMENTS


class SGD(Fast, torch.optim.SGD):
    """`torch.optim.SGD` with fastopt's step."""

    kind = KINDS["SGD"]


class Adagrad(Fast, torch.optim.Adagrad):
    """`torch.optim.Adagrad` with fastopt's step."""

    kind = KINDS["Adagrad"]


class SparseAdam(Fast, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam` with fastopt's step: over the rows that a gradient touches."""

    kind = KINDS["SparseAdam"]


class RMSprop(Fast, torch.optim.RMSprop):
    """`torch.optim.RMSprop` with fastopt's step."""

    kind = KINDS["RMSprop"]


class Adam(Fast, torch.optim.Adam):
    """`torch.optim.Adam` with fastopt's step."""

    kind = KINDS["Adam"]


class AdamW(Fast, torch.optim.AdamW):
    """`torch.optim.AdamW` with fastopt's step."""

    kind = KINDS["AdamW"]


class NAdam(Fast, torch.optim.NAdam):
    """`torch.optim.NAdam` with fastopt's step."""

    kind = KINDS["NAdam"]


class RAdam(Fast, torch.optim.RAdam):
    """`torch.optim.RAdam` with fastopt's step."""

    kind = KINDS["RAdam"]


class Adamax(Fast, torch.optim.Adamax):
    """`torch.optim.Adamax` with fastopt's step."""

    kind = KINDS["Adamax"]


class Adadelta(Fast, torch.optim.Adadelta):
    """`torch.optim.Adadelta` with fastopt's step."""

    kind = KINDS["Adadelta"]


class Rprop(Fast, torch.optim.Rprop):
    """`torch.optim.Rprop` with fastopt's step."""

    kind = KINDS["Rprop"]


class ASGD(Fast, torch.optim.ASGD):
    """`torch.optim.ASGD` with fastopt's step."""

    kind = KINDS["ASGD"]


class Muon(Fast, torch.optim.Muon):
    """`torch.optim.Muon` with fastopt's step, which makes matrices orthogonal in their own dtype, not in bfloat16."""

    kind = KINDS["Muon"]


Lion = from_rule(lion, "Lion", betas=True, state={"m": "exp_avg"})
LAMB = from_rule(lamb, "LAMB", betas=True, state=MOMENTS)
LARS = from_rule(lars, "LARS", state={"b": "momentum_buffer"})
NovoGrad = from_rule(novograd, "NovoGrad", betas=True, state={"m": "exp_avg"})
AdaBelief = from_rule(adabelief, "AdaBelief", betas=True, state={"m": "exp_avg", "s": "exp_avg_var"})
Yogi = from_rule(yogi, "Yogi", betas=True, state=MOMENTS)
ADOPT = from_rule(adopt, "ADOPT", betas=True, state=MOMENTS)
Prodigy = from_rule(prodigy, "Prodigy", betas=True)

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "Yogi",
    "from_rule",
]
