"""Float64 oracles of Keras's and optax's readings, written from their documentation; test_libraries_readings.py asks
the libraries themselves."""

import numpy as np
from catalogue import Case
from oracles import Oracle


class Lazy(Oracle):
    """State that starts at 0, by any name: `self.m`."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return np.zeros_like(self.p)


# ---- Keras: decay first, and the whole of lr in every buffer ---------------------------------------------------------


class Keras(Lazy):
    def update(self, g, *, lr, weight_decay, **hyper):
        self.p = self.p * (1 - lr * weight_decay)
        self.p = self.p - self.change(g, lr, **hyper)


class KerasSGD(Keras):
    def change(self, g, lr, *, momentum, nesterov):
        self.velocity = momentum * self.velocity - lr * g
        return lr * g - momentum * self.velocity if nesterov else -self.velocity


class KerasRMSprop(Keras):
    def change(self, g, lr, *, alpha, eps, momentum, centered):
        self.v = alpha * self.v + (1 - alpha) * g**2
        self.mean = alpha * self.mean + (1 - alpha) * g
        variance = self.v - self.mean**2 if centered else self.v
        self.velocity = momentum * self.velocity + lr * g / np.sqrt(variance + eps)
        return self.velocity


class KerasAdagrad(Keras):
    def change(self, g, lr, *, eps, initial_accumulator_value):
        if self.t == 1:
            self.sum = np.full_like(self.p, initial_accumulator_value)
        self.sum = self.sum + g**2
        return lr * g / np.sqrt(self.sum + eps)


class KerasAdadelta(Keras):
    def change(self, g, lr, *, rho, eps):
        self.gg = rho * self.gg + (1 - rho) * g**2
        delta = np.sqrt((self.dd + eps) / (self.gg + eps)) * g
        self.dd = rho * self.dd + (1 - rho) * delta**2
        return lr * delta


class KerasAdam(Keras):
    def change(self, g, lr, *, beta1, beta2, eps, amsgrad):
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        self.top = np.maximum(self.top, self.v)
        rate = lr * np.sqrt(1 - beta2**self.t) / (1 - beta1**self.t)
        return rate * self.m / (np.sqrt(self.top if amsgrad else self.v) + eps)


class KerasAdamax(Keras):
    def change(self, g, lr, *, beta1, beta2, eps):
        self.m = beta1 * self.m + (1 - beta1) * g
        self.u = np.maximum(beta2 * self.u, np.abs(g))
        return lr / (1 - beta1**self.t) * self.m / (self.u + eps)


class KerasNadam(Keras):
    def change(self, g, lr, *, beta1, beta2, eps):
        mu = [beta1 * (1 - 0.5 * 0.96**k) for k in range(1, self.t + 2)]
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        ahead = mu[-1] * self.m / (1 - np.prod(mu)) + (1 - mu[-2]) * g / (1 - np.prod(mu[:-1]))
        return lr * ahead / (np.sqrt(self.v / (1 - beta2**self.t)) + eps)


class KerasLion(Keras):
    def change(self, g, lr, *, beta1, beta2):
        direction = np.sign(beta1 * self.m + (1 - beta1) * g)
        self.m = beta2 * self.m + (1 - beta2) * g
        return lr * direction


class KerasFtrl(Keras):
    """McMahan et al. 2013, algorithm 1, per coordinate, with Keras's doubled l2 and its start of n."""

    def change(self, g, lr, *, beta, l1, l2, l2_shrinkage, initial_accumulator_value):
        if self.t == 1:
            self.n = np.full_like(self.p, initial_accumulator_value)
        n = self.n + g**2
        sigma = (np.sqrt(n) - np.sqrt(self.n)) / lr
        self.z = self.z + g + 2 * l2_shrinkage * self.p - sigma * self.p
        self.n = n
        inactive = np.abs(self.z) <= l1
        new = -(self.z - np.sign(self.z) * l1) / ((beta + np.sqrt(n)) / lr + 2 * l2)
        return self.p - np.where(inactive, 0.0, new)


# ---- optax: chains of transformations of an update, which is then added to p -----------------------------------------


class Trace(Lazy):
    """`trace`: update + momentum * buffer, once, or twice with nesterov."""

    def trace(self, u, momentum, nesterov):
        self.buffer = u + momentum * self.buffer
        return u + momentum * self.buffer if nesterov else self.buffer


class OptaxSGD(Trace):
    def update(self, g, *, lr, momentum, nesterov):
        self.p = self.p - lr * self.trace(g, momentum, nesterov)


class OptaxAdagrad(Lazy):
    def update(self, g, *, lr, eps, initial_accumulator_value):
        if self.t == 1:
            self.sum = np.full_like(self.p, initial_accumulator_value)
        self.sum = self.sum + g**2
        self.p = self.p - lr * np.where(self.sum > 0, g / np.sqrt(self.sum + eps), 0)


class OptaxRMSProp(Trace):
    def update(self, g, *, lr, alpha, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov, bias_correction):
        if self.t == 1:
            self.v = np.full_like(self.p, initial_scale)
        self.v = alpha * self.v + (1 - alpha) * g**2
        self.mean = alpha * self.mean + (1 - alpha) * g
        correction = 1 - alpha**self.t if bias_correction else 1
        variance = self.v / correction
        if centered:
            variance = variance - (self.mean / correction) ** 2
        scale = np.sqrt(variance + eps) if eps_in_sqrt else np.sqrt(variance) + eps
        self.p = self.p - self.trace(lr * g / scale, momentum, nesterov)


class OptaxAdadelta(Lazy):
    def update(self, g, *, lr, rho, eps, weight_decay):
        g = g + weight_decay * self.p
        self.gg = rho * self.gg + (1 - rho) * g**2
        delta = np.sqrt((self.dd + eps) / (self.gg + eps)) * g
        self.dd = rho * self.dd + (1 - rho) * delta**2
        self.p = self.p - lr * delta


class OptaxAdam(Lazy):
    def update(self, g, *, lr, beta1, beta2, eps, eps_root, nesterov=False, weight_decay=0.0):
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m_hat = self.m / (1 - beta1**self.t)
        if nesterov:
            m_hat = beta1 * self.m / (1 - beta1 ** (self.t + 1)) + (1 - beta1) * g / (1 - beta1**self.t)
        v_hat = self.corrected(beta2)
        self.p = self.p - lr * (m_hat / (np.sqrt(v_hat + eps_root) + eps) + weight_decay * self.p)

    def corrected(self, beta2):
        return self.v / (1 - beta2**self.t)


class OptaxNadam(OptaxAdam):
    def update(self, g, **hyper):
        super().update(g, nesterov=True, **hyper)


class OptaxAmsgrad(OptaxAdam):
    def corrected(self, beta2):
        self.top = np.maximum(self.top, super().corrected(beta2))
        return self.top


class OptaxAdamax(Lazy):
    def update(self, g, *, lr, beta1, beta2, eps, weight_decay=0.0):
        self.m = beta1 * self.m + (1 - beta1) * g
        self.u = np.maximum(np.abs(g) + eps, beta2 * self.u)
        self.p = self.p - lr * (self.m / (1 - beta1**self.t) / self.u + weight_decay * self.p)


class OptaxLion(Lazy):
    def update(self, g, *, lr, beta1, beta2, weight_decay):
        direction = np.sign(beta1 * self.m + (1 - beta1) * g)
        self.m = beta2 * self.m + (1 - beta2) * g
        self.p = self.p - lr * (direction + weight_decay * self.p)


DECAY = dict(weight_decay=0.1)
BETAS = dict(beta1=0.8, beta2=0.95, eps=1e-5)

CASES = [
    Case("keras.sgd", KerasSGD, dict(lr=0.01, **DECAY)),
    Case("keras.sgd", KerasSGD, dict(lr=0.01, momentum=0.9, **DECAY), dict(momentum=0.5)),
    Case("keras.sgd", KerasSGD, dict(lr=0.01, momentum=0.9, nesterov=True, **DECAY), dict(lr=0.002)),
    Case("keras.rmsprop", KerasRMSprop, dict(lr=0.003, alpha=0.95, eps=1e-4, **DECAY), dict(alpha=0.8)),
    Case(
        "keras.rmsprop",
        KerasRMSprop,
        dict(lr=0.003, alpha=0.95, eps=1e-3, momentum=0.9, centered=True, **DECAY),
        dict(momentum=0.5),
    ),
    Case("keras.adagrad", KerasAdagrad, dict(lr=0.1, eps=1e-3, initial_accumulator_value=0.2, **DECAY), dict(lr=0.01)),
    Case("keras.adadelta", KerasAdadelta, dict(lr=0.5, rho=0.9, eps=1e-4, **DECAY), dict(rho=0.8)),
    Case("keras.adamax", KerasAdamax, dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-2, **DECAY), dict(beta1=0.9)),
    Case("keras.adam", KerasAdam, dict(lr=0.01, **BETAS, **DECAY), dict(beta1=0.9)),
    Case("keras.adam", KerasAdam, dict(lr=0.01, **BETAS, amsgrad=True, **DECAY), dict(beta2=0.99)),
    Case("keras.adamw", KerasAdam, dict(lr=0.01, eps=1e-4), dict(weight_decay=0.5)),
    Case("keras.adamw", KerasAdam, dict(lr=0.01, eps=1e-4, beta2=0.9, amsgrad=True), dict(weight_decay=0.5)),
    Case("keras.nadam", KerasNadam, dict(lr=0.01, **BETAS, **DECAY), dict(beta1=0.9)),
    Case("keras.lion", KerasLion, dict(lr=0.003, beta1=0.8, **DECAY), dict(beta2=0.9)),
    Case("keras.ftrl", KerasFtrl, dict(lr=0.5, beta=0.5, l2=0.05, l2_shrinkage=0.1, **DECAY), dict(l1=0.02)),
    Case("optax.sgd", OptaxSGD, dict(lr=0.01), dict(lr=0.1)),
    Case("optax.sgd", OptaxSGD, dict(lr=0.01, momentum=0.9, nesterov=True), dict(momentum=0.5)),
    Case("optax.adagrad", OptaxAdagrad, dict(lr=0.1, eps=1e-3, initial_accumulator_value=0.0), dict(eps=1e-5)),
    Case("optax.rmsprop", OptaxRMSProp, dict(lr=0.003, alpha=0.95, eps=1e-4, initial_scale=0.1), dict(alpha=0.8)),
    Case(
        "optax.rmsprop",
        OptaxRMSProp,
        dict(lr=0.003, eps=1e-2, eps_in_sqrt=False, momentum=0.9, nesterov=True, bias_correction=True),
        dict(momentum=0.5),
    ),
    Case(
        "optax.rmsprop",
        OptaxRMSProp,
        dict(lr=0.003, eps=0.1, centered=True, momentum=0.9, bias_correction=True),
        dict(alpha=0.8),
    ),
    Case("optax.adadelta", OptaxAdadelta, dict(lr=0.5, eps=1e-4, **DECAY), dict(rho=0.8)),
    Case("optax.adam", OptaxAdam, dict(lr=0.01, **BETAS, eps_root=1e-6), dict(beta1=0.9)),
    Case("optax.adam", OptaxAdam, dict(lr=0.01, **BETAS, nesterov=True), dict(beta1=0.9)),
    Case("optax.adamw", OptaxAdam, dict(lr=0.01, **BETAS, eps_root=1e-6, **DECAY), dict(beta1=0.9)),
    Case("optax.adamw", OptaxAdam, dict(lr=0.01, **BETAS, nesterov=True, **DECAY), dict(beta1=0.9)),
    Case("optax.nadam", OptaxNadam, dict(lr=0.01, **BETAS, eps_root=1e-6), dict(beta1=0.9)),
    Case("optax.nadamw", OptaxNadam, dict(lr=0.01, **BETAS, **DECAY), dict(beta1=0.9)),
    Case("optax.amsgrad", OptaxAmsgrad, dict(lr=0.01, **BETAS, eps_root=1e-6), dict(beta2=0.99)),
    Case("optax.adamax", OptaxAdamax, dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3), dict(beta1=0.9)),
    Case("optax.adamaxw", OptaxAdamax, dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-3, **DECAY), dict(beta1=0.9)),
    Case("optax.lion", OptaxLion, dict(lr=0.003, beta1=0.8, **DECAY), dict(beta2=0.9)),
]
