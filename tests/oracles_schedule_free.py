"""Schedule-free float64 oracles: the three sequences x, y and z of the paper, each kept as it is written there."""

import numpy as np
from catalogue import Case
from oracles import Oracle


class ScheduleFree(Oracle):
    """Defazio et al. 2024, arXiv:2405.15682, Algorithm 1; p is y. x is the weighted average of all z."""

    def __init__(self, p):
        super().__init__(p)
        self.x = self.z = self.p
        self.lr_max = self.weights = 0.0

    def move(self, u, lr, beta, *, warmup_steps, r, weight_lr_power):
        if self.t <= warmup_steps:
            lr = lr * self.t / warmup_steps
        self.lr_max = max(self.lr_max, lr)
        weight = self.t**r * self.lr_max**weight_lr_power
        self.z = self.z - lr * u
        self.x = (self.weights * self.x + weight * self.z) / (self.weights + weight)
        self.weights += weight
        self.p = (1 - beta) * self.z + beta * self.x


class ScheduleFreeSGD(ScheduleFree):
    def update(self, g, *, lr, momentum, weight_decay, **schedule):
        self.move(g + weight_decay * self.p, lr, momentum, **schedule)


class ScheduleFreeAdamW(ScheduleFree):
    v = 0.0

    def update(self, g, *, lr, beta1, beta2, eps, weight_decay, **schedule):
        self.v = beta2 * self.v + (1 - beta2) * g**2
        u = g / (np.sqrt(self.v / (1 - beta2**self.t)) + eps) + weight_decay * self.p
        self.move(u, lr, beta1, **schedule)


CASES = [
    Case("schedule_free_sgd", ScheduleFreeSGD, dict(lr=0.05, weight_decay=0.1), dict(momentum=0.8)),
    Case(
        "schedule_free_sgd",
        ScheduleFreeSGD,
        dict(lr=0.05, momentum=0.95, weight_decay=0.1, warmup_steps=20, r=0.5, weight_lr_power=1.0),
        dict(r=1.0, warmup_steps=5),
    ),
    Case(
        "schedule_free_adamw",
        ScheduleFreeAdamW,
        dict(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-5, weight_decay=0.1, warmup_steps=20, r=0.5),
        dict(beta1=0.95),
    ),
]
