"""Linear algebra for rules that look at whole matrices. NumPy's BLAS does the work; other kinds of arrays bring theirs.

What has `out` and `work` (see `fastopt.matrices.Work`) allocates next to nothing when it is called again. Numbers that
are not finite give NaN and no exception, as in kernels.
"""

import math
from typing import Any

from fastopt.matrices import Work, namespace

QUINTIC = (3.4445, -4.775, 2.0315)


def newton_schulz(
    x: Any,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    *,
    out: Any = None,
    work: Work | None = None,
) -> Any:
    """About U V^T of x = U S V^T: `steps` times X <- a X + b (X X^T) X + c (X X^T)^2 X, from x / max(|x|_F, eps).

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". With the default coefficients most
    singular values end between 0.7 and 1.2 instead of at 1. The work is done on the smaller side. `out` may be `x`.
    """
    work = work or Work()
    xp, tall, k = namespace(x), x.shape[0] > x.shape[1], min(x.shape)
    now, target = x, work("turned", x, x.shape)
    gram, *spare = (work(f"square{i}", x, (k, k)) for i in range(4))
    _square(xp, now.T if tall else now, gram)
    norm = math.sqrt(_trace(gram))
    if k and not 1e-8 < norm < 1e8:  # squares may have left the range of the dtype
        largest = float(abs(x).max())
        if 0 < largest < math.inf:
            factor = 2.0 ** -math.frexp(largest)[1]  # a power of two changes no digit
            now, target = xp.multiply(x, factor, out=target), work("scaled", x, x.shape)
            eps *= factor
            _square(xp, now.T if tall else now, gram)
            norm = math.sqrt(_trace(gram))
    scale = 1 / max(norm, eps) if norm == norm else norm  # into the polynomials, instead of a look at all of x
    gram *= scale * scale
    # a polynomial in X X^T for several steps at once saves products with a long X, but amplifies what was rounded off
    # its small eigenvalues twelvefold a step
    stride = 3 if max(x.shape) >= 2 * k else 1
    for first in range(0, steps, stride):
        if first:
            _square(xp, now.T if tall else now, gram)
        p = _polynomial(xp, gram, min(stride, steps - first), coefficients, spare)
        if not first:
            p *= scale
        xp.matmul(*((now, p) if tall else (p, now)), out=target)
        now, target = target, work("scaled", x, x.shape) if now is x else now
    if not steps:
        now = now * scale
    if out is None:
        return now + 0  # the work's own is overwritten by the next call
    out[...] = now
    return out


def _polynomial(xp: Any, gram: Any, steps: int, coefficients: tuple[float, float, float], spare: list[Any]) -> Any:
    """P with X <- P X as `steps` steps, of A = X X^T: P <- Q P and A <- Q A Q with Q = a + b A + c A^2."""
    a, b, c = coefficients
    whole = None
    q, other, more = spare
    for step in range(steps):
        _square(xp, gram, q)
        q *= c
        xp.multiply(gram, b, out=other)
        q += other
        q.reshape(-1)[:: q.shape[0] + 1] += a
        if step < steps - 1:
            _product(xp, gram, q, other)
            _product(xp, other, q, gram)
        if whole is None:
            whole, q = q, more
        else:
            _product(xp, whole, q, other)
            whole, other = other, whole
    return whole


def _square(xp: Any, x: Any, out: Any) -> None:
    """x x^T, of which BLAS computes a half."""
    xp.matmul(x, x.T, out=out)


def _product(xp: Any, a: Any, b: Any, out: Any) -> None:
    """a b of symmetric matrices that commute: symmetric, so that blocks on one side of the diagonal are enough."""
    n = a.shape[0]
    block = max(1, n if n < 512 else -(-n // 8))
    for i in range(0, n, block):
        j = min(i + block, n)
        xp.matmul(a[i:], b[:, i:j], out=out[i:, i:j])
        out[i:j, j:] = out[j:, i:j].T


def _trace(x: Any) -> float:
    return float(x.reshape(-1)[:: x.shape[0] + 1].sum()) if x.shape[0] else 0.0


def inverse_root(a: Any, power: float, eps: float = 0.0, *, out: Any = None) -> Any:
    """a^(-1/power) of a symmetric positive definite matrix, its eigenvalues taken for `eps` at least.

    By eigenvectors in float64: of a float32 matrix the small eigenvalues are what was rounded off the large ones.
    """
    xp = namespace(a)
    target = xp.empty_like(a) if out is None else out
    if not _finite(a):
        target[...] = math.nan
        return target
    values, vectors = xp.linalg.eigh(_wide(xp, a))
    target[...] = (vectors * xp.clip(values, eps, None) ** (-1 / power)) @ vectors.T
    return target


def eigenbasis(a: Any, *, out: Any = None) -> Any:
    """Orthonormal eigenvectors of a symmetric matrix as columns, of the largest eigenvalue first, found in float64.

    Of eigenvectors with eigenvalue 0, which a sum of few outer products has many of, any basis would do; it is the one
    that keeps the axes in order, x_i before x_j for i < j, and not whatever the rounding errors say.
    """
    xp = namespace(a)
    n = a.shape[0]
    target = xp.empty_like(a) if out is None else out
    if not _finite(a) or not n:
        target[...] = math.nan
        return target
    values, vectors = xp.linalg.eigh(_wide(xp, a))
    zeros = int((values <= n * xp.finfo(a.dtype).eps * abs(values[-1])).sum())
    if zeros > 1:
        free = vectors[:, :zeros]
        vectors[:, :zeros] = free @ xp.linalg.eigh((free.T * -_wide(xp, xp.arange(n))) @ free)[1]
    target[...] = xp.flip(vectors, (1,))
    return target


def power_iteration_qr(a: Any, q: Any, *, out: Any = None, work: Work | None = None) -> Any:
    """One step of orthogonal iteration: the Q of a QR decomposition of a q, nearer to the eigenvectors of a than q."""
    xp = namespace(a)
    product = (work or Work())("product", a, a.shape)
    xp.matmul(a, q, out=product)
    target = xp.empty_like(q) if out is None else out
    if _finite(product):
        target[...] = xp.linalg.qr(product)[0]
    else:
        target[...] = math.nan
    return target


def add_square(a: Any, x: Any, decay: float, weight: float, *, work: Work | None = None) -> None:
    """a <- decay a + weight x x^T, in place."""
    square = (work or Work())("square", a, a.shape)
    namespace(a).matmul(x, x.T, out=square)
    square *= weight
    a *= decay
    a += square


def between(a: Any, x: Any, b: Any, *, out: Any = None, work: Work | None = None) -> Any:
    """a x b. `out` may be `x`."""
    xp = namespace(x)
    half = (work or Work())("half", x, x.shape)
    xp.matmul(a, x, out=half)
    return xp.matmul(half, b, out=xp.empty_like(x) if out is None else out)


def _finite(x: Any) -> bool:
    return math.isfinite(float(abs(x).sum()))


def _wide(xp: Any, x: Any) -> Any:
    """A copy in float64."""
    return x.astype(xp.float64) if hasattr(x, "astype") else x.to(xp.float64, copy=True)
