"""Gradient descent, plain and with momentum. State per parameter: none, or one buffer with momentum."""

from fastopt.rule import rule


@rule
def sgd(p, g, b, *, lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, t):
    """Gradient descent (Cauchy 1847; on random portions of the data, Robbins & Monro 1951).

    `momentum`: Polyak 1964, in the form of Sutskever et al. 2013, whose section 2 also gives `nesterov`. As in PyTorch,
    lr stays outside the buffer, and the first step fills the buffer with the whole gradient, `dampening` ignored.
    Weight decay is L2: it enters the gradient. Keras multiplies lr into the buffer; optax has no dampening.
    """
    g = g + weight_decay * p
    if momentum:
        b = momentum * b + (1 - dampening if t > 1 else 1) * g
        g = g + momentum * b if nesterov else b
    return p - lr * g, b
