"""NovoGrad: Adam whose second moment is one number a parameter. State per parameter: one buffer and one number."""

from fastopt.math import norm, sqrt
from fastopt.rule import rule


@rule
def novograd(p, g, m, n, *, lr=1e-3, beta1=0.9, beta2=0.25, eps=1e-6, weight_decay=0.0, t):
    """NovoGrad. Ginsburg et al. 2019, arXiv:1905.11286, Algorithm 1.

    n is the paper's v, a moving average of the square of the gradient's norm, which starts with the first square
    itself; m with the first normalised gradient. beta2 is optax's; the paper and timm use 0.95 and 0.98 for beta1 and
    beta2. Decay enters m after the division. A gradient with a NaN makes its whole parameter NaN.
    """
    n = beta2 * n + (1 - beta2 if t > 1 else 1) * norm(g) ** 2
    m = beta1 * m + (g / (sqrt(n) + eps) + weight_decay * p)
    return p - lr * m, m, n
