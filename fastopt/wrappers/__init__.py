"""The wrappers: `fo.grokfast(fo.adamw)` is a rule like any other. Each is a formula, spliced into that of the rule."""

from fastopt.wrappers.averages import ema, polyak_average, swa
from fastopt.wrappers.decay import decoupled_decay, independent_decay, l1, l2, l2_sp, proximal_l1
from fastopt.wrappers.gradients import (
    agc,
    centralize,
    clip_each_norm,
    clip_group_norm,
    clip_norm,
    clip_value,
    grokfast,
    normalize,
)
from fastopt.wrappers.moves import cautious, lookahead
from fastopt.wrappers.noise import langevin, noisy

__all__ = [
    "agc",
    "cautious",
    "centralize",
    "clip_each_norm",
    "clip_group_norm",
    "clip_norm",
    "clip_value",
    "decoupled_decay",
    "ema",
    "grokfast",
    "independent_decay",
    "l1",
    "l2",
    "l2_sp",
    "langevin",
    "lookahead",
    "noisy",
    "normalize",
    "polyak_average",
    "proximal_l1",
    "swa",
]
