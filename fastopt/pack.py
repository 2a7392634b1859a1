"""`pack`: parameters copied into one flat, aligned buffer, with a gradient buffer beside it. The fastest form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.devices import place
from fastopt.devices.array import DeviceArray
from fastopt.devices.foreign import on_gpu, view
from fastopt.errors import ArrayTypeError, ConfigError, DeviceError, listing
from fastopt.params import Tree, foreign, storable, survey, zeros

_DEVICE_ALIGN = 256  # bytes: a GPU reads 16 at once only if they start at a multiple of 16


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
        flat: the buffer, of shape (number of elements,). On a GPU, where each view starts at a
            multiple of 256 bytes, there is room between them, which holds zeros.
        grads: the same structure over a second buffer, zeros at first; `Optimizer.step()` reads it.

    `params["w"] = x` copies `x` into the view. Copies and pickles of a `Packed` have buffers of their own; on a GPU
    there are none.
    """

    def __init__(self, tree: Tree, shapes: list[tuple[int, ...]], flat: Any, grads: Packed | None):
        sizes, starts, _ = _layout(shapes, flat.dtype, isinstance(flat, DeviceArray))
        leaves = iter([flat[a : a + n].reshape(s) for a, n, s in zip(starts, sizes, shapes, strict=True)])
        self._tree, self._shapes, self._flat, self._grads = tree, shapes, flat, grads
        super().__init__(_views(tree, leaves)._items)

    @property
    def flat(self) -> Any:
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
        return (
            f"<packed {self.flat.dtype} {', '.join(self._tree.names()[:8])}: {sum(map(prod, self._shapes))} elements>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        grads = None if self._grads is None else self._grads.flat
        return _assemble, (self._tree, self._shapes, self.flat, grads)


class PackedDict(Packed, DictViews):
    """A `Packed` of a dict."""


class PackedList(Packed, ListViews):
    """A `Packed` of a list, a tuple or a single array (then of length 1)."""


def _layout(shapes: list[tuple[int, ...]], dtype: np.dtype, device: bool) -> tuple[list[int], list[int], int]:
    """How long the views are, where they start, and how long the buffer is."""
    line = _DEVICE_ALIGN // dtype.itemsize if device else 1
    sizes = [prod(s) for s in shapes]
    *starts, end = np.cumsum([0, *(-(-n // line) * line for n in sizes)]).tolist()
    return sizes, starts, end


def _views(tree: Tree, leaves: Iterator[Any]) -> Any:
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


def pack(params: Any, *, dtype: Any = None, device: str = "auto") -> Packed:
    """Copy one array, or a list, tuple or nested dict of arrays, into one flat buffer; returns the structure of views.

    Arrays may have any layout. All must have one dtype, float32, float64, float16 or bfloat16, unless `dtype` says
    what they become. `device`: "cuda" (or "cuda:1") puts the buffer on a GPU, "cpu" in host memory, "auto" where the
    arrays are. From GPU to GPU neither dtype nor layout can change, and from a GPU to the host the copy is yours.

    Raises `ConfigError` for an empty structure or another dtype, `ArrayTypeError` for a leaf that is no array,
    `DeviceError` for a device that is not there.
    """
    tree, leaves = survey(params)
    tree = Tree("list", (0,), (tree,)) if tree.kind == "leaf" else tree
    names = tree.names()
    gpu = place.room(device, leaves, names)
    arrays = [_device(x, n, gpu) if on_gpu(x) else _host(x, n) for x, n in zip(leaves, names, strict=True)]
    if dtype is None:
        found = {a.dtype.newbyteorder("=") for a in arrays}
        if len(found) > 1 or not all(map(storable, found)):
            shown = ", ".join(sorted(map(str, found)))
            raise ConfigError(
                f"pack: the arrays are {shown}; expected all float32, float64, float16 or bfloat16. Say "
                "dtype=numpy.float32."
            )
        dtype = found.pop()
    elif not storable(np.dtype(dtype)):
        raise ConfigError(f"pack: dtype {np.dtype(dtype)}; expected float32, float64, float16 or bfloat16.")
    dtype = np.dtype(dtype)
    if wrong := [n for n, a in zip(names, arrays, strict=True) if isinstance(a, DeviceArray) and a.dtype != dtype]:
        raise ConfigError(f"pack: `{wrong[0]}` on the GPU is not {dtype}; convert it first.")
    shapes = [a.shape for a in arrays]
    _, _, size = _layout(shapes, dtype, gpu is not None)
    make = zeros if gpu is None else gpu.zeros
    kind = PackedDict if tree.kind == "dict" else PackedList
    packed = kind(tree, shapes, make(size, dtype), kind(tree, shapes, make(size, dtype), None))
    for target, array in zip(survey(packed)[1], arrays, strict=True):
        target[...] = array
    return packed


def _host(leaf: Any, name: str) -> np.ndarray:
    array = foreign(leaf, name)
    known = isinstance(array, np.ndarray) and (array.dtype.kind in "fiu" or codecs.is_half(array.dtype))
    if not known or isinstance(array, np.ma.MaskedArray):
        what = getattr(array, "dtype", type(leaf).__name__)
        raise ArrayTypeError(f"parameter `{name}` is {what}; expected a NumPy array of real numbers.")
    return array


def _device(leaf: Any, name: str, gpu: Any) -> DeviceArray:
    if gpu is None:
        raise DeviceError(f"`{name}` lives on a GPU ({type(leaf).__name__}), and device is 'cpu'; copy it first.")
    v = view(leaf, gpu.driver)
    if v.device != gpu.device and v.address:
        raise DeviceError(
            f"pack: `{name}` is on cuda:{v.device}, the buffer on cuda:{gpu.device}; copy it there first."
        )
    if not v.contiguous:
        raise ArrayTypeError(f"pack: `{name}` of shape {v.shape} is not C-contiguous; pass a contiguous copy.")
    return DeviceArray(gpu.driver, gpu.device, v.address, v.shape, v.dtype, leaf)
