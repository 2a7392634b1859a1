"""`pack`: parameters copied into one flat, aligned buffer, with a gradient buffer beside it. The fastest form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt.errors import ArrayTypeError, ConfigError, listing
from fastopt.params import FLOATS, Tree, foreign, survey, zeros


class Views:
    """A dict or list of views into a flat buffer, or of more such. Assigning to an item copies into the view."""

    def __init__(self, items: Any):
        self._items = items

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        view = self._items[key]
        if isinstance(view, Views):
            keys = list(value) if isinstance(value, Mapping) else list(range(len(value)))
            own = list(view) if isinstance(view, Mapping) else list(range(len(view)))
            if set(keys) != set(own):
                raise ConfigError(f"`{key}` holds {listing(own)}; got {listing(keys)}.")
            for k in own:
                view[k] = value[k]
        elif np.ndim(value) and np.shape(value) != view.shape:
            raise ConfigError(f"`{key}` has shape {view.shape}; got {np.shape(value)}.")
        else:
            view[...] = value

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


class DictViews(Views, Mapping[Any, Any]):
    """`Views` by name."""


class ListViews(Views, Sequence[Any]):
    """`Views` by position."""


class Packed(Views):
    """Views, back to back, into one 64-byte aligned 1-d buffer, in the structure the parameters had.

    Attributes:
        flat: the buffer, float32 or float64, of shape (number of elements,).
        grads: the same structure over a second buffer, zeros at first; `Optimizer.step()` reads it.

    `params["w"] = x` copies `x` into the view. Copies and pickles of a `Packed` have buffers of their own.
    """

    def __init__(self, tree: Tree, shapes: list[tuple[int, ...]], flat: np.ndarray, grads: Packed | None):
        ends = np.cumsum([0, *(int(np.prod(s, dtype=np.int64)) for s in shapes)])
        leaves = iter([flat[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)])
        self._tree, self._shapes, self._flat, self._grads = tree, shapes, flat, grads
        super().__init__(_views(tree, leaves)._items)

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

    def __repr__(self) -> str:
        return f"<packed {self.flat.dtype} {', '.join(self._tree.names()[:8])}: {self.flat.size} elements>"

    def __reduce__(self) -> tuple[Any, ...]:
        grads = None if self._grads is None else self._grads.flat
        return _assemble, (self._tree, self._shapes, self.flat, grads)


class PackedDict(Packed, DictViews):
    """A `Packed` of a dict."""


class PackedList(Packed, ListViews):
    """A `Packed` of a list, a tuple or a single array (then of length 1)."""


def _views(tree: Tree, leaves: Iterator[np.ndarray]) -> Any:
    if tree.kind == "leaf":
        return next(leaves)
    items = [_views(child, leaves) for child in tree.children]
    return DictViews(dict(zip(tree.keys, items, strict=True))) if tree.kind == "dict" else ListViews(items)


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
    for view, array in zip(survey(packed)[1], arrays, strict=True):
        view[...] = array
    return packed
