"""Textbook oracles: NumPy float64, one array at a time, slow and obvious. Written from the papers, not from fastopt.

An oracle is made with the starting parameter and stepped with a gradient and every hyperparameter spelled out (no
defaults here: the ones of a rule's signature are compared with torch's in test_rules.py). `p` is the parameter, `t` the
steps done, the other attributes are the state under the letters of the paper. `maximize` is the caller passing `-g`.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Oracle(ABC):
    """Holds p, float64 of any shape, and counts the steps."""

    def __init__(self, p):
        self.p = np.array(p, dtype=np.float64)
        self.t = 0

    def step(self, g, **hyper: Any):
        """One update with the gradient g (shape of p); returns the new p."""
        self.t += 1
        self.update(np.asarray(g, dtype=np.float64), **hyper)
        return self.p

    @abstractmethod
    def update(self, g, **hyper: Any) -> None: ...


class SGD(Oracle):
    """Sutskever et al. 2013 in torch's form: the first velocity is the gradient itself, without dampening."""

    b = None

    def update(self, g, *, lr, momentum, dampening, nesterov, weight_decay):
        g = g + weight_decay * self.p
        if momentum:
            self.b = g if self.b is None else momentum * self.b + (1 - dampening) * g
            g = g + momentum * self.b if nesterov else self.b
        self.p = self.p - lr * g


class Adagrad(Oracle):
    """Duchi et al. 2011; the learning rate shrinks with the steps as in torch."""

    s = None

    def update(self, g, *, lr, lr_decay, eps, weight_decay, initial_accumulator_value):
        if self.s is None:
            self.s = np.full_like(self.p, initial_accumulator_value)
        g = g + weight_decay * self.p
        self.s = self.s + g**2
        self.p = self.p - lr / (1 + (self.t - 1) * lr_decay) * g / (np.sqrt(self.s) + eps)


class RMSProp(Oracle):
    """Hinton 2012, lecture 6e; centered: Graves 2013, arXiv:1308.0850, eq. 38-41. eps outside the root."""

    def __init__(self, p):
        super().__init__(p)
        self.v = self.ga = self.b = np.zeros_like(self.p)

    def update(self, g, *, lr, alpha, eps, momentum, centered, weight_decay):
        g = g + weight_decay * self.p
        self.v = alpha * self.v + (1 - alpha) * g**2
        variance = self.v
        if centered:
            self.ga = alpha * self.ga + (1 - alpha) * g
            variance = self.v - self.ga**2
        change = g / (np.sqrt(variance) + eps)
        if momentum:
            self.b = change = momentum * self.b + change
        self.p = self.p - lr * change


class Adam(Oracle):
    """Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; amsgrad: Reddi et al. 2018, the maximum of the uncorrected v."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = self.vmax = np.zeros_like(self.p)

    def decay(self, g, lr, weight_decay):
        return g + weight_decay * self.p

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, amsgrad):
        g = self.decay(g, lr, weight_decay)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        self.vmax = np.maximum(self.vmax, self.v)
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = (self.vmax if amsgrad else self.v) / (1 - beta2**self.t)
        self.p = self.p - lr * m_hat / (np.sqrt(v_hat) + eps)


class AdamW(Adam):
    """Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; the decay is multiplied by lr, as in torch."""

    def decay(self, g, lr, weight_decay):
        self.p = self.p - lr * weight_decay * self.p
        return g


class Lion(Oracle):
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

    def __init__(self, p):
        super().__init__(p)
        self.m = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, weight_decay):
        c = beta1 * self.m + (1 - beta1) * g
        self.p = self.p - lr * (np.sign(c) + weight_decay * self.p)
        self.m = beta2 * self.m + (1 - beta2) * g


ORACLES: dict[str, type[Oracle]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSProp,
    "adam": Adam,
    "adamw": AdamW,
    "lion": Lion,
}
