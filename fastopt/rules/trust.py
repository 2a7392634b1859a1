"""LAMB and LARS: a step per parameter in proportion to the parameter's norm. State: two buffers; one with momentum."""

from fastopt.math import minimum, norm, sqrt, where
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def lamb(p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0, trust_clip=False, t):
    """LAMB. You et al. 2019, arXiv:1904.00962, Algorithm 2 with phi(x) = x. Decay is part of u, so of the ratio.

    The ratio norm(p) / norm(u) is 1 where a norm is 0 (or NaN), as in optax. `trust_clip` bounds it by 1 (LAMBC; Fong
    et al. 2020, arXiv:2011.13584). timm and Apex first clip the gradient of all parameters to norm 1, and timm leaves
    the ratio out where weight_decay is 0. Biases and scales are often given a group without decay.
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p
    w, n = norm(p), norm(u)
    r = where(w > 0 and n > 0, w / n, 1.0)
    r = minimum(r, 1.0) if trust_clip else r
    return p - lr * r * u, m, v


@rule
def lars(
    p,
    g,
    b,
    *,
    lr=1.0,
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    weight_decay=0.0,
    trust_coeff: NonNegative = 0.001,
    eps=1e-8,
    trust_clip=False,
    t,
):
    """LARS. You, Gitman & Ginsburg 2017, arXiv:1708.03888, Algorithm 1.

    The ratio is 1 where a norm is 0 (or NaN). As in timm, lr stays outside the buffer, the first step fills the buffer
    with the whole gradient, `nesterov` is torch's, and with `trust_clip` lr times the ratio is at most lr, the
    ratio without lr (LARC). Unlike timm, which needs `always_adapt` for it, the ratio also holds where weight_decay is
    0. The paper and optax put lr inside the buffer.
    """
    w, n = norm(p), norm(g)
    r = where(w > 0 and n > 0, trust_coeff * w / (n + weight_decay * w + eps), 1.0)
    r = minimum(r / lr, 1.0) if trust_clip else r
    g = r * (g + weight_decay * p)
    if momentum:
        b = momentum * b + (1 - dampening if t > 1 else 1) * g
        g = g + momentum * b if nesterov else b
    return p - lr * g, b
