"""FTRL-Proximal: sparse linear models, learnt online. State per parameter: two buffers."""

from typing import Annotated

from fastopt.math import clip, sqrt
from fastopt.rule import rule
from fastopt.schema import Domain, NonNegative


@rule(init={"n": "initial_accumulator_value"})
def ftrl(
    p,
    g,
    z,
    n,
    *,
    lr: Annotated[float, Domain(low=1e-12)] = 0.1,  # z is in units of 1 / lr
    beta: NonNegative = 1.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value=0.0,
    t,
):
    """FTRL-Proximal. McMahan et al. 2013, Ad Click Prediction: a View from the Trenches, Algorithm 1 (lr is its alpha).

    Where |z| <= l1 the parameter is exactly 0. The paper starts at p = 0; from another start the first step sets z such
    that the proximal term is about that start, and for p = 0 changes nothing. Keras leaves z at 0 there, which throws
    most of the start away; its l2 is half of the paper's and its n starts at 0.1, with beta 0 and lr 0.001.
    """
    z = z - (beta + sqrt(n)) / lr * p if t == 1 else z
    z = z + g - (sqrt(n + g * g) - sqrt(n)) / lr * p
    n = n + g * g
    return (clip(z, -l1, l1) - z) / ((beta + sqrt(n)) / lr + l2), z, n
