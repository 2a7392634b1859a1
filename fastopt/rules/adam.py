"""Adam and its decoupled form. State per parameter: two buffers, three with `amsgrad`."""

from fastopt.math import maximum, sqrt
from fastopt.rule import rule


@rule
def adam(p, g, m, v, vmax, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, t):
    """Adam. Kingma & Ba 2014, arXiv:1412.6980, Algorithm 1; `amsgrad`: Reddi et al. 2018, arXiv:1904.09237, Alg. 2.

    Weight decay is L2: it enters the gradient. As in PyTorch, eps is added after the bias correction of v, and
    AMSGrad takes the maximum of the uncorrected v. Keras uses the paper's eps-hat; optax maximises the corrected v.
    """
    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    vmax = maximum(vmax, v) if amsgrad else v
    return p - lr / (1 - beta1**t) * m / (sqrt(vmax) / sqrt(1 - beta2**t) + eps), m, v, vmax


@rule
def adamw(p, g, m, v, vmax, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, amsgrad=False, t):
    """AdamW. Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2; `amsgrad` as in `adam`.

    The decay is multiplied by lr, as in PyTorch. Keras decays by 0.004 and optax by 1e-4 unless told otherwise.
    """
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    vmax = maximum(vmax, v) if amsgrad else v
    return p - lr / (1 - beta1**t) * m / (sqrt(vmax) / sqrt(1 - beta2**t) + eps), m, v, vmax
