"""Shampoo: Adagrad with a full matrix for each side. State per parameter: two square matrices a side. For matrices."""

from typing import Annotated

from fastopt import linalg
from fastopt.matrices import matrix_function
from fastopt.rule import rule
from fastopt.schema import Domain

Interval = Annotated[float, Domain(low=1, high=2**24, whole=True)]
Decay = Annotated[float, Domain(low=0.0, high=1.0)]


@matrix_function(states=("rows", "columns", "rows", "columns"), updates=True, work=True)
def precondition(g, L, R, P_L, P_R, beta, weight, eps, due, *, work):
    linalg.add_square(L, g, beta, weight, work=work)
    linalg.add_square(R, g.T, beta, weight, work=work)
    if due:
        linalg.inverse_root(L, 4, eps, out=P_L)
        linalg.inverse_root(R, 4, eps, out=P_R)
    return linalg.between(P_L, g, P_R, out=g, work=work), L, R, P_L, P_R


@rule(init={"L": "eps", "R": "eps"})
def shampoo(
    p,
    g,
    m,
    L,
    R,
    P_L,
    P_R,
    *,
    lr=0.1,
    momentum=0.0,
    beta: Decay = 1.0,
    eps=1e-4,
    weight_decay=0.0,
    interval: Interval = 1,
    t,
):
    """Shampoo. Gupta, Koren & Singer 2018, arXiv:1802.09568, Algorithm 1.

    L and R start at eps times the identity. The roots P_L = L^(-1/4) and P_R = R^(-1/4) are computed in float64 at
    the first step and every `interval` steps, and no eigenvalue is taken for less than eps. Of our own: `beta` below 1
    makes averages of the sums, `momentum` is heavy-ball on what comes out, weight decay is L2. The paper tunes lr.
    """
    g = g + weight_decay * p
    due = (t - 1) % interval == 0
    u, L, R, P_L, P_R = precondition(g, L, R, P_L, P_R, beta, 1 if beta == 1 else 1 - beta, eps, due)
    if momentum:
        m = momentum * m + u
        u = m
    return p - lr * u, m, L, R, P_L, P_R
