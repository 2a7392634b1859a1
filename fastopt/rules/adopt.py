"""ADOPT: the gradient is divided by the second moment of the steps before. State per parameter: two buffers."""

from fastopt.math import clip, maximum, sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def adopt(p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6, clip_exp: NonNegative = 0.25, weight_decay=0.0, t):
    """ADOPT. Taniguchi et al. 2024, arXiv:2411.02853, Algorithm 2: clipped at (t - 1)^clip_exp.

    The first step fills v with g^2 and moves nothing. clip_exp = 0 does not clip (Algorithm 1). timm's clip_exp is
    0.333. Weight decay is L2, the default of the authors' program.
    """
    g = g + weight_decay * p
    c = g / maximum(sqrt(v), eps)
    if clip_exp:
        c = clip(c, -((t - 1) ** clip_exp), (t - 1) ** clip_exp)
    m = beta1 * m + (1 - beta1) * c if t > 1 else m
    v = beta2 * v + (1 - beta2) * g * g if t > 1 else g * g
    return p - lr * m, m, v
