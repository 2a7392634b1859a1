"""fastopt: optimizers for your own training loop. One formula per rule, compiled to fused kernels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastopt import math, schedules
from fastopt.callbacks import EarlyStopping, KeepBest, Restarts, Target
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
from fastopt.groups import Group
from fastopt.lbfgs import lbfgs
from fastopt.minimize import minimize
from fastopt.optimizer import Optimizer
from fastopt.pack import pack
from fastopt.rule import rule
from fastopt.rules import (
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    adan,
    ademamix,
    adopt,
    asgd,
    ftrl,
    laprop,
    lion,
    madgrad,
    mars,
    muon,
    nadam,
    qhadam,
    qhm,
    radam,
    rmsprop,
    rprop,
    sgd,
    sgld,
    shampoo,
    signsgd,
    signum,
    soap,
    sophia,
    yogi,
)
from fastopt.schema import Domain, Fraction, NonNegative, Rule
from fastopt.scipy_bridge import scipy_method
from fastopt.source import source
from fastopt.threads import set_num_threads

if TYPE_CHECKING:
    from fastopt.rules import keras, optax

__version__ = "0.1.0"

__all__ = [
    "ArrayTypeError",
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
    "Minibatches",
    "NonFiniteError",
    "NonNegative",
    "Optimizer",
    "Restarts",
    "Rule",
    "RuleError",
    "Target",
    "TornStateError",
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "asgd",
    "ftrl",
    "keras",
    "laprop",
    "lbfgs",
    "lion",
    "madgrad",
    "mars",
    "math",
    "minibatches",
    "minimize",
    "muon",
    "nadam",
    "optax",
    "pack",
    "qhadam",
    "qhm",
    "radam",
    "rmsprop",
    "rprop",
    "rule",
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
    "yogi",
]


def __getattr__(name: str) -> Any:
    """`fastopt.keras` and `fastopt.optax`, the readings of these libraries, are read when they are first asked for."""
    if name not in ("keras", "optax"):
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")
    globals()[name] = module = import_module(f"fastopt.rules.{name}")
    return module
