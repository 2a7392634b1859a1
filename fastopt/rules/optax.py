"""The readings of optax: its formulas and defaults, under fastopt's names, for a training loop that moves here.

optax calls its hyperparameters learning_rate, b1 and b2; `decay` of rmsprop is alpha here. lr has no default there, and
none here. Its weight decay is added to the update, so decoupled, in adamw, nadamw, adamaxw and lion.
"""

from fastopt.math import maximum, sign, sqrt, where
from fastopt.rule import rule
from fastopt.schema import Fraction, NonNegative


@rule(name="optax.sgd")
def sgd(p, g, b, *, lr, momentum=0.0, nesterov=False):
    """optax.sgd: `trace`, then lr; no dampening, no weight decay."""
    if momentum:
        b = g + momentum * b
        g = g + momentum * b if nesterov else b
    return p - lr * g, b


@rule(name="optax.adagrad", init={"s": "initial_accumulator_value"})
def adagrad(p, g, s, *, lr, eps=1e-7, initial_accumulator_value=0.1):
    """optax.adagrad: eps inside the root, and no update where the sum s is 0, as it can be when it starts there."""
    s = s + g * g
    return p - lr * where(s > 0, g / sqrt(s + eps), 0.0), s


@rule(name="optax.rmsprop", init={"v": "initial_scale"})
def rmsprop(
    p,
    g,
    v,
    ga,
    b,
    *,
    lr,
    alpha: Fraction = 0.9,
    eps=1e-8,
    initial_scale: NonNegative = 0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=0.0,
    nesterov=False,
    bias_correction=False,
    t,
):
    """optax.rmsprop: eps inside the root unless told otherwise, lr inside the momentum buffer b; v starts at
    `initial_scale`, which `bias_correction` takes for 0."""
    v = alpha * v + (1 - alpha) * g * g
    variance = v / (1 - alpha**t) if bias_correction else v
    if centered:
        ga = alpha * ga + (1 - alpha) * g
        mean = ga / (1 - alpha**t) if bias_correction else ga
        variance = variance - mean * mean
    u = lr * g / (sqrt(variance + eps) if eps_in_sqrt else sqrt(variance) + eps)
    if momentum:
        b = u + momentum * b
        u = u + momentum * b if nesterov else b
    return p - u, v, ga, b


@rule(name="optax.adadelta")
def adadelta(p, g, v, a, *, lr, rho: Fraction = 0.9, eps=1e-6, weight_decay=0.0):
    """optax.adadelta: the paper's formula; weight decay is L2."""
    g = g + weight_decay * p
    v = rho * v + (1 - rho) * g * g
    d = sqrt(a + eps) / sqrt(v + eps) * g
    a = rho * a + (1 - rho) * d * d
    return p - lr * d, v, a


@rule(name="optax.adam")
def adam(p, g, m, v, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, eps_root: NonNegative = 0.0, nesterov=False, t):
    """optax.adam; `nesterov` makes it `optax.nadam`. `eps_root` stands inside the root of the corrected v."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    if nesterov:
        m_hat = beta1 / (1 - beta1 ** (t + 1)) * m + (1 - beta1) / (1 - beta1**t) * g
    else:
        m_hat = m / (1 - beta1**t)
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t) + eps_root) + eps), m, v


@rule(name="optax.adamw")
def adamw(
    p,
    g,
    m,
    v,
    *,
    lr,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    eps_root: NonNegative = 0.0,
    weight_decay=1e-4,
    nesterov=False,
    t,
):
    """optax.adamw: a weight decay of 1e-4, multiplied by lr; `nesterov` makes it `optax.nadamw`."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    if nesterov:
        m_hat = beta1 / (1 - beta1 ** (t + 1)) * m + (1 - beta1) / (1 - beta1**t) * g
    else:
        m_hat = m / (1 - beta1**t)
    return p - lr * (m_hat / (sqrt(v / (1 - beta2**t) + eps_root) + eps) + weight_decay * p), m, v


@rule(name="optax.nadam")
def nadam(p, g, m, v, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, eps_root: NonNegative = 0.0, t):
    """optax.nadam: beta1 stays what it is, where Dozat's mu warms up; the m of the next step is corrected as its."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = beta1 / (1 - beta1 ** (t + 1)) * m + (1 - beta1) / (1 - beta1**t) * g
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t) + eps_root) + eps), m, v


@rule(name="optax.nadamw")
def nadamw(p, g, m, v, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, eps_root: NonNegative = 0.0, weight_decay=1e-4, t):
    """optax.nadamw: its nadam, and a weight decay of 1e-4, multiplied by lr."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = beta1 / (1 - beta1 ** (t + 1)) * m + (1 - beta1) / (1 - beta1**t) * g
    return p - lr * (m_hat / (sqrt(v / (1 - beta2**t) + eps_root) + eps) + weight_decay * p), m, v


@rule(name="optax.amsgrad")
def amsgrad(p, g, m, v, vmax, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, eps_root: NonNegative = 0.0, t):
    """optax.amsgrad: vmax is the maximum of the corrected v, where the paper and PyTorch take the uncorrected one."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    vmax = maximum(vmax, v / (1 - beta2**t))
    return p - lr / (1 - beta1**t) * m / (sqrt(vmax + eps_root) + eps), m, v, vmax


@rule(name="optax.adamax")
def adamax(p, g, m, u, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, t):
    """optax.adamax: eps is added to |g|, and so stays in u."""
    m = beta1 * m + (1 - beta1) * g
    u = maximum(abs(g) + eps, beta2 * u)
    return p - lr / (1 - beta1**t) * m / u, m, u


@rule(name="optax.adamaxw")
def adamaxw(p, g, m, u, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-4, t):
    """optax.adamaxw: its adamax, and a weight decay of 1e-4, multiplied by lr."""
    m = beta1 * m + (1 - beta1) * g
    u = maximum(abs(g) + eps, beta2 * u)
    return p - lr * (m / (1 - beta1**t) / u + weight_decay * p), m, u


@rule(name="optax.lion")
def lion(p, g, m, *, lr, beta1=0.9, beta2=0.99, weight_decay=1e-3):
    """optax.lion: the paper's formula with a weight decay of 0.001, multiplied by lr."""
    u = sign(beta1 * m + (1 - beta1) * g)
    return p - lr * (u + weight_decay * p), beta2 * m + (1 - beta2) * g
