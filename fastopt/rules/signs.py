"""Sign descent, plain and with momentum. State per parameter: none, or one buffer."""

from fastopt.math import sign
from fastopt.rule import rule


@rule
def signsgd(p, g, *, lr=1e-3, weight_decay=0.0):
    """signSGD. Bernstein et al. 2018, arXiv:1802.04434, Algorithm 1. Weight decay is L2.

    Every coordinate moves by lr, up or down, or not at all where its gradient is exactly 0.
    """
    g = g + weight_decay * p
    return p - lr * sign(g)


@rule
def signum(p, g, m, *, lr=1e-3, beta=0.9, weight_decay=0.0):
    """Signum. Bernstein et al. 2018, arXiv:1802.04434, Algorithm 2: the sign of the momentum. Weight decay is L2."""
    g = g + weight_decay * p
    m = beta * m + (1 - beta) * g
    return p - lr * sign(m), m
