"""Wrappers that change where a step ends."""

from fastopt.math import maximum, mean, where
from fastopt.schema import NonNegative
from fastopt.wrap import behind


@behind
def cautious(p, g, new, *, floor: NonNegative = 1e-3):
    """Cautious optimizers. Liang et al. 2024, arXiv:2411.16085, Algorithm 1: no step against the gradient.

    Elements that the rule would move uphill stay, and the others move further, by one over their share of the
    parameter. As in timm that share is `floor` at least, where the paper counts one element more. The paper masks the
    rule's direction alone; here it is the whole change of p, decoupled weight decay included.
    """
    u = p - new
    mask = where(u * g > 0, 1.0, 0.0)
    return p - u * mask / maximum(mean(mask), floor)


@behind(init={"s": "p"})
def lookahead(p, g, new, s, *, interval: NonNegative = 5, alpha: NonNegative = 0.5, t):
    """Lookahead. Zhang et al. 2019, arXiv:1907.08610, Algorithm 1: k steps forward, one step back.

    s are the slow weights. After every `interval`th step (the paper's k) they move by alpha towards the parameters, and
    these become them.
    """
    s = s + alpha * (new - s) if t % interval == 0 else s
    return (s if t % interval == 0 else new), s
