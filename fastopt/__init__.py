"""fastopt: optimizers for your own training loop. One formula per rule, compiled to fused kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastopt import checkpoint, math, schedules
from fastopt.callbacks import EarlyStopping, KeepBest, Restarts, Target
from fastopt.checkpoint.callback import Checkpoint
from fastopt.data import Minibatches, minibatches
from fastopt.errors import (
    ArrayTypeError,
    CheckpointError,
    ConcurrentUseError,
    ConfigError,
    DeviceError,
    FastoptError,
    GradientError,
    NonFiniteError,
    RuleError,
    TornStateError,
)
from fastopt.group import Group
from fastopt.lbfgs import lbfgs
from fastopt.minimize import minimize
from fastopt.optimizer import Optimizer
from fastopt.pack import pack
from fastopt.rows import rows
from fastopt.rule import rule
from fastopt.rules import (
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adagrad_norm,
    adam,
    adam_mini,
    adamax,
    adamw,
    adan,
    ademamix,
    adopt,
    asgd,
    dadapt_adam,
    dog,
    ftrl,
    lamb,
    laprop,
    lars,
    ldog,
    lion,
    madgrad,
    mars,
    muon,
    nadam,
    novograd,
    polyak,
    prodigy,
    qhadam,
    qhm,
    radam,
    rmsprop,
    rowwise_adagrad,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    sgld,
    shampoo,
    signsgd,
    signum,
    soap,
    sophia,
    sps,
    yogi,
)
from fastopt.scaling import LossScale
from fastopt.schema import Domain, Fraction, NonNegative, OpenFraction, Rule
from fastopt.scipy_bridge import scipy_method
from fastopt.source import source
from fastopt.stepping import Last
from fastopt.threads import set_num_threads
from fastopt.traffic import traffic
from fastopt.wrappers import (
    agc,
    cautious,
    centralize,
    clip_each_norm,
    clip_group_norm,
    clip_norm,
    clip_value,
    decoupled_decay,
    ema,
    grokfast,
    independent_decay,
    l1,
    l2,
    l2_sp,
    langevin,
    lookahead,
    noisy,
    normalize,
    polyak_average,
    proximal_l1,
    swa,
)

if TYPE_CHECKING:
    from fastopt.rules import keras, optax

__version__ = "0.1.0"

__all__ = [
    "ArrayTypeError",
    "Checkpoint",
    "CheckpointError",
    "ConcurrentUseError",
    "ConfigError",
    "DeviceError",
    "Domain",
    "EarlyStopping",
    "FastoptError",
    "Fraction",
    "GradientError",
    "Group",
    "KeepBest",
    "Last",
    "LossScale",
    "Minibatches",
    "NonFiniteError",
    "NonNegative",
    "OpenFraction",
    "Optimizer",
    "Restarts",
    "Rule",
    "RuleError",
    "Target",
    "TornStateError",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adagrad_norm",
    "adam",
    "adam_mini",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "agc",
    "asgd",
    "cautious",
    "centralize",
    "checkpoint",
    "clip_each_norm",
    "clip_group_norm",
    "clip_norm",
    "clip_value",
    "dadapt_adam",
    "decoupled_decay",
    "dog",
    "ema",
    "ftrl",
    "grokfast",
    "independent_decay",
    "keras",
    "l1",
    "l2",
    "l2_sp",
    "lamb",
    "langevin",
    "laprop",
    "lars",
    "lbfgs",
    "ldog",
    "lion",
    "lookahead",
    "madgrad",
    "mars",
    "math",
    "minibatches",
    "minimize",
    "muon",
    "nadam",
    "noisy",
    "normalize",
    "novograd",
    "optax",
    "pack",
    "polyak",
    "polyak_average",
    "prodigy",
    "proximal_l1",
    "qhadam",
    "qhm",
    "radam",
    "rmsprop",
    "rows",
    "rowwise_adagrad",
    "rprop",
    "rule",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedules",
    "scipy_method",
    "set_num_threads",
    "sgd",
    "sgld",
    "shampoo",
    "signsgd",
    "signum",
    "soap",
    "sophia",
    "source",
    "sps",
    "swa",
    "traffic",
    "yogi",
]


def __getattr__(name: str) -> Any:
    """`fastopt.keras` and `fastopt.optax`, the readings of these libraries, are read when they are first asked for."""
    if name not in ("keras", "optax"):
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")
    globals()[name] = module = import_module(f"fastopt.rules.{name}")
    return module
