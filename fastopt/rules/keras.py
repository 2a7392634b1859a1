"""The readings of Keras 3: its formulas and defaults, under fastopt's names, for a training loop that moves here.

Keras calls its hyperparameters learning_rate, beta_1, beta_2, epsilon; rho of RMSprop is alpha here. All of them decay
weights apart from the gradient, p - lr * weight_decay * p before the update, where Keras's `weight_decay=None` is 0.
"""

from fastopt.math import clip, maximum, sign, sqrt
from fastopt.rule import rule
from fastopt.schema import Fraction, NonNegative


@rule(name="keras.sgd")
def sgd(p, g, b, *, lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Keras's SGD: lr is multiplied into the buffer b, so that a change of lr does not reach older gradients."""
    p = p - lr * weight_decay * p
    if momentum:
        b = momentum * b - lr * g
        u = momentum * b - lr * g if nesterov else b
    else:
        u = -lr * g
    return p + u, b


@rule(name="keras.rmsprop")
def rmsprop(
    p, g, v, ga, b, *, lr=1e-3, alpha: Fraction = 0.9, eps=1e-7, momentum=0.0, centered=False, weight_decay=0.0
):
    """Keras's RMSprop: eps inside the root, lr inside the momentum buffer b."""
    p = p - lr * weight_decay * p
    v = alpha * v + (1 - alpha) * g * g
    if centered:
        ga = alpha * ga + (1 - alpha) * g
        u = lr * g / sqrt(v - ga * ga + eps)
    else:
        u = lr * g / sqrt(v + eps)
    if momentum:
        b = momentum * b + u
        u = b
    return p - u, v, ga, b


@rule(name="keras.adagrad", init={"s": "initial_accumulator_value"})
def adagrad(p, g, s, *, lr=1e-3, eps=1e-7, weight_decay=0.0, initial_accumulator_value=0.1):
    """Keras's Adagrad: eps inside the root; the sum s starts at `initial_accumulator_value`."""
    p = p - lr * weight_decay * p
    s = s + g * g
    return p - lr * g / sqrt(s + eps), s


@rule(name="keras.adadelta")
def adadelta(p, g, v, a, *, lr=1e-3, rho: Fraction = 0.95, eps=1e-7, weight_decay=0.0):
    """Keras's Adadelta: the paper's formula with an lr of 0.001."""
    p = p - lr * weight_decay * p
    v = rho * v + (1 - rho) * g * g
    d = sqrt(a + eps) / sqrt(v + eps) * g
    a = rho * a + (1 - rho) * d * d
    return p - lr * d, v, a


@rule(name="keras.adamax")
def adamax(p, g, m, u, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=0.0, t):
    """Keras's Adamax: eps is added to u in the denominator, not to |g|."""
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    u = maximum(beta2 * u, abs(g))
    return p - lr / (1 - beta1**t) * m / (u + eps), m, u


@rule(name="keras.adam")
def adam(p, g, m, v, vmax, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=0.0, amsgrad=False, t):
    """Keras's Adam: the paper's eps-hat, beside the root of the uncorrected v; vmax is the maximum of that v."""
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    vmax = maximum(vmax, v) if amsgrad else v
    return p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(vmax) + eps), m, v, vmax


@rule(name="keras.adamw")
def adamw(p, g, m, v, vmax, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=4e-3, amsgrad=False, t):
    """Keras's AdamW: its Adam, with a weight decay of 0.004."""
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    vmax = maximum(vmax, v) if amsgrad else v
    return p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(vmax) + eps), m, v, vmax


@rule(name="keras.nadam", init={"product": 1.0})
def nadam(p, g, m, v, product, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-7, weight_decay=0.0, t):
    """Keras's Nadam: the momentum mu warms up by 0.96**t, so 250 times faster than PyTorch's at its default.

    `product` is the product of all mu so far, one number a parameter.
    """
    p = p - lr * weight_decay * p
    mu = beta1 * (1 - 0.5 * 0.96**t)
    mu_next = beta1 * (1 - 0.5 * 0.96 ** (t + 1))
    product = product * mu
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    return p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps), m, v, product


@rule(name="keras.lion")
def lion(p, g, m, *, lr=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Keras's Lion: the paper's formula with an lr of 0.001."""
    p = p - lr * weight_decay * p
    return p - lr * sign(beta1 * m + (1 - beta1) * g), beta2 * m + (1 - beta2) * g


@rule(name="keras.ftrl", init={"n": "initial_accumulator_value"})
def ftrl(
    p,
    g,
    z,
    n,
    *,
    lr=1e-3,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    l2_shrinkage: NonNegative = 0.0,
    initial_accumulator_value=0.1,
    weight_decay=0.0,
):
    """Keras's Ftrl, at its learning_rate_power of -0.5: z starts at 0 whatever p is, and l2 counts double.

    `l1`, `l2` and `l2_shrinkage` are its l1_, l2_ and l2_shrinkage_regularization_strength.
    """
    p = p - lr * weight_decay * p
    z = z + g + 2 * l2_shrinkage * p - (sqrt(n + g * g) - sqrt(n)) / lr * p
    n = n + g * g
    return (clip(z, -l1, l1) - z) / ((beta + sqrt(n)) / lr + 2 * l2), z, n
