"""Adagrad: a rate per coordinate that falls with the gradients it has seen. State per parameter: one buffer."""

from fastopt.math import sqrt
from fastopt.rule import rule


@rule(init={"s": "initial_accumulator_value"})
def adagrad(p, g, s, *, lr=1e-2, lr_decay=0.0, eps=1e-10, weight_decay=0.0, initial_accumulator_value=0.0, t):
    """Adagrad. Duchi, Hazan & Singer 2011, JMLR 12, Figure 1 (diagonal form, no projection).

    The sum s of squares starts at `initial_accumulator_value`. As in PyTorch, eps is outside the root and lr falls by
    1 + (t - 1) * lr_decay. Keras and optax start s at 0.1 and put eps = 1e-7 inside the root. Weight decay is L2.
    """
    g = g + weight_decay * p
    s = s + g * g
    return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps), s
