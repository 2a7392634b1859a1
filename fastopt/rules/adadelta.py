"""Adadelta: steps in the units of the parameter. State per parameter: two buffers."""

from fastopt.math import sqrt
from fastopt.rule import rule
from fastopt.schema import Fraction


@rule
def adadelta(p, g, v, a, *, lr=1.0, rho: Fraction = 0.9, eps=1e-6, weight_decay=0.0):
    """Adadelta. Zeiler 2012, arXiv:1212.5701, Algorithm 1; v is E[g^2], a is E[dx^2].

    The paper has no lr: it is 1, as in PyTorch. Keras takes lr 0.001, rho 0.95 and eps 1e-7. Weight decay is L2.
    """
    g = g + weight_decay * p
    v = rho * v + (1 - rho) * g * g
    d = sqrt(a + eps) / sqrt(v + eps) * g
    a = rho * a + (1 - rho) * d * d
    return p - lr * d, v, a
