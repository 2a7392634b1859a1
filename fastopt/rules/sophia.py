"""Sophia: a clipped Newton step with the Hessian's diagonal, which you supply. State per parameter: two buffers."""

from fastopt.math import clip, maximum
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule(init={"h": 0.0})
def sophia(p, g, m, h, *, lr=1e-4, beta1=0.96, gamma: NonNegative = 0.01, eps=1e-12, weight_decay=0.1):
    """Sophia. Liu et al. 2023, arXiv:2305.14342, Algorithm 3. Decay is decoupled and multiplied by lr.

    The rule reads h, the running mean of estimates of the Hessian's diagonal, and never writes it: you do, every ten
    steps or so (the paper's k), before the step, with beta2 = 0.99:

        h = opt.state["h"]["w"]                # the live array of the parameter "w"
        h += (1 - beta2) * (estimate - h)      # estimate = u * hessian_vector_product(u), u normal (Hutchinson),
                                               # or batch_size * g**2 of labels drawn from the model (GNB)

    Where h is not positive, all elements before the first estimate among them, the step is lr times the sign of m.
    gamma is 0.01 for Hutchinson's estimate, 0.05 for GNB. The authors' program adds eps instead of taking the maximum;
    optax also corrects m for bias.
    """
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    return p - lr * clip(m / maximum(gamma * h, eps), -1.0, 1.0), m, h
