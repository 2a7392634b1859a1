"""Quasi-hyperbolic rules: a plain step mixed into one with momentum. State per parameter: one buffer, or two."""

from fastopt.math import sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def qhm(p, g, m, *, lr=0.1, beta=0.999, nu: NonNegative = 0.7, weight_decay=0.0):
    """QHM. Ma & Yarats 2018, arXiv:1810.06801; m is the paper's g with a tilde.

    nu = 1 is momentum with dampening, nu = beta Nesterov's. The defaults of beta and nu are the paper's rule of thumb;
    (1 - beta) damps m, so that lr is about 1 / (1 - beta) times that of `sgd` with momentum. Weight decay is L2.
    """
    g = g + weight_decay * p
    m = beta * m + (1 - beta) * g
    return p - lr * ((1 - nu) * g + nu * m), m


@rule
def qhadam(
    p,
    g,
    m,
    v,
    *,
    lr=1e-3,
    beta1=0.995,
    beta2=0.999,
    nu1: NonNegative = 0.7,
    nu2: NonNegative = 1.0,
    eps=1e-8,
    weight_decay=0.0,
    t,
):
    """QHAdam. Ma & Yarats 2018, arXiv:1810.06801. nu1 = nu2 = 1 is Adam.

    The defaults of beta1 and nu1 are the paper's advice; the authors' package starts from Adam's. Weight decay is L2.
    """
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return p - lr * ((1 - nu1) * g + nu1 * m_hat) / (sqrt((1 - nu2) * g * g + nu2 * v_hat) + eps), m, v
