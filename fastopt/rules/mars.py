"""MARS: AdamW on gradients of reduced variance. State per parameter: three buffers."""

from fastopt.math import maximum, norm, sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def mars(
    p, g, m, v, prev, *, lr=3e-3, beta1=0.95, beta2=0.99, gamma: NonNegative = 0.025, eps=1e-8, weight_decay=0.0, t
):
    """MARS-AdamW. Yuan et al. 2024, arXiv:2411.10438, Algorithm 2, with the gradient of the step before as it was.

    That is the paper's approximate form: the exact one wants that gradient on the present batch. c is scaled down to
    norm 1, per parameter, as in the authors' program, which gives MARS to matrices and AdamW to the rest (here:
    `groups=[fo.Group("*.bias", rule=fo.adamw)]`). The first difference of gradients is 0, as in timm; elsewhere it is
    the gradient. Decay is decoupled and multiplied by lr.
    """
    d = g - prev if t > 1 else 0.0
    c = g + gamma * beta1 / (1 - beta1) * d
    c = c / maximum(norm(c), 1.0)
    m = beta1 * m + (1 - beta1) * c
    v = beta2 * v + (1 - beta2) * c * c
    u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
    return p - lr * (u + weight_decay * p), m, v, g
