"""fastopt's optimizers as torch classes: `torch.optim.AdamW` -> `fastopt.torch.AdamW` changes nothing but speed.

Classes that torch has, too, inherit from it: signature, checks, messages and checkpoints are torch's own code.
"""

import torch

from fastopt import rules
from fastopt.torch.base import Fast
from fastopt.torch.lbfgs import LBFGS
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


class Adafactor(Fast, torch.optim.Adafactor):
    """`torch.optim.Adafactor` with fastopt's step, where parameters have two axes at most."""

    kind = KINDS["Adafactor"]


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


Lion = from_rule(rules.lion, "Lion", betas=True, state={"m": "exp_avg"})
Signum = from_rule(rules.signum, "Signum", state={"m": "momentum_buffer"})
QHM = from_rule(rules.qhm, "QHM", state={"m": "momentum_buffer"})
AdaBelief = from_rule(rules.adabelief, "AdaBelief", betas=True, state={"m": "exp_avg", "s": "exp_avg_var"})
Yogi = from_rule(rules.yogi, "Yogi", betas=True, state=MOMENTS)
LaProp = from_rule(rules.laprop, "LaProp", betas=True, state=MOMENTS)
ADOPT = from_rule(rules.adopt, "ADOPT", betas=True, state=MOMENTS)
QHAdam = from_rule(rules.qhadam, "QHAdam", betas=True, state=MOMENTS)
AdEMAMix = from_rule(rules.ademamix, "AdEMAMix", betas=True)
Adan = from_rule(rules.adan, "Adan", betas=True)
MARS = from_rule(rules.mars, "MARS", betas=True)
MADGRAD = from_rule(rules.madgrad, "MADGRAD")
LARS = from_rule(rules.lars, "LARS", state={"b": "momentum_buffer"})
LAMB = from_rule(rules.lamb, "LAMB", betas=True, state=MOMENTS)
NovoGrad = from_rule(rules.novograd, "NovoGrad", betas=True, state={"m": "exp_avg"})
AdamMini = from_rule(rules.adam_mini, "AdamMini", betas=True, state=MOMENTS)
DoG = from_rule(rules.dog, "DoG")
Prodigy = from_rule(rules.prodigy, "Prodigy", betas=True)
ScheduleFreeSGD = from_rule(rules.schedule_free_sgd, "ScheduleFreeSGD")
ScheduleFreeAdamW = from_rule(rules.schedule_free_adamw, "ScheduleFreeAdamW", betas=True)
Shampoo = from_rule(rules.shampoo, "Shampoo")
SOAP = from_rule(rules.soap, "SOAP", betas=True)

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "MARS",
    "QHM",
    "SGD",
    "SOAP",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "DoG",
    "LaProp",
    "Lion",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Shampoo",
    "Signum",
    "SparseAdam",
    "Yogi",
    "from_rule",
]
