"""NAdam: Adam with Nesterov's momentum. State per parameter: two buffers and one number."""

from fastopt.math import sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule(init={"product": 1.0})
def nadam(
    p,
    g,
    m,
    v,
    product,
    *,
    lr=2e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay=False,
    t,
):
    """NAdam. Dozat 2016, Incorporating Nesterov Momentum into Adam, with the warm-up of mu it proposes.

    `product` is the product of all mu so far, a single float64 number that starts at 1. As in PyTorch, the exponent
    of 0.96 is t * momentum_decay, and weight decay is L2 unless `decoupled_weight_decay`. optax keeps mu at beta1.
    """
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    product = product * mu
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps), m, v, product
