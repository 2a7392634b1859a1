"""What a row misses that a step leaves out: the effect of a gradient of zeros, found by trying the formula."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.lowered import Lowered
from fastopt.schema import MATRIX, Rule


class Zero:
    """A rule's step with a gradient of zeros, as a function of the parameter and the states that there are."""

    def __init__(self, rule: Rule, lowered: Lowered, matrix: bool, hyper: dict[str, Any], t: int):
        self.rule, self.lowered = rule, lowered
        supplied = ({"t": t} if rule.timed else {}) | ({MATRIX: matrix} if MATRIX in rule.switches else {})
        self.given = {**hyper, **supplied}
        self.lives = [n == "p" or n in lowered.state for n in ("p", *rule.state)]

    def step(self, g: Any, before: list[Any]) -> list[Any] | None:
        """The live ones after it, given all of them; None if the formula cannot tell."""
        try:
            after = self.rule.formula(before[0], g, *before[1:], **self.given)
        except (ArithmeticError, ValueError, TypeError):  # the latter where it cannot take arrays
            return None
        after = after if isinstance(after, tuple) else (after,)
        return [a for a, alive in zip(after, self.lives, strict=True) if alive]

    def idle(self) -> bool:
        """Does it leave parameter and state as they are? Then a row that is not touched misses nothing."""
        if not any(q.totals for q in self.lowered.passes):
            return all(self._still(0.0, sample) for sample in _SAMPLES[:, : len(self.lives)].tolist())
        # a rule that looks at rows needs some
        widths = [4, *(1 if s in self.lowered.numbers else 4 for s in self.rule.state)]
        with np.errstate(all="ignore"):
            return self._still(np.zeros((8, 4)), [_SAMPLES[:, 4 * k : 4 * k + w] for k, w in enumerate(widths)])

    def _still(self, g: Any, before: list[Any]) -> bool:
        before = [before[0], *map(abs, before[1:])]
        if (after := self.step(g, before)) is None:
            return False
        kept = [b for b, alive in zip(before, self.lives, strict=True) if alive]
        changed = [a != b for a, b in zip(after, kept, strict=True)]
        return not any(c.any() if isinstance(c, np.ndarray) else c for c in changed)

    def linear(self, thorough: bool) -> np.ndarray | None:
        """float64 (d, d), what it multiplies p and the d - 1 live states by, in this order; None if it does not.

        thorough: try many places; one is enough for a formula whose linearity is known, at other hyperparameters.
        """
        live = [k for k, alive in enumerate(self.lives) if alive]

        def at(x: list[float]) -> list[float]:
            before = [0.0] * len(self.lives)
            for k, value in zip(live, x, strict=True):
                before[k] = value
            return self.step(0.0, before) or [np.nan] * len(live)

        units = np.eye(len(live)).tolist()
        matrix = np.array([at(unit) for unit in units]).T
        samples = _SAMPLES[:, : len(live)] * 10.0 ** np.arange(len(live))
        if thorough:
            # a sum of squares has no other sign
            positive = [bool(np.isnan(at([-x for x in unit])).any()) for unit in units]
            samples = np.vstack([np.where(positive, abs(samples), samples), 0 * samples[:1]])
        else:
            samples = abs(samples[:1])
        after = np.array([at(x) for x in samples.tolist()])
        with np.errstate(all="ignore"):  # of NaN and infinity
            error, bound = abs(after - samples @ matrix.T), 1e-13 * (abs(samples) @ abs(matrix).T)  # its own rounding
        return matrix if np.all(error <= bound) else None


class Products:
    """The matrices of steps, and the products of neighbours: so that of any run of them takes few multiplications.

    `table`: float64 (2 n, d, d), a binary tree in order. The product of the 2^l steps from k 2^l on is at
    (2 k + 1) 2^l - 1.
    """

    def __init__(self, d: int):
        self.table = np.zeros((128, d, d))

    def record(self, step: int, matrix: np.ndarray) -> None:
        """Put in the matrix of a step: the next one, or the last one again."""
        if 2 * step + 1 >= len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self.table[2 * step] = matrix
        half = 1
        while (step + 1) % (2 * half) == 0:
            middle = 2 * (step + 1 - half) - 1  # between the halves
            self.table[middle] = self.table[middle + half] @ self.table[middle - half]
            half *= 2


_SAMPLES = np.random.default_rng(0).standard_normal((8, 128))
