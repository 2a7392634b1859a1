"""Gradients that touch some rows of a parameter: `rows`, and what other libraries' sparse matrices become."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt import codecs
from fastopt.devices.foreign import fetched, on_gpu, view
from fastopt.errors import ArrayTypeError, GradientError
from fastopt.params import FLOATS, foreign
from fastopt.targets import driver


class Rows(NamedTuple):
    """Rows of a gradient; the others are 0. Make it with `rows`."""

    indices: np.ndarray  # int64 (k,)
    values: Any  # float32 or float64 (k, ...), C-contiguous; or an array on a GPU, as it was given


def rows(indices: Any, values: Any) -> Rows:
    """A gradient that is `values[j]` in row `indices[j]` of its parameter and 0 elsewhere.

    Args:
        indices: integers (k,), in any order; rows that occur more than once are summed. Or bools (n_rows,): the rows
            that are true, in order.
        values: float32, float64, float16 or bfloat16 (k, *shape of a row); the 16-bit ones are copied to float32. For a
            parameter on a GPU float32 or float64 there, never copied.

    Indices on a GPU are copied to the host, which waits for them. Raises `GradientError` for anything else; whether it
    fits the parameter is checked by the step.
    """
    if _ready(indices, _INT64) and _ready(values, FLOATS) and indices.ndim == 1 <= values.ndim:
        if len(indices) == len(values):
            return Rows(indices, values)
    where = _integers(fetched(indices) if on_gpu(indices) else np.asarray(indices))
    if on_gpu(values):
        return Rows(where, _there(values, len(where)))
    what = codecs.tensor(values)
    what = foreign(values, "values") if what is None else codecs.widened(what)
    if isinstance(what, np.ndarray) and codecs.is_half(what.dtype):
        what = codecs.widened(what)
    if not isinstance(what, np.ndarray) or what.dtype.newbyteorder("=") not in FLOATS:
        found = what.dtype if isinstance(what, np.ndarray) else type(what).__name__
        raise GradientError(f"rows: values are {found}; expected an array of float32 or float64.")
    if what.ndim == 0 or len(what) != len(where):
        raise GradientError(
            f"rows: values of shape {what.shape} for {len(where)} indices; expected ({len(where)}, ...)."
        )
    native = what.dtype.newbyteorder("=")
    return Rows(where, np.require(np.asarray(what), native, ("C", "A")))


def _integers(where: np.ndarray) -> np.ndarray:
    """Indices as int64, those of a mask, too. Raises `GradientError`."""
    if where.ndim != 1:
        raise GradientError(f"rows: indices of shape {where.shape}; expected (k,).")
    if where.dtype == np.bool_:
        where = np.flatnonzero(where)
    elif where.dtype.kind not in "iu":
        if where.size:
            raise GradientError(f"rows: indices of dtype {where.dtype}; expected integers, or bools for a mask.")
        where = where.astype(np.int64)  # [] is float64 to NumPy
    elif where.dtype.kind == "u" and where.size and int(where.max()) > np.iinfo(np.int64).max:
        raise GradientError(f"rows: the index {int(where.max())} is beyond int64.")
    return np.ascontiguousarray(where, np.int64)


def _there(values: Any, k: int) -> Any:
    """Values on a GPU, if they can be those of k rows. Raises `GradientError`."""
    try:
        found = view(values, driver.get())
    except ArrayTypeError as error:
        raise GradientError(f"rows: values: {error}") from error
    if found.dtype not in FLOATS:
        raise GradientError(f"rows: values on a GPU are {found.dtype}; expected an array of float32 or float64.")
    if not found.shape or found.shape[0] != k:
        raise GradientError(f"rows: values of shape {found.shape} for {k} indices; expected ({k}, ...).")
    return values


_INT64 = (np.dtype(np.int64),)


def _ready(x: Any, dtypes: tuple[np.dtype, ...]) -> bool:
    """Can a kernel read it as it is?"""
    return type(x) is np.ndarray and x.dtype in dtypes and x.flags.c_contiguous and x.flags.aligned


def is_sparse(x: Any) -> bool:
    """Is it a gradient of rows, of ours or of SciPy's?"""
    return type(x) is Rows or (type(x).__module__ or "").startswith("scipy.sparse")


def of(x: Any, like: np.ndarray, name: str) -> Rows:
    """`x` as rows of a gradient of a parameter `like`. Raises `GradientError`."""
    try:
        given = x if type(x) is Rows else _of_scipy(x, like, name)
    except GradientError:
        raise
    except (TypeError, ValueError) as error:
        raise GradientError(f"gradient of `{name}`: {error}") from error
    if like.ndim == 0:
        raise GradientError(f"gradient of `{name}`: a number has no rows; give the gradient itself.")
    # what is on a GPU is looked at there
    if isinstance(given.values, np.ndarray) and given.values.shape[1:] != like.shape[1:]:
        raise GradientError(
            f"gradient of `{name}`: rows of shape {given.values.shape[1:]}; expected {like.shape[1:]}, the parameter's."
        )
    return given


def _of_scipy(x: Any, like: np.ndarray, name: str) -> Rows:
    """Rows with entries become whole rows: a step moves all elements of a row it touches."""
    if x.shape != like.shape:
        raise GradientError(f"gradient of `{name}`: shape {x.shape}; expected {like.shape}, the parameter's.")
    dtype = x.dtype if x.dtype in FLOATS else like.dtype
    if x.dtype.kind not in "fiub":
        raise GradientError(f"gradient of `{name}`: dtype {x.dtype}; expected float32 or float64.")
    csr = x.tocsr()
    touched = np.flatnonzero(np.diff(csr.indptr))
    return rows(touched, csr[touched].toarray().astype(dtype, copy=False))
