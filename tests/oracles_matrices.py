"""Textbook oracles of the rules that look at whole matrices, in float64."""

import numpy as np
from catalogue import Case
from oracles import Oracle


class Muon(Oracle):
    """Jordan et al. 2024 in torch's form: the buffer is an average."""

    def __init__(self, p):
        super().__init__(p)
        self.B = np.zeros_like(self.p)

    def update(self, g, *, lr, weight_decay, momentum, nesterov, match_rms_adamw, a, b, c, eps, ns_steps):
        self.B = momentum * self.B + (1 - momentum) * g
        u = (1 - momentum) * g + momentum * self.B if nesterov else self.B
        x = u / max(np.linalg.norm(u), eps)
        for _ in range(ns_steps):
            s = x @ x.T
            x = a * x + (b * s + c * s @ s) @ x
        rows, columns = self.p.shape
        ratio = 0.2 * max(rows, columns) ** 0.5 if match_rms_adamw else max(1, rows / columns) ** 0.5
        self.p = (1 - lr * weight_decay) * self.p - lr * ratio * x


def root(a, eps):
    """a^(-1/4), no eigenvalue taken for less than eps, by singular values, which are eigenvalues here."""
    u, s, _ = np.linalg.svd(a, hermitian=True)
    return u @ np.diag(np.maximum(s, eps) ** -0.25) @ u.T


class Shampoo(Oracle):
    """Gupta et al. 2018, algorithm 1, with averages, momentum and an interval as extras."""

    def __init__(self, p):
        super().__init__(p)
        self.L = self.R = None
        self.m = np.zeros_like(self.p)

    def update(self, g, *, lr, momentum, beta, eps, weight_decay, interval):
        rows, columns = self.p.shape
        g = g + weight_decay * self.p
        weight = 1 if beta == 1 else 1 - beta
        if self.L is None:
            self.L, self.R = eps * np.eye(rows), eps * np.eye(columns)
        self.L = beta * self.L + weight * g @ g.T
        self.R = beta * self.R + weight * g.T @ g
        if (self.t - 1) % interval == 0:
            self.roots = root(self.L, eps), root(self.R, eps)
        self.m = momentum * self.m + self.roots[0] @ g @ self.roots[1]
        self.p = self.p - lr * self.m


def eigenvectors(a):
    """Of the largest eigenvalue first; those of eigenvalue 0 make x -> index of the axis diagonal."""
    u, s, _ = np.linalg.svd(a, hermitian=True)
    null = s < 1e-13 * s[0]
    places, turn = np.linalg.eigh(u[:, null].T @ np.diag(np.arange(len(a))) @ u[:, null])
    u[:, null] = u[:, null] @ turn[:, np.argsort(places)]
    return u


class SOAP(Oracle):
    """Vyas et al. 2024, algorithms 3 and 4; the first gradient only makes the bases, as in the authors' code."""

    def __init__(self, p):
        super().__init__(p)
        rows, columns = self.p.shape
        self.M, self.V = np.zeros_like(self.p), np.zeros_like(self.p)
        self.L, self.R = np.zeros((rows, rows)), np.zeros((columns, columns))

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, precondition_frequency):
        t = self.t - 1
        if t:
            rotated = self.Q_L.T @ g @ self.Q_R
            self.M = beta1 * self.M + (1 - beta1) * g
            self.V = beta2 * self.V + (1 - beta2) * rotated**2
            rotated = self.Q_L.T @ self.M @ self.Q_R / (np.sqrt(self.V) + eps)
            size = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            self.p = self.p - size * self.Q_L @ rotated @ self.Q_R.T
            self.p = self.p - lr * weight_decay * self.p
        self.L = beta2 * self.L + (1 - beta2) * g @ g.T
        self.R = beta2 * self.R + (1 - beta2) * g.T @ g
        if not t:
            self.Q_L, self.Q_R = eigenvectors(self.L), eigenvectors(self.R)
        elif t % precondition_frequency == 0:
            self.Q_L, self.Q_R = np.linalg.qr(self.L @ self.Q_L)[0], np.linalg.qr(self.R @ self.Q_R)[0]


CASES = [
    Case("muon", Muon, dict(lr=0.01, weight_decay=0.2), dict(momentum=0.8, ns_steps=3), matrix=True),
    Case("muon", Muon, dict(lr=0.01, nesterov=False, match_rms_adamw=True), dict(eps=1e-3), matrix=True),
    Case("shampoo", Shampoo, dict(lr=0.1, eps=1e-2, weight_decay=0.1), dict(lr=0.2), matrix=True),
    Case(
        "shampoo",
        Shampoo,
        dict(lr=0.01, beta=0.95, eps=1e-2, weight_decay=0.1, interval=3, momentum=0.9),
        dict(interval=2),
        matrix=True,
    ),
    Case("soap", SOAP, dict(lr=0.01, eps=1e-2, weight_decay=0.1), dict(precondition_frequency=3), matrix=True),
]
