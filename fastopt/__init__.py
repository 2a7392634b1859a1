"""fastopt: optimizers for your own training loop. One formula per rule, compiled to fused kernels."""

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
from fastopt.groups import Group
from fastopt.minimize import minimize
from fastopt.optimizer import Optimizer
from fastopt.pack import pack
from fastopt.rule import rule
from fastopt.rules import adagrad, adam, adamw, lion, rmsprop, sgd, sgld
from fastopt.schema import Domain, Fraction, NonNegative, Rule
from fastopt.scipy_bridge import scipy_method
from fastopt.source import source
from fastopt.threads import set_num_threads

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
    "Minibatches",
    "NonFiniteError",
    "NonNegative",
    "Optimizer",
    "Restarts",
    "Rule",
    "RuleError",
    "Target",
    "TornStateError",
    "adagrad",
    "adam",
    "adamw",
    "checkpoint",
    "lion",
    "math",
    "minibatches",
    "minimize",
    "pack",
    "rmsprop",
    "rule",
    "schedules",
    "scipy_method",
    "set_num_threads",
    "sgd",
    "sgld",
    "source",
]
