"""AdaBelief: Adam that divides by how far the gradient is from its mean. State per parameter: two buffers."""

from fastopt.math import sqrt
from fastopt.rule import rule


@rule
def adabelief(p, g, m, s, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16, weight_decay=0.0, t):
    """AdaBelief. Zhuang et al. 2020, arXiv:2010.07468, Algorithm 2.

    eps is added to s at every step and stays there, and once more to the root, as in the paper. Decay is decoupled and
    multiplied by lr, as in the authors' program, whose rectified form (their default) this is not.
    """
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
    return p - lr / (1 - beta1**t) * m / (sqrt(s) / sqrt(1 - beta2**t) + eps), m, s
