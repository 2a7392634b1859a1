"""AdEMAMix: Adam with a second, far slower momentum. State per parameter: three buffers."""

from fastopt.math import exp, log, minimum, sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule
def ademamix(
    p,
    g,
    m1,
    m2,
    v,
    *,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    beta3=0.9999,
    alpha: NonNegative = 5.0,
    warmup: NonNegative = 0,
    eps=1e-8,
    weight_decay=0.0,
    t,
):
    """AdEMAMix. Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137, Algorithm 1; m2 is not corrected for bias.

    `warmup` is the paper's T of both schedulers, in steps: alpha rises linearly from 0, and beta3 from beta1 such that
    its half-life grows linearly. 0 leaves both constant. The paper sets it to the length of the run; without it a large
    alpha can diverge early. Decay is decoupled and multiplied by lr.
    """
    if warmup:
        s = minimum(t / warmup, 1)
        alpha = s * alpha
        beta3 = minimum(exp(log(beta1) * log(beta3) / ((1 - s) * log(beta3) + s * log(beta1))), beta3)
    m1 = beta1 * m1 + (1 - beta1) * g
    m2 = beta3 * m2 + (1 - beta3) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = (m1 / (1 - beta1**t) + alpha * m2) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
    return p - lr * (u + weight_decay * p), m1, m2, v
