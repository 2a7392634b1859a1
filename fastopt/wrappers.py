"""The wrappers: `fo.grokfast(fo.adamw)` is a rule like any other. Each is a formula, spliced into that of the rule."""

from fastopt.math import clip, maximum, mean, where
from fastopt.schema import Fraction, NonNegative
from fastopt.wrap import before, behind


@before
def clip_value(p, g, *, limit: NonNegative):
    """Every element of the gradient is kept within -limit and limit, before the rule sees it."""
    return clip(g, -limit, limit)


@before
def grokfast(p, g, h, *, alpha: Fraction = 0.98, lamb: NonNegative = 2.0, t):
    """Grokfast-EMA. Lee et al. 2024, arXiv:2405.20233: what changes slowly in the gradient is amplified.

    h is the moving average of the gradient, and lamb times h is added to it. As in the authors' program h starts at the
    first gradient, so that it has no bias to correct.
    """
    a = alpha if t > 1 else 0
    h = a * h + (1 - a) * g
    return g + lamb * h, h


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


@behind(view="e")
def ema(p, g, new, e, *, decay: Fraction = 0.999, t):
    """An exponential moving average of the parameters, Polyak & Juditsky 1992 with a memory; `opt.eval()` shows it.

    e is the average and starts at the parameters after the first step, as in torch.optim.swa_utils. It changes nothing
    in training.
    """
    d = decay if t > 1 else 0
    e = d * e + (1 - d) * new
    return new, e
