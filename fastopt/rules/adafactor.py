"""Adafactor: second moments of a matrix from a number per row and per column. No other state for matrices."""

from typing import Annotated

from fastopt.math import maximum, mean, minimum, rms, sqrt, square
from fastopt.rule import rule
from fastopt.schema import Domain, NonNegative


@rule
def adafactor(
    p,
    g,
    r,
    c,
    v,
    *,
    lr=1e-2,
    beta2_decay: Annotated[float, Domain(high=0.0)] = -0.8,
    eps1: Annotated[float, Domain(low=1e-30)] = 2**-23,
    eps2: NonNegative = 1e-3,
    d: Annotated[float, Domain(low=1.0)] = 1.0,
    weight_decay=0.0,
    matrix,
    t,
):
    """Adafactor. Shazeer & Stern 2018, arXiv:1804.04235, Algorithms 4 and 5, as in PyTorch 2.13; r, c are R, C.

    Matrices have numbers per row and per column, every other parameter a whole v. PyTorch factors the last two
    dimensions of larger arrays: for a 3 x 3 convolution that saves a third of v. Here those keep v; give such a
    parameter as a 2-d view, w.reshape(len(w), -1), to have it factored: PyTorch's state is 2/3 of v there, this hardly
    any. eps1 is the smallest root of a second moment; in PyTorch its default is the machine epsilon of the dtype, here
    that of float32. lr is the largest relative step and is not multiplied by it twice: the step is
    max(eps2, rms(p)) * min(lr, 1 / sqrt(t)), with u clipped to rms d. Decay is decoupled and multiplied by lr. The
    paper adds eps1 = 1e-30 to g^2; optax has no relative step and factors only dimensions from 128 on.
    """
    alpha = maximum(eps2, rms(p)) * (lr if lr * sqrt(t) < 1 else 1 / sqrt(t))
    p = p - lr * weight_decay * p
    if matrix:
        r = r + t**beta2_decay * (square(rms(g, "row")) - r)
        c = c + t**beta2_decay * (square(rms(g, "column")) - c)
        # roots and quotients once a row and a column: V itself would underflow in float32, and u needs no division
        x, y = sqrt(maximum(mean(r), eps1) / r), 1 / sqrt(c)
        u = g * minimum(x * y, 1 / eps1)
    else:
        v = v + t**beta2_decay * (g * g - v)
        u = g / maximum(sqrt(v), eps1)
    return p - alpha / maximum(1.0, rms(u) / d) * u, r, c, v
