"""The wrappers: `fo.grokfast(fo.adamw)` is a rule like any other. Each is a formula, spliced into that of the rule."""

from fastopt.math import clip, maximum, mean, minimum, norm, normal, rms, sqrt, where
from fastopt.schema import Fraction, NonNegative
from fastopt.wrap import before, behind


@before
def clip_value(p, g, *, limit: NonNegative):
    """Every element of the gradient is kept within -limit and limit, before the rule sees it."""
    return clip(g, -limit, limit)


@before
def clip_norm(p, g, *, max_norm: NonNegative):
    """All gradients together have a norm of max_norm at most. Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_. All: of the optimizer's
    parameters that this rule moves; a group with a rule of its own is not among them. The norm costs one more look at
    the gradients, and nothing is written. A gradient that is not finite makes all of them NaN or 0, as in PyTorch.
    """
    return g * minimum(1.0, max_norm / (norm(g, "all") + 1e-6))


@before
def clip_each_norm(p, g, *, max_norm: NonNegative):
    """`clip_norm` of every parameter by itself."""
    return g * minimum(1.0, max_norm / (norm(g) + 1e-6))


@before
def agc(p, g, *, clipping: NonNegative = 0.01, eps: NonNegative = 1e-3, matrix):
    """Adaptive gradient clipping. Brock et al. 2021, arXiv:2102.06171, equation 3.

    A row of a matrix is a unit, as is any other parameter in whole; the norm of a unit's gradient is at most `clipping`
    times that of the unit, which counts as eps at least. The paper's units of a convolution are its filters: give such
    a parameter as a 2-d view to have them.
    """
    if matrix:
        most, n = clipping * maximum(norm(p, "row"), eps), norm(g, "row")
    else:
        most, n = clipping * maximum(norm(p), eps), norm(g)
    return g * where(n > most, most / maximum(n, 1e-6), 1.0)


@before
def centralize(p, g, *, matrix):
    """Gradient centralization. Yong et al. 2020, arXiv:2004.01461, equation 1: each row of a matrix has mean 0.

    Rows belong to outputs, as in PyTorch's weights. Parameters that are not 2-d keep their gradient.
    """
    return g - mean(g, "row") if matrix else g


@before
def normalize(p, g, *, by_rms=False, eps: NonNegative = 1e-8):
    """The gradient of each parameter over its norm, or over the root of its mean square: only its direction counts."""
    n = rms(g) if by_rms else norm(g)
    return g / (n + eps)


@before
def noisy(p, g, *, eta: NonNegative = 0.3, gamma: NonNegative = 0.55, seed=0, t):
    """Annealed gradient noise. Neelakantan et al. 2015, arXiv:1511.06807: normal, of variance eta / t^gamma.

    The paper counts its steps from 0 and writes (1 + t). For the numbers see `fastopt.math.normal`.
    """
    return g + sqrt(eta / t**gamma) * normal(p, seed)


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


@behind(init={"s": "p"})
def lookahead(p, g, new, s, *, interval: NonNegative = 5, alpha: NonNegative = 0.5, t):
    """Lookahead. Zhang et al. 2019, arXiv:1907.08610, Algorithm 1: k steps forward, one step back.

    s are the slow weights. After every `interval`th step (the paper's k) they move by alpha towards the parameters, and
    these become them.
    """
    s = s + alpha * (new - s) if t % interval == 0 else s
    return (s if t % interval == 0 else new), s


@behind(view="e")
def ema(p, g, new, e, *, decay: Fraction = 0.999, t):
    """An exponential moving average of the parameters, Polyak & Juditsky 1992 with a memory; `opt.eval()` shows it.

    e is the average and starts at the parameters after the first step, as in torch.optim.swa_utils. It changes nothing
    in training.
    """
    d = decay if t > 1 else 0
    e = d * e + (1 - d) * new
    return new, e
