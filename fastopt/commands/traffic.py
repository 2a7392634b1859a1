"""What a rule keeps and moves, read off its passes: for the docs' tables and the benchmarks' limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.schema import MATRIX, Rule
from fastopt.statements import Level

PLACES = {Level.REDUCED: "a parameter", Level.ROW: "a row", Level.COLUMN: "a column"}


@dataclass(frozen=True)
class Traffic:
    """Of one lowered rule, in values, not bytes.

    Args:
        loads, stores: per element, of all passes; each is a stream of its own through memory.
        passes: how often the elements are looked at.
        calls: functions of whole matrices, whose own traffic is not counted.
    """

    loads: int
    stores: int
    passes: int
    calls: int

    def bytes(self, itemsize: int = 4) -> int:
        """Per element, where parameters and gradients are of one size."""
        return (self.loads + self.stores) * itemsize


def traffic(lowered: Lowered) -> Traffic:
    """Numbers a parameter, row or column are left out: there are few of them."""
    loads = sum(len(q.loads) for q in lowered.passes)
    stores = sum(len(q.stores) for q in lowered.passes)
    return Traffic(loads, stores, len(lowered.passes), len(lowered.matrices))


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
