"""Adan: Nesterov's momentum from differences of gradients. State per parameter: four buffers."""

from fastopt.math import sqrt
from fastopt.rule import rule


@rule
def adan(p, g, m, v, n, prev, *, lr=1e-3, beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8, weight_decay=0.0, t):
    """Adan. Xie et al. 2022, arXiv:2208.06677, Algorithm 1. Decay divides by 1 + lr * weight_decay, after the update.

    The betas are those of the authors' program, one minus the paper's; its corrections of bias, which the paper lacks,
    are here, too. The first difference of gradients is 0. In optax the factor of v is 1 - beta2: another rule.
    """
    d = g - prev if t > 1 else 0.0
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * d
    n = beta3 * n + (1 - beta3) * (g + beta2 * d) ** 2
    u = (m / (1 - beta1**t) + beta2 / (1 - beta2**t) * v) / (sqrt(n) / sqrt(1 - beta3**t) + eps)
    return (p - lr * u) / (1 + lr * weight_decay), m, v, n, g
