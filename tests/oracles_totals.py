"""Textbook oracles of the rules with totals; see oracles.py for what an oracle is. No defaults, no shared helpers.

An oracle of a rule that couples all parameters (`whole=True` in its case) holds them as one vector.
"""

import numpy as np
from catalogue import Case
from oracles import Oracle


class LAMB(Oracle):
    """You et al. 2019, arXiv:1904.00962, algorithm 2, phi the identity; ratio 1 if a norm is 0, as in optax."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, trust_clip):
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        r = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * self.p
        size, step = np.sqrt(np.sum(self.p**2)), np.sqrt(np.sum(r**2))
        ratio = 1.0 if size == 0 or step == 0 else size / step
        if trust_clip and ratio > 1:
            ratio = 1.0
        self.p = self.p - lr * ratio * r


class LARS(Oracle):
    """You et al. 2017, arXiv:1708.03888, algorithm 1, with momentum, dampening and nesterov in torch's form."""

    b = None

    def update(self, g, *, lr, momentum, dampening, nesterov, weight_decay, trust_coeff, eps, trust_clip):
        size, slope = np.sqrt(np.sum(self.p**2)), np.sqrt(np.sum(g**2))
        local = 1.0
        if size > 0 and slope > 0:
            local = trust_coeff * size / (slope + weight_decay * size + eps)
        if trust_clip:
            local = min(local / lr, 1.0)
        g = local * (g + weight_decay * self.p)
        if momentum:
            self.b = g if self.b is None else momentum * self.b + (1 - dampening) * g
            g = g + momentum * self.b if nesterov else self.b
        self.p = self.p - lr * g


class NovoGrad(Oracle):
    """Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1: the first step fills v and m with what it finds."""

    m = v = None

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay):
        square = np.sum(g**2)
        self.v = square if self.v is None else beta2 * self.v + (1 - beta2) * square
        d = g / (np.sqrt(self.v) + eps) + weight_decay * self.p
        self.m = d if self.m is None else beta1 * self.m + d
        self.p = self.p - lr * self.m


class Adafactor(Oracle):
    """Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 (matrices) and 5 (others), with PyTorch 2.13's clamps."""

    def __init__(self, p):
        super().__init__(p)
        self.r, self.c, self.v = 0.0, 0.0, 0.0

    def update(self, g, *, lr, beta2_decay, eps1, eps2, d, weight_decay):
        beta2 = 1 - self.t**beta2_decay
        rho = min(lr, self.t**-0.5)
        alpha = max(eps2, np.sqrt(np.mean(self.p**2))) * rho
        self.p = self.p * (1 - lr * weight_decay)
        if self.p.ndim == 2:
            n, m = self.p.shape
            self.r = beta2 * self.r + (1 - beta2) * np.sum(g**2, axis=1) / m
            self.c = beta2 * self.c + (1 - beta2) * np.sum(g**2, axis=0) / n
            v = np.outer(self.r, self.c) / max(np.sum(self.r) / n, eps1)
        else:
            self.v = beta2 * self.v + (1 - beta2) * g**2
            v = self.v
        u = g / np.sqrt(np.maximum(v, eps1**2))
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / d)
        self.p = self.p - alpha * u


class AdamMini(Oracle):
    """Zhang et al. 2024, arXiv:2406.16793, algorithm 1, block by block: rows of matrices, anything else whole."""

    def __init__(self, p):
        super().__init__(p)
        blocks = len(self.p) if self.p.ndim == 2 else 1
        self.m, self.v = np.zeros_like(self.p), np.zeros(blocks)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay):
        self.p = self.p - lr * weight_decay * self.p
        self.m = (1 - beta1) * g + beta1 * self.m
        m_hat = self.m / (1 - beta1**self.t)
        blocks = len(self.v)
        step = []
        for k, (block, mean) in enumerate(zip(g.reshape(blocks, -1), m_hat.reshape(blocks, -1), strict=True)):
            self.v[k] = (1 - beta2) * np.mean(block * block) + beta2 * self.v[k]
            step.append(mean / (np.sqrt(self.v[k] / (1 - beta2**self.t)) + eps))
        self.p = self.p - lr * np.array(step).reshape(self.p.shape)


class RowwiseAdagrad(Oracle):
    """FBGEMM's EXACT_ROWWISE_ADAGRAD, row by row; with L2 decay the decayed gradient enters the sum."""

    s = None

    def update(self, g, *, lr, eps, weight_decay, initial_accumulator_value):
        rows = len(self.p) if self.p.ndim == 2 else 1
        if self.s is None:
            self.s = np.full(rows, initial_accumulator_value)
        g = (g + weight_decay * self.p).reshape(rows, -1)
        for k in range(rows):
            self.s[k] += sum(x * x for x in g[k]) / len(g[k])
            g[k] *= lr / (np.sqrt(self.s[k]) + eps)
        self.p = self.p - g.reshape(self.p.shape)


class Polyak(Oracle):
    """Polyak 1987, section 5.3."""

    def update(self, g, *, lr, loss, f_star, eps):
        square = np.sum(g**2) + eps
        if square > 0 and loss > f_star:
            self.p = self.p - lr * (loss - f_star) / square * g


class SPS(Oracle):
    """Loizou et al. 2021, arXiv:2002.10542, equation 3."""

    def update(self, g, *, lr, loss, f_star, c, eps):
        square = np.sum(g**2) + eps
        if square > 0 and loss > f_star:
            self.p = self.p - min((loss - f_star) / (c * square), lr) * g


class AdaGradNorm(Oracle):
    """Ward, Wu & Bottou 2018, arXiv:1806.01811, algorithm 1."""

    squares = None

    def update(self, g, *, lr, b0, weight_decay):
        g = g + weight_decay * self.p
        self.squares = (b0**2 if self.squares is None else self.squares) + np.sum(g**2)
        self.p = self.p - lr / np.sqrt(self.squares) * g


class DoG(Oracle):
    """Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, equation 1. One parameter at a time it is their L-DoG."""

    def __init__(self, p):
        super().__init__(p)
        self.start, self.past, self.squares = self.p, [], 0.0

    def update(self, g, *, lr, reps_rel, eps, weight_decay):
        g = g + weight_decay * self.p
        if self.t == 1:
            self.past.append(reps_rel * (1 + np.sqrt(np.sum(self.start**2))))
        else:
            self.past.append(np.sqrt(np.sum((self.p - self.start) ** 2)))
        self.squares = self.squares + np.sum(g**2)
        self.p = self.p - lr * max(self.past) / np.sqrt(self.squares + eps) * g


class DAdaptAdam(Oracle):
    """Defazio & Mishchenko 2023, arXiv:2301.07733, algorithm 5, with the authors' decay and bias correction."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = self.s = np.zeros_like(self.p)
        self.r, self.d = 0.0, None

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, d0, decouple, use_bias_correction):
        d = d0 if self.d is None else self.d
        if not decouple:
            g = g + weight_decay * self.p
        lam = d * lr
        if use_bias_correction:
            lam = lam * np.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
        root = np.sqrt(beta2)
        inner = np.sum(g * self.s / (np.sqrt(self.v) + eps))
        self.r = root * self.r + (1 - root) * lam * inner
        self.m = beta1 * self.m + (1 - beta1) * lam * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        self.s = root * self.s + (1 - root) * lam * g
        length = np.sum(np.abs(self.s))
        self.d = max(d, self.r / ((1 - root) * length)) if length > 0 else d
        if decouple:
            self.p = self.p - lam * weight_decay * self.p
        self.p = self.p - self.m / (np.sqrt(self.v) + eps)


class Prodigy(Oracle):
    """Mishchenko & Defazio 2023, arXiv:2306.06101, algorithm 4, with the authors' options."""

    def __init__(self, p):
        super().__init__(p)
        self.start = self.p
        self.m = self.v = self.s = np.zeros_like(self.p)
        self.r, self.d = 0.0, None

    def update(
        self,
        g,
        *,
        lr,
        beta1,
        beta2,
        beta3,
        eps,
        weight_decay,
        d0,
        d_coef,
        decouple,
        use_bias_correction,
        safeguard_warmup,
    ):
        d = d0 if self.d is None else self.d
        if not decouple:
            g = g + weight_decay * self.p
        gamma = lr
        if use_bias_correction:
            gamma = gamma * np.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
        beta3 = beta3 or np.sqrt(beta2)
        # the paper's sums times 1 / d0: the ratio of r and s, all that counts, is the same
        self.r = beta3 * self.r + gamma * d**2 / d0 * np.sum(g * (self.start - self.p))
        self.s = beta3 * self.s + (1.0 if safeguard_warmup else gamma) * d**2 / d0 * g
        self.m = beta1 * self.m + (1 - beta1) * d * g
        self.v = beta2 * self.v + (1 - beta2) * d**2 * g**2
        length = np.sum(np.abs(self.s))
        self.d = max(d, d_coef * self.r / length) if length > 0 else d
        if decouple:
            self.p = self.p - gamma * d * weight_decay * self.p
        self.p = self.p - gamma * d * self.m / (np.sqrt(self.v) + self.d * eps)


DECAY = dict(lr=0.02, weight_decay=0.1)

CASES = [
    Case("lamb", LAMB, dict(beta1=0.8, beta2=0.98, eps=1e-4, **DECAY), dict(weight_decay=0.0)),
    Case("lamb", LAMB, dict(trust_clip=True, **DECAY), dict(beta1=0.8)),
    Case("lars", LARS, dict(lr=0.5, trust_coeff=0.02, weight_decay=0.1), dict(trust_coeff=0.05)),
    Case("lars", LARS, dict(lr=0.5, momentum=0.8, dampening=0.2, trust_coeff=0.02, weight_decay=0.1), dict(eps=0.1)),
    Case(
        "lars",
        LARS,
        dict(lr=0.05, momentum=0.8, nesterov=True, trust_coeff=0.2, trust_clip=True, weight_decay=0.1),
        dict(lr=0.02),
    ),
    Case("novograd", NovoGrad, dict(beta1=0.8, beta2=0.9, eps=1e-4, **DECAY), dict(beta2=0.5)),
    Case("adam_mini", AdamMini, dict(beta1=0.8, beta2=0.98, eps=1e-4, **DECAY), dict(beta2=0.9)),
    Case(
        "rowwise_adagrad",
        RowwiseAdagrad,
        dict(initial_accumulator_value=0.2, eps=1e-4, **DECAY),
        dict(lr=0.1, weight_decay=0.0),
    ),
    Case("adafactor", Adafactor, dict(lr=0.05, weight_decay=0.1), dict(lr=0.1, d=2.0)),
    Case("adafactor", Adafactor, dict(lr=0.05, beta2_decay=-0.5, eps1=0.05, eps2=0.2), dict(eps2=1e-3)),
    Case("ldog", DoG, dict(lr=0.5, reps_rel=0.01, eps=1e-4, weight_decay=0.1), dict(reps_rel=0.1)),
    Case("dog", DoG, dict(lr=0.5, reps_rel=0.01, eps=1e-4, weight_decay=0.1), whole=True),
    Case("adagrad_norm", AdaGradNorm, dict(lr=0.8, b0=0.3, weight_decay=0.1), whole=True),
    Case("polyak", Polyak, dict(lr=0.8, loss=1.0, f_star=0.2, eps=1.0), whole=True),
    Case("sps", SPS, dict(lr=0.05, loss=2.0, f_star=0.2, c=0.7, eps=0.1), whole=True),
    Case("dadapt_adam", DAdaptAdam, dict(beta1=0.8, d0=1e-3, decouple=True, weight_decay=0.1), whole=True),
    Case("dadapt_adam", DAdaptAdam, dict(d0=1e-3, eps=1e-4, use_bias_correction=True, weight_decay=0.1), whole=True),
    Case("prodigy", Prodigy, dict(beta1=0.8, d0=1e-3, use_bias_correction=True, weight_decay=0.1), whole=True),
    Case(
        "prodigy",
        Prodigy,
        dict(lr=0.5, beta3=0.98, d0=1e-3, d_coef=0.7, decouple=False, weight_decay=0.1, safeguard_warmup=True),
        whole=True,
    ),
]
