"""DoG, distance over gradients, and its form per parameter. State: one buffer, the start, and two numbers."""

from fastopt.math import maximum, norm, sqrt
from fastopt.rule import rule
from fastopt.schema import NonNegative


@rule(init={"p0": "p"})
def dog(p, g, p0, r, G, *, lr=1.0, reps_rel: NonNegative = 1e-6, eps=1e-8, weight_decay=0.0):
    """DoG. Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, equation 1, over all parameters together; nothing to tune.

    r is the largest distance from the start p0 so far, at least reps_rel * (1 + norm(p0)), G the sum of the squares of
    the gradient's norms. Both are the same number in every parameter. The paper evaluates a weighted average of the
    iterates, with more weight on later ones, and calls it essential. With batch normalisation set reps_rel = 1e-4. As
    in the authors' program eps is added once to G and weight decay is L2.
    """
    g = g + weight_decay * p
    r = maximum(maximum(r, norm(p - p0, "all")), reps_rel * (1 + norm(p0, "all")))
    G = G + norm(g, "all") ** 2
    return p - lr * r / sqrt(G + eps) * g, p0, r, G


@rule(init={"p0": "p"})
def ldog(p, g, p0, r, G, *, lr=1.0, reps_rel: NonNegative = 1e-6, eps=1e-8, weight_decay=0.0):
    """L-DoG. Ivgi, Hinder & Carmon 2023, arXiv:2302.12022, section 4.2: `dog` with the norms of each parameter."""
    g = g + weight_decay * p
    r = maximum(maximum(r, norm(p - p0)), reps_rel * (1 + norm(p0)))
    G = G + norm(g) ** 2
    return p - lr * r / sqrt(G + eps) * g, p0, r, G
