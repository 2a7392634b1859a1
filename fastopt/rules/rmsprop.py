"""RMSProp: Adagrad that forgets. State per parameter: one buffer, and one more each with `centered` and momentum."""

from fastopt.math import sqrt
from fastopt.rule import rule
from fastopt.schema import Fraction


@rule
def rmsprop(
    p, g, v, ga, b, *, lr=1e-2, alpha: Fraction = 0.99, eps=1e-8, momentum=0.0, centered=False, weight_decay=0.0
):
    """RMSProp. Tieleman & Hinton 2012, lecture 6.5; `centered`: Graves 2013, arXiv:1308.0850, equations 38-41.

    As in PyTorch, eps is outside the root, v starts at 0 and v - ga^2 is not clamped, so it can round below 0. TF1
    starts v at 1; Keras (alpha 0.9) and optax put eps inside the root. Weight decay is L2.
    """
    g = g + weight_decay * p
    v = alpha * v + (1 - alpha) * g * g
    if centered:
        ga = alpha * ga + (1 - alpha) * g
        u = g / (sqrt(v - ga * ga) + eps)
    else:
        u = g / (sqrt(v) + eps)
    if momentum:
        b = momentum * b + u
        u = b
    return p - lr * u, v, ga, b
