"""Textbook oracles of the elementwise rules; see oracles.py for what an oracle is. No defaults, no shared helpers."""

import math

import numpy as np
from catalogue import Case
from oracles import Oracle


class Adadelta(Oracle):
    """Zeiler 2012, arXiv:1212.5701, algorithm 1, times a learning rate as in torch."""

    def __init__(self, p):
        super().__init__(p)
        self.v = self.a = np.zeros_like(self.p)

    def update(self, g, *, lr, rho, eps, weight_decay):
        g = g + weight_decay * self.p
        self.v = rho * self.v + (1 - rho) * g**2
        change = -np.sqrt(self.a + eps) / np.sqrt(self.v + eps) * g
        self.a = rho * self.a + (1 - rho) * change**2
        self.p = self.p + lr * change


class Adamax(Oracle):
    """Kingma & Ba 2014, arXiv:1412.6980, algorithm 2; eps keeps u from 0, inside the maximum as in torch."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.u = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay):
        g = g + weight_decay * self.p
        self.m = beta1 * self.m + (1 - beta1) * g
        self.u = np.maximum(beta2 * self.u, np.abs(g) + eps)
        self.p = self.p - lr / (1 - beta1**self.t) * self.m / self.u


class NAdam(Oracle):
    """Dozat 2016: the momentum of the next step, with its schedule mu_t, applied in this one."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)
        self.mus = []

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay):
        if decoupled_weight_decay:
            self.p = self.p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * self.p
        self.mus.append(beta1 * (1 - 0.96 ** (self.t * momentum_decay) / 2))
        following = beta1 * (1 - 0.96 ** ((self.t + 1) * momentum_decay) / 2)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        g_hat = g / (1 - math.prod(self.mus))
        m_hat = self.m / (1 - math.prod([*self.mus, following]))
        m_bar = (1 - self.mus[-1]) * g_hat + following * m_hat
        self.p = self.p - lr * m_bar / (np.sqrt(self.v / (1 - beta2**self.t)) + eps)


class RAdam(Oracle):
    """Liu et al. 2019, arXiv:1908.03265, algorithm 2; rectified where rho_t > 5 as in torch, not 4."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay):
        if decoupled_weight_decay:
            self.p = self.p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * self.p
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m_hat = self.m / (1 - beta1**self.t)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * self.t * beta2**self.t / (1 - beta2**self.t)
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            self.p = self.p - lr * m_hat * r * math.sqrt(1 - beta2**self.t) / (np.sqrt(self.v) + eps)
        else:
            self.p = self.p - lr * m_hat


class Rprop(Oracle):
    """Riedmiller & Braun 1993; where the sign changes the step is left out and forgotten, as in torch."""

    def __init__(self, p):
        super().__init__(p)
        self.prev = np.zeros_like(self.p)
        self.delta = None

    def update(self, g, *, lr, eta_minus, eta_plus, delta_min, delta_max):
        if self.delta is None:
            self.delta = np.full_like(self.p, lr)
        agree = np.sign(g) * np.sign(self.prev)
        self.delta = np.where(agree > 0, np.minimum(self.delta * eta_plus, delta_max), self.delta)
        self.delta = np.where(agree < 0, np.maximum(self.delta * eta_minus, delta_min), self.delta)
        g = np.where(agree < 0, 0.0, g)
        self.p = self.p - np.sign(g) * self.delta
        self.prev = g


class ASGD(Oracle):
    """Polyak & Juditsky 1992 with Bottou's schedule, as torch has it: eta and mu are those the step before computed."""

    def __init__(self, p):
        super().__init__(p)
        self.ax = np.zeros_like(self.p)
        self.eta, self.mu = None, 1.0

    def update(self, g, *, lr, lambd, alpha, t0, weight_decay):
        if self.eta is None:
            self.eta = lr
        g = g + weight_decay * self.p
        self.p = self.p * (1 - lambd * self.eta) - self.eta * g
        self.ax = self.ax + self.mu * (self.p - self.ax)
        self.eta = lr / (1 + lambd * lr * self.t) ** alpha
        self.mu = 1 / max(1, self.t - t0)


class SignSGD(Oracle):
    """Bernstein et al. 2018, arXiv:1802.04434, algorithm 1."""

    def update(self, g, *, lr, weight_decay):
        self.p = self.p - lr * np.sign(g + weight_decay * self.p)


class Signum(Oracle):
    """Bernstein et al. 2018, arXiv:1802.04434, algorithm 2."""

    def __init__(self, p):
        super().__init__(p)
        self.m = np.zeros_like(self.p)

    def update(self, g, *, lr, beta, weight_decay):
        self.m = beta * self.m + (1 - beta) * (g + weight_decay * self.p)
        self.p = self.p - lr * np.sign(self.m)


class AdaBelief(Oracle):
    """Zhuang et al. 2020, arXiv:2010.07468, algorithm 2; decoupled decay."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.s = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay):
        self.p = self.p * (1 - lr * weight_decay)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.s = beta2 * self.s + (1 - beta2) * (g - self.m) ** 2 + eps
        m_hat, s_hat = self.m / (1 - beta1**self.t), self.s / (1 - beta2**self.t)
        self.p = self.p - lr * m_hat / (np.sqrt(s_hat) + eps)


class Yogi(Oracle):
    """Zaheer et al. 2018, algorithm 2, with optax's starts and corrections of bias."""

    m = v = None

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, initial_accumulator_value):
        if self.m is None:
            self.m = self.v = np.full_like(self.p, initial_accumulator_value)
        g = g + weight_decay * self.p
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = self.v - (1 - beta2) * np.sign(self.v - g**2) * g**2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        self.p = self.p - lr * m_hat / (np.sqrt(v_hat) + eps)


class QHM(Oracle):
    """Ma & Yarats 2018, arXiv:1810.06801."""

    def __init__(self, p):
        super().__init__(p)
        self.m = np.zeros_like(self.p)

    def update(self, g, *, lr, beta, nu, weight_decay):
        g = g + weight_decay * self.p
        self.m = beta * self.m + (1 - beta) * g
        self.p = self.p - lr * ((1 - nu) * g + nu * self.m)


class QHAdam(Oracle):
    """Ma & Yarats 2018, arXiv:1810.06801."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, nu1, nu2, eps, weight_decay):
        g = g + weight_decay * self.p
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        above = (1 - nu1) * g + nu1 * m_hat
        below = np.sqrt((1 - nu2) * g**2 + nu2 * v_hat) + eps
        self.p = self.p - lr * above / below


class LaProp(Oracle):
    """Ziyin, Wang & Ueda 2020, arXiv:2002.04839, algorithm 1; decay of the new parameter."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay):
        self.v = beta2 * self.v + (1 - beta2) * g**2
        v_hat = self.v / (1 - beta2**self.t)
        self.m = beta1 * self.m + (1 - beta1) * g / (np.sqrt(v_hat) + eps)
        self.p = self.p - lr * self.m / (1 - beta1**self.t)
        self.p = self.p * (1 - lr * weight_decay)


class ADOPT(Oracle):
    """Taniguchi et al. 2024, arXiv:2411.02853, algorithms 1 and 2."""

    def __init__(self, p):
        super().__init__(p)
        self.m = np.zeros_like(self.p)
        self.v = None

    def update(self, g, *, lr, beta1, beta2, eps, clip_exp, weight_decay):
        g = g + weight_decay * self.p
        if self.v is None:
            self.v = g**2
            return
        normed = g / np.maximum(np.sqrt(self.v), eps)
        if clip_exp:
            c = (self.t - 1) ** clip_exp
            normed = np.clip(normed, -c, c)
        self.m = beta1 * self.m + (1 - beta1) * normed
        self.p = self.p - lr * self.m
        self.v = beta2 * self.v + (1 - beta2) * g**2


class AdEMAMix(Oracle):
    """Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1 and its two schedulers."""

    def __init__(self, p):
        super().__init__(p)
        self.m1 = self.m2 = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, beta2, beta3, alpha, warmup, eps, weight_decay):
        if warmup:
            share = self.t / warmup
            a, b = math.log(beta1), math.log(beta3)
            if share < 1:
                beta3 = min(math.exp(a * b / ((1 - share) * b + share * a)), beta3)
            alpha = min(share * alpha, alpha)
        self.m1 = beta1 * self.m1 + (1 - beta1) * g
        self.m2 = beta3 * self.m2 + (1 - beta3) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m1_hat, v_hat = self.m1 / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        self.p = self.p - lr * ((m1_hat + alpha * self.m2) / (np.sqrt(v_hat) + eps) + weight_decay * self.p)


class Adan(Oracle):
    """Xie et al. 2022, arXiv:2208.06677, algorithm 1, with the authors' betas and corrections of bias."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = self.n = np.zeros_like(self.p)
        self.prev = None

    def update(self, g, *, lr, beta1, beta2, beta3, eps, weight_decay):
        change = np.zeros_like(g) if self.prev is None else g - self.prev
        self.prev = g
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * change
        self.n = beta3 * self.n + (1 - beta3) * (g + beta2 * change) ** 2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        eta = lr / (np.sqrt(self.n / (1 - beta3**self.t)) + eps)
        self.p = (self.p - eta * (m_hat + beta2 * v_hat)) / (1 + lr * weight_decay)


class MADGRAD(Oracle):
    """Defazio & Jelassi 2021, arXiv:2101.11075, algorithm 1."""

    def __init__(self, p):
        super().__init__(p)
        self.x0 = self.p.copy()
        self.s = self.v = np.zeros_like(self.p)

    def update(self, g, *, lr, momentum, eps, weight_decay):
        g = g + weight_decay * self.p
        rate = lr * math.sqrt(self.t)
        self.s = self.s + rate * g
        self.v = self.v + rate * g**2
        z = self.x0 - self.s / (np.cbrt(self.v) + eps)
        self.p = momentum * self.p + (1 - momentum) * z


class FTRL(Oracle):
    """McMahan et al. 2013, algorithm 1, as the minimum it stands for: sums of gradients and of proximal terms.

    w = argmin G w + sum_s sigma_s / 2 (w - w_s)^2 + (beta + sqrt n_0) / (2 lr) (w - w_0)^2 + l1 |w| + l2 / 2 w^2.
    """

    def __init__(self, p):
        super().__init__(p)
        self.total = np.zeros_like(self.p)  # of the gradients
        self.weight = self.pull = self.n = None  # sums of sigma_s and of sigma_s w_s

    def update(self, g, *, lr, beta, l1, l2, initial_accumulator_value):
        if self.n is None:
            self.n = np.full_like(self.p, initial_accumulator_value)
            self.weight = (beta + np.sqrt(self.n)) / lr
            self.pull = self.weight * self.p
        sigma = (np.sqrt(self.n + g**2) - np.sqrt(self.n)) / lr
        self.total = self.total + g
        self.weight = self.weight + sigma
        self.pull = self.pull + sigma * self.p
        self.n = self.n + g**2
        z = self.total - self.pull
        self.p = np.where(np.abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / (self.weight + l2))


class Sophia(Oracle):
    """Liu et al. 2023, arXiv:2305.14342, algorithm 3; `h` is written from outside."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.h = np.zeros_like(self.p)

    def update(self, g, *, lr, beta1, gamma, eps, weight_decay):
        self.p = self.p * (1 - lr * weight_decay)
        self.m = beta1 * self.m + (1 - beta1) * g
        self.p = self.p - lr * np.clip(self.m / np.maximum(gamma * self.h, eps), -1, 1)


class MARS(Oracle):
    """Yuan et al. 2024, arXiv:2411.10438, algorithm 2, with the last step's gradient; decay as AdamW's."""

    def __init__(self, p):
        super().__init__(p)
        self.m = self.v = np.zeros_like(self.p)
        self.prev = None

    def update(self, g, *, lr, beta1, beta2, gamma, eps, weight_decay):
        c = g if self.prev is None else g + gamma * beta1 / (1 - beta1) * (g - self.prev)
        self.prev = g
        length = np.sqrt(np.sum(c**2))
        c = c / length if length > 1 else c
        self.m = beta1 * self.m + (1 - beta1) * c
        self.v = beta2 * self.v + (1 - beta2) * c**2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        self.p = self.p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * self.p)


DECAY = dict(lr=0.02, weight_decay=0.1)

CASES = [
    Case("signsgd", SignSGD, dict(lr=0.01, weight_decay=0.1), dict(lr=0.003)),
    Case("signum", Signum, dict(lr=0.01, beta=0.8, weight_decay=0.1), dict(beta=0.95)),
    Case("qhm", QHM, dict(lr=0.05, beta=0.95, nu=0.6, weight_decay=0.1), dict(nu=0.9)),
    Case("asgd", ASGD, dict(lr=0.05, lambd=0.01, alpha=0.6, t0=50, weight_decay=0.1), dict(t0=10)),
    Case(
        "rprop",
        Rprop,
        dict(lr=0.02, eta_minus=0.6, eta_plus=1.3, delta_min=1e-5, delta_max=1.0),
        dict(eta_plus=1.1, delta_max=0.1),
    ),
    Case("sophia", Sophia, dict(lr=0.01, beta1=0.9, weight_decay=0.2), dict(beta1=0.8)),
    Case("adadelta", Adadelta, dict(lr=0.5, rho=0.95, eps=1e-4, weight_decay=0.1), dict(rho=0.8)),
    Case("ftrl", FTRL, dict(lr=0.3, beta=0.5, l1=0.2, l2=0.3, initial_accumulator_value=0.2), dict(l1=0.01)),
    Case("madgrad", MADGRAD, dict(lr=0.02, momentum=0.8, eps=1e-4, weight_decay=0.01), dict(momentum=0.5)),
    Case("adamax", Adamax, dict(beta1=0.8, beta2=0.99, eps=1e-4, **DECAY), dict(beta2=0.9)),
    Case("nadam", NAdam, dict(momentum_decay=0.02, beta2=0.99, eps=1e-4, **DECAY), dict(momentum_decay=0.1)),
    Case("nadam", NAdam, dict(decoupled_weight_decay=True, **DECAY), dict(beta1=0.8)),
    Case("radam", RAdam, dict(beta1=0.8, beta2=0.99, eps=1e-4, **DECAY), dict(beta2=0.95)),
    Case("radam", RAdam, dict(decoupled_weight_decay=True, **DECAY), dict(weight_decay=0.3)),
    Case("adabelief", AdaBelief, dict(beta1=0.8, beta2=0.99, eps=1e-6, **DECAY), dict(eps=1e-3)),
    Case("yogi", Yogi, dict(beta1=0.8, beta2=0.99, initial_accumulator_value=1e-3, **DECAY), dict(beta2=0.9)),
    Case("laprop", LaProp, dict(beta1=0.8, beta2=0.99, eps=1e-6, **DECAY), dict(eps=1e-2)),
    Case("adopt", ADOPT, dict(beta1=0.8, beta2=0.99, eps=1e-3, clip_exp=0.1, **DECAY), dict(clip_exp=0.5)),
    Case("adopt", ADOPT, dict(beta2=0.99, clip_exp=0, **DECAY), dict(beta1=0.5)),
    Case("qhadam", QHAdam, dict(nu1=0.6, nu2=0.9, beta1=0.95, beta2=0.99, **DECAY), dict(nu2=0.5)),
    Case("ademamix", AdEMAMix, dict(beta3=0.99, alpha=2.0, eps=1e-4, **DECAY), dict(alpha=0.5)),
    Case("ademamix", AdEMAMix, dict(beta3=0.999, alpha=3.0, warmup=150, **DECAY), dict(warmup=300)),
    Case("adan", Adan, dict(beta1=0.9, beta2=0.8, beta3=0.95, eps=1e-4, **DECAY), dict(beta2=0.5)),
    Case("mars", MARS, dict(gamma=0.1, beta1=0.9, beta2=0.95, eps=1e-4, **DECAY), dict(gamma=0.0)),
]
