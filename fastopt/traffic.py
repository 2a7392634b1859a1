"""What a rule keeps and moves, read off its passes: for users, the docs' tables and the benchmarks' limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.schema import MATRIX, Rule
from fastopt.source import chosen
from fastopt.statements import Level
from fastopt.targets import text

PLACES = {Level.REDUCED: "a parameter", Level.ROW: "a row", Level.COLUMN: "a column"}


@dataclass(frozen=True)
class Traffic:
    """Of a step of one rule, for each element of a parameter.

    Attributes:
        loads, stores: buffers that are read and written, of all passes; each is a stream of its own through memory.
        passes: how often the elements are looked at.
        calls: functions of whole matrices, whose own traffic is not counted.
        bytes: of all loads and stores.
    """

    loads: int
    stores: int
    passes: int
    calls: int
    bytes: int


def traffic(
    rule: Rule,
    *,
    dtype: Any = np.float32,
    gradient: Any = None,
    state_dtype: Any = None,
    zero_grads: bool = False,
    copy_out: Any = None,
    **switches: Any,
) -> Traffic:
    """What a step of a rule moves, counted from its kernels: `fo.traffic(fo.ema(fo.adamw)).bytes` is 36.

    Args:
        dtype, gradient, state_dtype: of parameters, gradients and states, as in `fastopt.source`.
        zero_grads: as of `Optimizer`.
        copy_out: the dtype of the second array, None for none.
        switches: of the rule, as in `fastopt.source`; a matrix is looked at unless matrix=False.

    Numbers of a parameter, a row or a column are left out: there are few of them.
    """
    lowered, of_p, of_g = chosen(rule, dtype, gradient, state_dtype, switches)
    copied = "" if copy_out is None else codecs.of(np.dtype(copy_out) if copy_out != "bfloat16" else copy_out).name
    return moved(lowered.around(False, zero_grads, copied), of_p, of_g)


def moved(lowered: Lowered, dtype: Any = "float32", gradient: Any = None) -> Traffic:
    """The same of a lowered rule."""
    of = text.dtypes(lowered, codecs.of(dtype), codecs.of(dtype if gradient is None else gradient))
    loads = [of[b].itemsize for q in lowered.passes for _, b in q.loads]
    stores = [of[b].itemsize for q in lowered.passes for b, _ in q.stores]
    return Traffic(len(loads), len(stores), len(lowered.passes), len(lowered.matrices), sum(loads) + sum(stores))


def usual(rule: Rule, matrix: bool = False) -> Lowered:
    """The rule lowered as its defaults have it."""
    return lower(rule, tuple((s, matrix if s == MATRIX else bool(rule.hyper[s])) for s in rule.switches))


def kept(lowered: Lowered, itemsize: int = 4) -> str:
    """Bytes of state in words: "8 an element, 8 a parameter"."""
    numbers = Counter(PLACES[level] for level in lowered.numbers.values())
    elements = len(lowered.state) - len(lowered.numbers) - len(lowered.squares)
    words = [f"{itemsize * elements} an element"] if elements or not lowered.state else []
    words += [f"{8 * count} {place}" for place, count in numbers.items()]
    return ", ".join(words + [f"{itemsize} {side}^2" for side in lowered.squares.values()])
