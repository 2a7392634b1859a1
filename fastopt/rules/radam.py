"""RAdam: Adam that knows how little its first second moments say. State per parameter: two buffers."""

from fastopt.math import sqrt
from fastopt.rule import rule


@rule
def radam(p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False, t):
    """Rectified Adam. Liu et al. 2019, arXiv:1908.03265, Algorithm 2.

    While rho_t <= 5 the step is momentum alone, as in PyTorch; the paper says 4, optax >= 5. eps, which the paper
    lacks, is added before the bias correction of v, as in PyTorch. Weight decay is L2 unless `decoupled_weight_decay`.
    """
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    rho = 2 / (1 - beta2) - 1
    rho_t = rho - 2 * t * beta2**t / (1 - beta2**t)
    r = sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t)) if rho_t > 5 else 0.0
    adaptive = r * sqrt(1 - beta2**t) / (sqrt(v) + eps) if rho_t > 5 else 1.0
    return p - lr / (1 - beta1**t) * m * adaptive, m, v
