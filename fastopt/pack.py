"""`pack`: parameters copied into one flat, aligned buffer, with a gradient buffer beside it. The fastest form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt.errors import ArrayTypeError, ConfigError
from fastopt.params import FLOATS, Tree, foreign, survey, zeros


class Packed:
    """Views, back to back, into one 64-byte aligned 1-d buffer, in the structure the parameters had.

    Attributes:
        flat: the buffer, float32 or float64, of shape (number of elements,).
        grads: the same structure over a second buffer, zeros at first; `Optimizer.step()` reads it.

    `params["w"] = x` copies `x` into the view. Copies and pickles of a `Packed` have buffers of their own.
    """

    _grads: Packed | None

    def __init__(self, tree: Tree, shapes: list[tuple[int, ...]], flat: np.ndarray, grads: Packed | None):
        ends = np.cumsum([0, *(int(np.prod(s, dtype=np.int64)) for s in shapes)])
        leaves = [flat[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)]
        self._tree, self._shapes, self._flat, self._grads = tree, shapes, flat, grads
        self._views: Any = tree.build(iter(leaves))

    @property
    def flat(self) -> np.ndarray:
        return self._flat

    @property
    def grads(self) -> Packed:
        if self._grads is None:
            raise AttributeError("these are gradients; only the parameters have `.grads`.")
        return self._grads

    @property
    def has_grads(self) -> bool:
        return self._grads is not None

    def __getitem__(self, key: Any) -> Any:
        return self._views[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        view = self._views[key]
        if not isinstance(view, np.ndarray):
            raise ConfigError(f"`{key}` is a {type(view).__name__} of arrays; assign to the arrays inside it.")
        if np.shape(value) != view.shape:
            raise ConfigError(f"`{key}` has shape {view.shape}; got {np.shape(value)}.")
        view[...] = value

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._views)

    def __repr__(self) -> str:
        return f"<packed {self.flat.dtype} {', '.join(self._tree.names()[:8])}: {self.flat.size} elements>"

    def __reduce__(self) -> tuple[Any, ...]:
        grads = None if self._grads is None else self._grads.flat
        return _assemble, (self._tree, self._shapes, self.flat, grads)


class PackedDict(Packed, Mapping[Any, Any]):
    """A `Packed` of a dict."""


class PackedList(Packed, Sequence[Any]):
    """A `Packed` of a list, a tuple or a single array (then of length 1)."""


def _assemble(tree: Tree, shapes: list[tuple[int, ...]], flat: np.ndarray, grads: np.ndarray | None) -> Packed:
    kind = PackedDict if tree.kind == "dict" else PackedList

    def own(values: np.ndarray) -> np.ndarray:
        buffer = zeros(values.size, values.dtype)
        buffer[...] = values
        return buffer

    return kind(tree, shapes, own(flat), None if grads is None else kind(tree, shapes, own(grads), None))


def pack(params: Any, *, dtype: Any = None) -> Packed:
    """Copy one array, or a list, tuple or nested dict of arrays, into one flat buffer; returns the structure of views.

    Arrays may have any layout. All must be float32, or all float64, unless `dtype` (one of the two) says what they
    become. Raises `ConfigError` for an empty structure or another dtype, `ArrayTypeError` for a leaf that is no array.
    """
    tree, leaves = survey(params)
    tree = Tree("list", (0,), (tree,)) if tree.kind == "leaf" else tree
    arrays = []
    for name, leaf in zip(tree.names(), leaves, strict=True):
        array = foreign(leaf, name)
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray) or array.dtype.kind not in "fiu":
            what = getattr(array, "dtype", type(leaf).__name__)
            raise ArrayTypeError(f"parameter `{name}` is {what}; expected a NumPy array of real numbers.")
        arrays.append(array)
    if dtype is None:
        found = {a.dtype.newbyteorder("=") for a in arrays}
        if len(found) > 1 or not found <= set(FLOATS):
            shown = ", ".join(sorted(map(str, found)))
            raise ConfigError(
                f"pack: the arrays are {shown}; expected all float32 or all float64. Say dtype=numpy.float32."
            )
        dtype = found.pop()
    elif np.dtype(dtype) not in FLOATS:
        raise ConfigError(f"pack: dtype {np.dtype(dtype)}; expected float32 or float64.")
    flat = zeros(sum(a.size for a in arrays), dtype)
    kind = PackedDict if tree.kind == "dict" else PackedList
    shapes = [a.shape for a in arrays]
    packed = kind(tree, shapes, flat, kind(tree, shapes, zeros(flat.size, dtype), None))
    _, views = survey(packed)
    for view, array in zip(views, arrays, strict=True):
        view[...] = array
    return packed
