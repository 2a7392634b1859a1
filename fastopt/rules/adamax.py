"""Adamax: Adam with the largest recent gradient in place of the root mean square. State per parameter: two buffers."""

from fastopt.math import maximum
from fastopt.rule import rule


@rule
def adamax(p, g, m, u, *, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, t):
    """Adamax. Kingma & Ba 2014, arXiv:1412.6980, Algorithm 2.

    As in PyTorch and optax, eps is added to |g| inside the maximum, and so stays in u; the paper has none, Keras adds
    it to the denominator. Weight decay is L2.
    """
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    u = maximum(beta2 * u, abs(g) + eps)
    return p - lr / (1 - beta1**t) * m / u, m, u
