"""What the docs and the benchmarks say a rule keeps and moves."""

import pytest

import fastopt as fo
from fastopt.math import mean, norm
from fastopt.traffic import kept, moved, usual


@fo.rule
def rows(p, g, r, c, n, *, lr=1e-2):
    """A number a row, one a column and one a parameter; the second pass reads what the first one summed."""
    r = r + mean(g * g, "row")
    c = c + mean(g * g, "column")
    n = n + norm(g)
    return p - lr * g * r * c / n, r, c, n


@pytest.mark.parametrize(
    "rule, loads, stores, passes, state",
    [
        (fo.sgd, 2, 1, 1, "0 an element"),
        (fo.adamw, 4, 3, 1, "8 an element"),
        (fo.nadam, 4, 3, 1, "8 an element, 8 a parameter"),
        (fo.asgd, 3, 2, 1, "4 an element, 16 a parameter"),
        (fo.sophia, 4, 2, 1, "8 an element"),  # h is only read
        (fo.madgrad, 5, 3, 1, "12 an element"),  # so is x0
        (fo.mars, 2 + 5, 4, 2, "12 an element"),
        (rows, 1 + 2, 1, 2, "8 a row, 8 a column, 8 a parameter"),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_traffic_is_that_of_the_passes(rule, loads, stores, passes, state):
    lowered = usual(rule)
    seen = moved(lowered)
    assert (seen.loads, seen.stores, seen.passes) == (loads, stores, passes)
    assert seen.bytes == 4 * (loads + stores) and kept(lowered) == state
