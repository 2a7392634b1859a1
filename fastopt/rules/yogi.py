"""Yogi: Adam whose second moment grows and shrinks by steps of one size. State per parameter: two buffers."""

from fastopt.math import sign, sqrt
from fastopt.rule import rule


@rule(init={"m": "initial_accumulator_value", "v": "initial_accumulator_value"})
def yogi(p, g, m, v, *, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.0, initial_accumulator_value=1e-6, t):
    """Yogi. Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization (NeurIPS), Algorithm 2.

    As in optax and TensorFlow, m and v start at `initial_accumulator_value` and are corrected for bias, which the paper
    does not do. Weight decay, which these lack, is L2.
    """
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = v - (1 - beta2) * sign(v - g * g) * g * g
    return p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps), m, v
