"""Lion: the sign of an interpolated momentum. State per parameter: one buffer."""

from fastopt.math import sign
from fastopt.rule import rule


@rule
def lion(p, g, m, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Lion. Chen et al. 2023, arXiv:2302.06675, Program 1. Decay is decoupled and multiplied by lr.

    Every coordinate moves by lr, so lr is 3-10 times smaller than Adam's and weight_decay as much larger. A coordinate
    whose interpolated momentum is exactly 0 does not move. DeepSpeed's beta2 is 0.999.
    """
    c = beta1 * m + (1 - beta1) * g
    p = p - lr * weight_decay * p
    m = beta2 * m + (1 - beta2) * g
    return p - lr * sign(c), m
