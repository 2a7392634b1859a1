"""MADGRAD: dual averaging with a cube root, from the start point. State per parameter: three buffers."""

from fastopt.math import cbrt, sqrt
from fastopt.rule import rule
from fastopt.schema import Fraction


@rule(init={"x0": "p"})
def madgrad(p, g, s, v, x0, *, lr=1e-2, momentum: Fraction = 0.9, eps=1e-6, weight_decay=0.0, t):
    """MADGRAD. Defazio & Jelassi 2021, arXiv:2101.11075, Algorithm 1; c of the paper is 1 - momentum.

    x0, the start point, is a state of its own. eps is outside the root, as in the paper; the authors' program also adds
    it to lr. Weight decay is L2, and needs to be far smaller than that of other rules.
    """
    g = g + weight_decay * p
    k = lr * sqrt(t)
    s = s + k * g
    v = v + k * g * g
    z = x0 - s / (cbrt(v) + eps)
    return momentum * p + (1 - momentum) * z, s, v, x0
