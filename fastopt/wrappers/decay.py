"""Wrappers that pull parameters towards 0, or towards their start: every kind of weight decay for every rule."""

from fastopt.math import abs, maximum, sign
from fastopt.schema import NonNegative
from fastopt.wrap import before, behind


@before
def l2(p, g, *, penalty: NonNegative = 1e-2):
    """L2 regularisation: the gradient of penalty / 2 times the sum of squares is added to the loss's."""
    return g + penalty * p


@before
def l1(p, g, *, penalty: NonNegative = 1e-2):
    """L1 regularisation: the subgradient of penalty times the sum of absolute values. No parameter stays 0."""
    return g + penalty * sign(p)


@before(init={"start": "p"})
def l2_sp(p, g, start, *, penalty: NonNegative = 1e-2):
    """L2-SP: towards the parameters as they were given. Li et al. 2018, arXiv:1802.01483.

    `start` is a copy of them, so that fine-tuning forgets less. For two penalties, on old layers and on new ones, give
    each a group.
    """
    return g + penalty * (p - start), start


@behind
def proximal_l1(p, g, new, *, penalty: NonNegative = 1e-2, lr):
    """L1 by its proximal operator behind the step. Duchi & Singer 2009, JMLR 10 (FOBOS), section 5.1.

    What the rule makes of p is moved by lr times penalty towards 0 and stops there, so that parameters become exactly
    0. lr is the rule's.
    """
    return sign(new) * maximum(abs(new) - lr * penalty, 0.0)


@behind
def decoupled_decay(p, g, new, *, decay: NonNegative = 1e-2, lr):
    """Decoupled weight decay. Loshchilov & Hutter 2017, arXiv:1711.05101, as in torch.optim.AdamW: lr times decay."""
    return new - lr * decay * p


@behind
def independent_decay(p, g, new, *, decay: NonNegative = 1e-4, initial_lr: NonNegative, lr):
    """Decoupled weight decay that follows the schedule but not the size of lr: decay times lr / initial_lr.

    That is Loshchilov & Hutter 2017, arXiv:1711.05101, Algorithm 2, whose schedule multiplier is lr / initial_lr.
    """
    return new - (lr / initial_lr) * decay * p
