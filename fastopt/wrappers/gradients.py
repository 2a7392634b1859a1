"""Wrappers that change the gradient before the rule sees it: clipping, centring, normalising, amplifying."""

from fastopt.math import clip, maximum, mean, minimum, norm, rms, where
from fastopt.schema import Fraction, NonNegative
from fastopt.wrap import before


@before
def clip_value(p, g, *, limit: NonNegative):
    """Every element of the gradient is kept within -limit and limit, before the rule sees it."""
    return clip(g, -limit, limit)


@before
def clip_norm(p, g, *, max_norm: NonNegative):
    """All gradients together have a norm of max_norm at most. Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_. All: of the optimizer's
    parameters that this rule moves; a group with a rule of its own is not among them. The norm costs one more look at
    the gradients, and nothing is written. A gradient that is not finite makes all of them NaN or 0, as in PyTorch.
    """
    return g * minimum(1.0, max_norm / (norm(g, "all") + 1e-6))


@before
def clip_group_norm(p, g, *, max_norm: NonNegative):
    """`clip_norm` of every group by itself, the parameters that are in none being one, too."""
    return g * minimum(1.0, max_norm / (norm(g, "group") + 1e-6))


@before
def clip_each_norm(p, g, *, max_norm: NonNegative):
    """`clip_norm` of every parameter by itself."""
    return g * minimum(1.0, max_norm / (norm(g) + 1e-6))


@before
def agc(p, g, *, clipping: NonNegative = 0.01, eps: NonNegative = 1e-3, matrix):
    """Adaptive gradient clipping. Brock et al. 2021, arXiv:2102.06171, equation 3.

    A row of a matrix is a unit, as is any other parameter in whole; the norm of a unit's gradient is at most `clipping`
    times that of the unit, which counts as eps at least. The paper's units of a convolution are its filters: give such
    a parameter as a 2-d view to have them.
    """
    if matrix:
        most, n = clipping * maximum(norm(p, "row"), eps), norm(g, "row")
    else:
        most, n = clipping * maximum(norm(p), eps), norm(g)
    return g * where(n > most, most / maximum(n, 1e-6), 1.0)


@before
def centralize(p, g, *, matrix):
    """Gradient centralization. Yong et al. 2020, arXiv:2004.01461, equation 1: each row of a matrix has mean 0.

    Rows belong to outputs, as in PyTorch's weights. Parameters that are not 2-d keep their gradient.
    """
    return g - mean(g, "row") if matrix else g


@before
def normalize(p, g, *, by_rms=False, eps: NonNegative = 1e-8):
    """The gradient of each parameter over its norm, or over the root of its mean square: only its direction counts."""
    n = rms(g) if by_rms else norm(g)
    return g / (n + eps)


@before
def grokfast(p, g, h, *, alpha: Fraction = 0.98, lamb: NonNegative = 2.0, t):
    """Grokfast-EMA. Lee et al. 2024, arXiv:2405.20233: what changes slowly in the gradient is amplified.

    h is the moving average of the gradient, and lamb times h is added to it. As in the authors' program h starts at the
    first gradient, so that it has no bias to correct.
    """
    a = alpha if t > 1 else 0
    h = a * h + (1 - a) * g
    return g + lamb * h, h
