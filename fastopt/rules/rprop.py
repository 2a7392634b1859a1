"""Rprop: a step size per coordinate, from the signs of gradients alone. State per parameter: two buffers."""

from fastopt.math import clip, sign, where
from fastopt.rule import rule
from fastopt.schema import Fraction, NonNegative


@rule(init={"delta": "lr"})
def rprop(
    p,
    g,
    prev,
    delta,
    *,
    lr=1e-2,
    eta_minus: Fraction = 0.5,
    eta_plus: NonNegative = 1.2,
    delta_min: NonNegative = 1e-6,
    delta_max: NonNegative = 50.0,
):
    """Rprop. Riedmiller & Braun 1993, A Direct Adaptive Method for Faster Backpropagation Learning.

    For gradients of the whole data. The step sizes `delta` start at lr, which has no effect later on. As in PyTorch,
    where the sign has changed the coordinate stays for a step and counts as new after it (the variant iRprop- of Igel
    & Huesken 2000); the paper takes its last step back. optax gives the update of the step before.
    """
    s = g * prev
    delta = clip(delta * where(s > 0, eta_plus, where(s < 0, eta_minus, 1.0)), delta_min, delta_max)
    g = where(s < 0, 0.0, g)
    return p - sign(g) * delta, g, delta
