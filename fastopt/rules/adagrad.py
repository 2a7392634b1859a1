"""Adagrad: a rate that falls with the gradients seen, per coordinate or one for all. State: one buffer; one number."""

from typing import Annotated

from fastopt.math import norm, sqrt
from fastopt.rule import rule
from fastopt.schema import Domain


@rule(init={"s": "initial_accumulator_value"})
def adagrad(p, g, s, *, lr=1e-2, lr_decay=0.0, eps=1e-10, weight_decay=0.0, initial_accumulator_value=0.0, t):
    """Adagrad. Duchi, Hazan & Singer 2011, JMLR 12, Figure 1 (diagonal form, no projection).

    The sum s of squares starts at `initial_accumulator_value`. As in PyTorch, eps is outside the root and lr falls by
    1 + (t - 1) * lr_decay. Keras and optax start s at 0.1 and put eps = 1e-7 inside the root. Weight decay is L2.
    """
    g = g + weight_decay * p
    s = s + g * g
    return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps), s


@rule(init={"b": "b0"})
def adagrad_norm(p, g, b, *, lr=1.0, b0: Annotated[float, Domain(low=1e-30)] = 0.1, weight_decay=0.0):
    """AdaGrad-Norm. Ward, Wu & Bottou 2018, arXiv:1806.01811, Algorithm 1: one rate for all parameters.

    b, the root of the sum of the squares of the gradient's norms, starts at b0 and is the same number in every
    parameter. lr is the paper's eta. Weight decay is L2. The defaults of lr and b0 are fastopt's own.
    """
    g = g + weight_decay * p
    b = sqrt(b**2 + norm(g, "all") ** 2)
    return p - lr / b * g, b
