"""Every wrapper by hand, unfused, on float64 arrays: an operation on the gradient, or on what the rule made of p."""

import numpy as np

import fastopt as fo


class Layer:
    """Leaves both as they are. `lr` is the rule's, the step counts from 1."""

    def gradient(self, g, p, t):
        return g

    def change(self, p, g, new, t, lr):
        return new


def before(operation):
    """A layer without memory that changes the gradient."""
    made = Layer()
    made.gradient = operation
    return lambda: made


def behind(operation):
    made = Layer()
    made.change = operation
    return lambda: made


def clipped(g, norm, most):
    return g * min(1.0, most / (norm + 1e-6))


def within(limit):
    return before(lambda g, p, t: np.clip(g, -limit, limit))


def rows_clipped(g, p, t):
    n, most = np.sqrt((g**2).sum(1)), 0.5 * np.maximum(np.sqrt((p**2).sum(1)), 1e-3)
    return np.stack([row if k <= m else row * (m / k) for row, k, m in zip(g, n, most, strict=True)])


class Grok(Layer):
    h = None

    def __init__(self, alpha=0.7, lamb=1.5):
        self.alpha, self.lamb = alpha, lamb

    def gradient(self, g, p, t):
        self.h = g if self.h is None else self.alpha * self.h + (1 - self.alpha) * g
        return g + self.lamb * self.h


class Start(Layer):
    start = None

    def gradient(self, g, p, t):
        self.start = p.copy() if self.start is None else self.start
        return g + 0.3 * (p - self.start)


class Slow(Layer):
    slow = None

    def change(self, p, g, new, t, lr):
        self.slow = p if self.slow is None else self.slow
        if t % 3:
            return new
        self.slow = self.slow + 0.25 * (new - self.slow)
        return self.slow


def careful(p, g, new, t, lr):
    agree = ((p - new) * g > 0).astype(float)
    return p + (new - p) * agree / max(agree.mean(), 1e-3)


def shrunk(p, g, new, t, lr):
    return np.sign(new) * np.maximum(np.abs(new) - lr * 0.3, 0)


# name -> (the wrapped rule, what makes its layer, where its average is kept)
LAYERS = {
    "clip_value": (lambda r: fo.clip_value(r, 0.5), within(0.5)),
    "clip_norm": (lambda r: fo.clip_norm(r, 2.0), before(lambda g, p, t: clipped(g, np.linalg.norm(g), 2.0))),
    "clip_group_norm": (
        lambda r: fo.clip_group_norm(r, 1.0),
        before(lambda g, p, t: clipped(g, np.linalg.norm(g), 1.0)),
    ),
    "clip_each_norm": (lambda r: fo.clip_each_norm(r, 3.0), before(lambda g, p, t: clipped(g, np.linalg.norm(g), 3.0))),
    "agc": (lambda r: fo.agc(r, clipping=0.5), before(rows_clipped)),
    "centralize": (fo.centralize, before(lambda g, p, t: g - g.mean(1, keepdims=True))),
    "normalize": (fo.normalize, before(lambda g, p, t: g / (np.linalg.norm(g) + 1e-8))),
    "by_rms": (
        lambda r: fo.normalize(r, by_rms=True),
        before(lambda g, p, t: g / (np.sqrt((g * g).mean()) + 1e-8)),
    ),
    "grokfast": (lambda r: fo.grokfast(r, alpha=0.7, lamb=1.5), Grok),
    "l2": (lambda r: fo.l2(r, 0.3), before(lambda g, p, t: g + 0.3 * p)),
    "l1": (lambda r: fo.l1(r, 0.3), before(lambda g, p, t: g + 0.3 * np.sign(p))),
    "l2_sp": (lambda r: fo.l2_sp(r, 0.3), Start),
    "cautious": (fo.cautious, behind(careful)),
    "lookahead": (lambda r: fo.lookahead(r, interval=3, alpha=0.25), Slow),
    "proximal_l1": (lambda r: fo.proximal_l1(r, 0.3), behind(shrunk)),
    "decoupled_decay": (
        lambda r: fo.decoupled_decay(r, 0.2),
        behind(lambda p, g, new, t, lr: new - lr * 0.2 * p),
    ),
    "independent_decay": (
        lambda r: fo.independent_decay(r, 0.02, initial_lr=0.5),
        behind(lambda p, g, new, t, lr: new - lr / 0.5 * 0.02 * p),
    ),
    # averages change nothing in training
    "ema": (fo.ema, Layer),
    "swa": (fo.swa, Layer),
    "polyak_average": (fo.polyak_average, Layer),
}


def unfused(rule, hyper, layers, p, gradients):
    """The steps of the rule's own formula, each layer by hand around them, the outermost first. The last parameter."""
    p = p.copy()
    state = [p.copy() if (start := rule.init.get(s, 0.0)) == "p" else np.full_like(p, start) for s in rule.state]
    given = {**rule.hyper, **hyper}
    supplied = {"matrix": True} if "matrix" in rule.switches else {}
    for t, g in enumerate(gradients, 1):
        seen, kept = g, []
        for layer in layers:
            kept.append(seen)
            seen = layer.gradient(seen, p, t)
        timed = {"t": t} if rule.timed else {}
        new = rule.formula(p, seen, *state, **given, **supplied, **timed)
        new, *state = new if isinstance(new, tuple) else (new,)
        for layer, g_of in zip(reversed(layers), reversed(kept), strict=True):
            new = layer.change(p, g_of, new, t, given["lr"])
        p = new
    return p
