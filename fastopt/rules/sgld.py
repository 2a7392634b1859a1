"""Langevin dynamics: gradient descent with noise that makes it a sampler. State per parameter: none."""

from fastopt.math import normal, sqrt
from fastopt.rule import rule


@rule
def sgld(p, g, *, lr=1e-3, temperature=1.0, weight_decay=0.0, seed=0):
    """Stochastic gradient Langevin dynamics. Welling & Teh 2011, ICML, equation 4, with lr for their epsilon / 2.

    Give it the gradient of a negative log density: after a while the parameters are samples of that density, if lr is
    small, and of its power 1 / temperature otherwise; temperature 0 is gradient descent. `weight_decay` is L2, a normal
    prior of that precision. The noise follows from `seed`, the step and the element: see `fastopt.math.normal`.
    """
    g = g + weight_decay * p
    return p - lr * g + sqrt(2 * lr * temperature) * normal(p, seed)
