"""Schedule-free rules: an average of the iterates in place of a schedule. The parameters held are y, `opt.eval()` shows
x. State per parameter: z, two numbers, and for the AdamW form v."""

from fastopt.math import maximum, minimum, sqrt, where
from fastopt.rule import rule
from fastopt.schema import NonNegative, OpenFraction


def _x_of_sgd(p, z, *, momentum):
    """The average: y lies at momentum between z and x."""
    return p + (1 - 1 / momentum) * (z - p)


@rule(init={"z": "p"}, view=_x_of_sgd)
def schedule_free_sgd(
    p,
    g,
    z,
    lr_max,
    weight_sum,
    *,
    lr=1.0,
    momentum: OpenFraction = 0.9,
    weight_decay=0.0,
    warmup_steps: NonNegative = 0,
    r=0.0,
    weight_lr_power=2.0,
    t,
):
    """Schedule-free SGD. Defazio et al. 2024, arXiv:2405.15682, Algorithm 1, with its beta called `momentum`.

    p is y, the point of the gradients; x, the average that `opt.eval()` shows, is not stored: it lies beyond y as seen
    from z. As in the authors' `schedulefree` the weight of step t in x is t^r * lr_max^weight_lr_power, lr_max being
    the largest lr so far, and lr rises linearly over `warmup_steps`. Weight decay is L2, at y. z starts at p.
    """
    lr_t = lr * minimum(1, t / maximum(warmup_steps, 1))
    lr_max = maximum(lr_max, lr_t)
    weight = t**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    c = where(weight_sum > 0, weight / weight_sum, 0)
    u = g + weight_decay * p
    y = p + c * (z - p) + lr_t * (momentum * (1 - c) - 1) * u
    return y, z - lr_t * u, lr_max, weight_sum


def _x_of_adamw(p, z, *, beta1):
    """The average: y lies at beta1 between z and x."""
    return p + (1 - 1 / beta1) * (z - p)


@rule(init={"z": "p"}, view=_x_of_adamw)
def schedule_free_adamw(
    p,
    g,
    z,
    v,
    lr_max,
    weight_sum,
    *,
    lr=2.5e-3,
    beta1: OpenFraction = 0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps: NonNegative = 0,
    r=0.0,
    weight_lr_power=2.0,
    t,
):
    """Schedule-free AdamW. Defazio et al. 2024, arXiv:2405.15682, section 4.3; the average as in `schedule_free_sgd`.

    As in the authors' `schedulefree`, v is corrected for its bias in place of lr, and weight decay is at y, multiplied
    by lr. Keras gives every step the same weight, 1, whatever lr is.
    """
    lr_t = lr * minimum(1, t / maximum(warmup_steps, 1))
    lr_max = maximum(lr_max, lr_t)
    weight = t**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    c = where(weight_sum > 0, weight / weight_sum, 0)
    v = beta2 * v + (1 - beta2) * g * g
    u = g / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p
    y = p + c * (z - p) + lr_t * (beta1 * (1 - c) - 1) * u
    return y, z - lr_t * u, v, lr_max, weight_sum
