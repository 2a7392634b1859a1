"""Adam-mini: Adam with one second moment per block. State: one buffer, and a number per row or per parameter."""

from fastopt.math import rms, sqrt, square
from fastopt.rule import rule


@rule
def adam_mini(p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, matrix, t):
    """Adam-mini. Zhang et al. 2024, arXiv:2406.16793, Algorithm 1; v is a mean of g^2 over a block.

    A block is a row of a 2-d parameter, the whole of any other. That is the paper's partition for Transformers
    (Algorithm 3) where a matrix has its outputs, or an embedding its tokens, in rows, as in PyTorch: tokens and output
    neurons are blocks there, and query and key are cut by heads, so more coarsely than here. Its partition for other
    networks takes each parameter for a block. Matrices used as x @ w have outputs in columns: keep their transposes.
    Decay is decoupled and multiplied by lr; eps is added after the correction of v.
    """
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * square(rms(g, "row") if matrix else rms(g))
    return p - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps), m, v
