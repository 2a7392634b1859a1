"""Adam that estimates its own learning rate: D-Adaptation and Prodigy. State: three or four buffers, two numbers.

d is the lower bound of D, the distance to the solution. It and r are sums over all parameters, so the same number in
every parameter, as long as every parameter has a gradient at every step: one that sits a step out keeps its d. Groups
may have learning rates of their own, 0 among them: lr stands inside the sums. After a NaN in a gradient d stays.
"""

from typing import Annotated

from fastopt.math import abs, maximum, sqrt, total, where
from fastopt.rule import rule
from fastopt.schema import Domain, NonNegative

Positive = Annotated[float, Domain(low=1e-30)]


@rule(init={"d": "d0"})
def dadapt_adam(
    p,
    g,
    m,
    v,
    s,
    r,
    d,
    *,
    lr=1.0,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    d0: Positive = 1e-6,
    decouple=False,
    use_bias_correction=False,
    t,
):
    """D-Adapted Adam. Defazio & Mishchenko 2023, arXiv:2301.07733, Algorithm 5. d starts at d0; leave lr at 1.

    As in the authors' program (dadaptation 3.2) the step takes the old d, and d stays where s is 0. Its bound on the
    growth of d and its scales of layers are left out. Decay is L2 unless `decouple`, and then multiplied by lr and d.
    """
    if not decouple:
        g = g + weight_decay * p
    gamma = lr * sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else lr
    b = sqrt(beta2)
    r = b * r + (1 - b) * d * total(gamma * g * s / (sqrt(v) + eps), "all")
    m = beta1 * m + (1 - beta1) * d * gamma * g
    v = beta2 * v + (1 - beta2) * g * g
    s = b * s + (1 - b) * d * gamma * g
    n = total(abs(s), "all")
    d_hat = where(n > 0, r / ((1 - b) * n), 0.0)
    if decouple:
        p = p - weight_decay * d * gamma * p
    return p - m / (sqrt(v) + eps), m, v, s, r, maximum(d, d_hat)


@rule(init={"p0": "p", "d": "d0"})
def prodigy(
    p,
    g,
    m,
    v,
    s,
    p0,
    r,
    d,
    *,
    lr=1.0,
    beta1=0.9,
    beta2=0.999,
    beta3=0.0,
    eps=1e-8,
    weight_decay=0.0,
    d0: Positive = 1e-6,
    d_coef: NonNegative = 1.0,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    t,
):
    """Prodigy. Mishchenko & Defazio 2023, arXiv:2306.06101, Algorithm 4. d starts at d0; leave lr at 1.

    As in the authors' program (prodigyopt 1.1): beta3 = 0 stands for sqrt(beta2), d_coef scales the estimate, sums are
    taken with d / d0 so that they are not too small, the step takes the old d but eps the new one, d stays where s is
    0, and `safeguard_warmup` leaves lr out of s. Its bound on the growth of d is left out. Decay is multiplied by lr
    and d, or L2 without `decouple`.
    """
    if not decouple:
        g = g + weight_decay * p
    gamma = lr * sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else lr
    b = beta3 if beta3 > 0 else sqrt(beta2)
    r = b * r + d / d0 * d * total(gamma * g * (p0 - p), "all")
    m = beta1 * m + (1 - beta1) * d * g
    v = beta2 * v + (1 - beta2) * d**2 * g * g
    s = b * s + d / d0 * d * (1 if safeguard_warmup else gamma) * g
    n = total(abs(s), "all")
    d_hat = where(n > 0, d_coef * r / n, 0.0)
    if decouple:
        p = p - weight_decay * d * gamma * p
    d_next = maximum(d, d_hat)
    return p - d * gamma * m / (sqrt(v) + d_next * eps), m, v, s, p0, r, d_next
