"""Row-wise Adagrad: Adagrad for tables of embeddings. State: a number per row, or per parameter."""

from fastopt.math import rms, sqrt, square
from fastopt.rule import rule


@rule(init={"s": "initial_accumulator_value"})
def rowwise_adagrad(p, g, s, *, lr=1e-2, eps=1e-8, weight_decay=0.0, initial_accumulator_value=0.0, matrix):
    """Row-wise Adagrad. Naumov et al. 2019, DLRM, arXiv:1906.00091; EXACT_ROWWISE_ADAGRAD of FBGEMM.

    s, a sum over steps, takes the mean of the squares of a row's gradient: one rate and 8 bytes a row, where Adagrad
    has them for each element. A parameter that is not 2-d is one row. As in FBGEMM eps is outside the root, 1e-8, and
    weight decay is L2 and enters s; DLRM's own program has eps 1e-10. The default of lr is Adagrad's.
    """
    g = g + weight_decay * p
    s = s + square(rms(g, "row") if matrix else rms(g))
    return p - lr * g / (sqrt(s) + eps), s
