"""Wrappers that keep an average of the parameters beside them: `opt.averaged()` shows it. Training does not notice."""

from typing import Annotated

from fastopt.math import maximum, minimum
from fastopt.schema import Domain, Fraction, NonNegative
from fastopt.wrap import behind

Interval = Annotated[float, Domain(low=1.0, whole=True)]


@behind(view="e")
def ema(p, g, new, e, *, decay: Fraction = 0.999, warmup=False, every: Interval = 1, t):
    """An exponential moving average of the parameters, Polyak & Juditsky 1992 with a memory; `opt.eval()` shows it.

    e is the average and starts at the parameters after the first step, as in torch.optim.swa_utils; from then on each
    `every`th step enters it. With `warmup` the decay is (1 + n) / (10 + n) at most after n of these, as in TensorFlow's
    ExponentialMovingAverage, so that the first steps are forgotten soon.
    """
    d = minimum(decay, (1 + t / every) / (10 + t / every)) if warmup else decay
    d = d if t > 1 else 0
    e = e if t > 1 and t % every > 0 else d * e + (1 - d) * new
    return new, e


@behind(init={"e": "p"}, view="e")
def swa(p, g, new, e, *, start: NonNegative = 0, every: Interval = 1, t):
    """Stochastic weight averaging. Izmailov et al. 2018, arXiv:1803.05407, Algorithm 1.

    e is the mean of the parameters at step `start` (the paper's pretrained weights; 0: before the first step) and at
    every `every`th step (its cycle length c) from there on; until then it is the parameters themselves.
    """
    n = maximum(t - start, 0) / every  # how many models are averaged by now, besides the first
    e = new if t <= start else (e if (t - start) % every > 0 else e + (new - e) / (n + 1))
    return new, e


@behind(view="e")
def polyak_average(p, g, new, e, *, gamma: NonNegative = 0, t):
    """The mean of the parameters after all steps. Polyak & Juditsky 1992, SIAM J. Control Optim. 30.

    With gamma > 0 later steps count more: polynomial-decay averaging, Shamir & Zhang 2013, arXiv:1212.1824, section 4,
    whose eta is gamma.
    """
    e = e + (gamma + 1) / (gamma + t) * (new - e)
    return new, e
