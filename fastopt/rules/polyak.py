"""Steps from the value of the loss: `opt.set(loss=...)` before each `opt.step(...)`. No state."""

from fastopt.math import maximum, minimum, norm, where
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def polyak(p, g, *, lr=1.0, loss=0.0, f_star=0.0, eps=0.0):
    """Polyak 1987, Introduction to Optimization, section 5.3: gradient descent with the step (f - f*) / norm(g)^2.

    `loss` is the value of the function at p, set before each step; until then, and where it is not above f_star, p
    stays. The norm is that of all parameters. lr is a factor (Polyak's gamma, between 0 and 2). Where the gradient is
    0, p stays. eps is added to the square of the norm, as in optax.
    """
    s = norm(g, "all") ** 2 + eps
    return p - where(s > 0, lr * maximum(loss - f_star, 0.0) / s, 0.0) * g


@rule
def sps(p, g, *, lr=1.0, loss=0.0, f_star=0.0, c: NonNegative = 0.5, eps=0.0):
    """SPS_max. Loizou et al. 2021, arXiv:2002.10542, equation 3: the stochastic step of Polyak, bounded by lr.

    `loss` is the mean over the batch the gradient is of, set before each step, f_star the least it can be: 0 for a
    model that can fit every example. lr is the paper's gamma_b, eps as in `polyak`. optax's
    `polyak_sgd` has c = 1 and, unless told otherwise, steps back where the loss is below f_star.
    """
    s = c * (norm(g, "all") ** 2 + eps)
    return p - where(s > 0, minimum(maximum(loss - f_star, 0.0) / s, lr), 0.0) * g
