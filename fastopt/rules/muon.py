"""Muon: momentum whose matrix is made orthogonal. State per parameter: one buffer. For matrices alone."""

from typing import Annotated

from fastopt import linalg
from fastopt.math import maximum, size, sqrt
from fastopt.matrices import matrix_function
from fastopt.rule import rule
from fastopt.schema import Domain

Steps = Annotated[float, Domain(low=1, high=99, whole=True)]


@matrix_function(work=True)
def newton_schulz(x, steps, a, b, c, eps, *, work):
    return linalg.newton_schulz(x, int(steps), (a, b, c), eps, out=x, work=work)


@rule
def muon(
    p,
    g,
    B,
    *,
    lr=1e-3,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    match_rms_adamw=False,
    a=3.4445,
    b=-4.775,
    c=2.0315,
    eps=1e-7,
    ns_steps: Steps = 5,
):
    """Muon. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", Algorithm 2.

    As torch.optim.Muon: B is an average rather than a sum (O does not depend on that scale), lr falls and grows with
    the shape, by sqrt(max(1, rows / columns)), or, with `match_rms_adamw` (Liu et al. 2025, arXiv:2502.16982, equation
    4), by 0.2 sqrt(max(rows, columns)), which suits AdamW's lr, and the decay is decoupled. Torch computes the
    `ns_steps` Newton-Schulz steps in bfloat16, this one in the dtype of p. Jordan's own lr is 0.02, without decay.
    Embeddings, heads and what is no matrix belong in a group with another rule.
    """
    B = momentum * B + (1 - momentum) * g
    O = newton_schulz((1 - momentum) * g + momentum * B if nesterov else B, ns_steps, a, b, c, eps)  # noqa: E741
    rows, columns = size(p, "column"), size(p, "row")
    adjusted = 0.2 * sqrt(maximum(rows, columns)) if match_rms_adamw else sqrt(maximum(1, rows / columns))
    return p - lr * weight_decay * p - lr * adjusted * O, B
