"""LaProp: the gradient is normalised first, then averaged. State per parameter: two buffers."""

from fastopt.math import sqrt
from fastopt.rule import rule


@rule
def laprop(p, g, m, v, *, lr=4e-4, beta1=0.9, beta2=0.999, eps=1e-15, weight_decay=0.0, t):
    """LaProp. Ziyin, Wang & Ueda 2020, arXiv:2002.04839, Algorithm 1 (its mu and nu are beta1 and beta2).

    Decay is decoupled, multiplied by lr, and follows the update, as in timm. timm multiplies lr into m, which differs
    while lr changes. eps goes outside the root.
    """
    v = beta2 * v + (1 - beta2) * g * g
    m = beta1 * m + (1 - beta1) * g / (sqrt(v / (1 - beta2**t)) + eps)
    p = p - lr / (1 - beta1**t) * m
    return p - lr * weight_decay * p, m, v
