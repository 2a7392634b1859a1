"""SOAP: Adam in the eigenbasis of Shampoo. State per parameter: two buffers, two square matrices a side."""

from fastopt import linalg
from fastopt.math import sqrt
from fastopt.matrices import matrix_function
from fastopt.rule import rule
from fastopt.rules.shampoo import Interval


@matrix_function(states=("rows", "columns"), work=True)
def into(x, Q_L, Q_R, *, work):
    return linalg.between(Q_L.T, x, Q_R, out=x, work=work)


@matrix_function(states=("rows", "columns"), work=True)
def back(x, Q_L, Q_R, *, work):
    return linalg.between(Q_L, x, Q_R.T, out=x, work=work)


@matrix_function(states=("rows", "columns", "rows", "columns"), result=False, updates=True, work=True)
def follow(g, L, R, Q_L, Q_R, beta, first, due, *, work):
    for P, Q, x in (L, Q_L, g), (R, Q_R, g.T):
        linalg.add_square(P, x, beta, 1 - beta, work=work)
        if first:
            linalg.eigenbasis(P, out=Q)
        elif due:
            linalg.power_iteration_qr(P, Q, out=Q, work=work)
    return L, R, Q_L, Q_R


@rule
def soap(
    p,
    g,
    M,
    V,
    L,
    R,
    Q_L,
    Q_R,
    *,
    lr=3e-3,
    beta1=0.95,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency: Interval = 10,
    t,
):
    """SOAP. Vyas et al. 2024, arXiv:2409.11321, Algorithms 3 and 4.

    As in the authors' code, the first gradient only gives L, R and, by a full eigendecomposition, Q_L and Q_R: the
    parameter, M and V stay, and the steps of Adam count from the second; eps is added to the root of the uncorrected V;
    the decoupled decay comes last. The authors' code also sorts the columns of Q, and of V, by their estimated
    eigenvalues before each QR step; Algorithm 4 does not, nor does this.
    """
    b1, b2 = 1 if t == 1 else beta1, 1 if t == 1 else beta2
    G_ = into(g, Q_L, Q_R)
    M = b1 * M + (1 - b1) * g
    M_ = into(M, Q_L, Q_R)
    V = b2 * V + (1 - b2) * G_ * G_
    N = back(M_ / (sqrt(V) + eps), Q_L, Q_R)
    L, R, Q_L, Q_R = follow(g, L, R, Q_L, Q_R, beta2, t == 1, (t - 1) % precondition_frequency == 0)
    eta = 0 if t == 1 else lr * sqrt(1 - beta2 ** (t - 1)) / (1 - beta1 ** (t - 1))
    return p if t == 1 else (1 - lr * weight_decay) * (p - eta * N), M, V, L, R, Q_L, Q_R
