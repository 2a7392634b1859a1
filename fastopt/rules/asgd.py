"""ASGD: gradient descent beside the average of its iterates. State per parameter: one buffer and two numbers."""

from fastopt.math import maximum
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule(init={"eta": "lr", "mu": 1.0}, view="ax")
def asgd(
    p,
    g,
    ax,
    eta,
    mu,
    *,
    lr=1e-2,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1e6,
    weight_decay=0.0,
    t,
):
    """Averaged SGD. Polyak & Juditsky 1992, in the form of Bottou's SVM programs, as in PyTorch.

    The result is ax, shown by `opt.eval()`: the average of the parameters after step t0, until then they themselves.
    eta and mu are single numbers, computed at the end of a step for the next one: a change of lr takes effect a step
    late. Weight decay is L2, besides the decay of p by lambd * eta.
    """
    g = g + weight_decay * p
    p = p - lambd * eta * p - eta * g
    ax = p if mu == 1 else ax + (p - ax) * mu
    eta = lr / (1 + lambd * lr * t) ** alpha
    mu = 1 / maximum(1, t - t0)
    return p, ax, eta, mu
