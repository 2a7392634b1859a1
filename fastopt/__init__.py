"""fastopt: optimizers for your own training loop. One formula per rule, compiled to fused kernels."""

from fastopt import math, schedules
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
from fastopt.optimizer import Optimizer
from fastopt.pack import pack
from fastopt.rule import Domain, Fraction, NonNegative, Rule, rule
from fastopt.rules import adagrad, adam, adamw, lion, rmsprop, sgd
from fastopt.source import source
from fastopt.threads import set_num_threads

__version__ = "0.1.0"
