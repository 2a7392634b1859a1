"""Where the numbers are: structures of arrays, their names, and whether memory can be read or updated in place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.errors import ArrayTypeError, ConfigError, DeviceError, FastoptError, GradientError, hint, listing

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
ALIGN = 64  # bytes: a cache line, and the widest vector register


# -------------------------------------------------------------------- structures
@dataclass(frozen=True)
class Tree:
    """A structure of arrays: one array (`kind` "leaf"), or a dict, list or tuple of trees."""

    kind: str
    keys: tuple[Any, ...] = ()
    children: tuple["Tree", ...] = ()

    def names(self, prefix: str = "") -> tuple[str, ...]:
        """Paths of the leaves: keys and positions joined by dots; a single array is called `params`."""
        if self.kind == "leaf":
            return (prefix or "params",)
        dot = f"{prefix}." if prefix else ""
        return tuple(n for k, c in zip(self.keys, self.children, strict=True) for n in c.names(f"{dot}{k}"))

    def build(self, leaves: Iterator[Any]) -> Any:
        """The same structure, of other leaves in order."""
        if self.kind == "leaf":
            return next(leaves)
        values = [c.build(leaves) for c in self.children]
        return (
            dict(zip(self.keys, values, strict=True))
            if self.kind == "dict"
            else (tuple(values) if self.kind == "tuple" else values)
        )

    def reader(self) -> Callable[[Any], Sequence[Any]]:
        """A function that lists the leaves of a structure like this one, or raises `GradientError` naming the place."""
        flat = all(c.kind == "leaf" for c in self.children)  # then the work can be done at the speed of C
        keys, size = dict.fromkeys(self.keys).keys(), len(self.keys)
        if self.kind == "leaf":
            return lambda given: (given,)
        if self.kind == "dict" and flat and size > 1:
            get = itemgetter(*self.keys)
            return lambda given: get(given) if type(given) is dict and given.keys() == keys else self.leaves(given)
        if self.kind == "dict" and flat and size == 1:
            (key,) = self.keys
            return lambda given: (
                (given[key],) if type(given) is dict and len(given) == 1 and key in given else self.leaves(given)
            )
        if self.kind in ("list", "tuple") and flat:
            return lambda given: given if type(given) in (list, tuple) and len(given) == size else self.leaves(given)
        return self.leaves

    def leaves(self, given: Any, prefix: str = "") -> list[Any]:
        """The leaves of `given`, which must have this structure. None stands for a whole missing branch."""
        if self.kind == "leaf":
            return [given]
        where = f"gradient `{prefix}`" if prefix else "gradients"
        if given is None:
            return [None] * len(self.names())
        items = given if isinstance(given, Mapping) else None
        if self.kind == "dict":
            if items is None:
                raise GradientError(f"{where}: expected a dict with {listing(self.keys)}, got {type(given).__name__}.")
            if extra := [k for k in items if k not in self.keys]:
                raise GradientError(
                    f"{where}: no parameter is called `{extra[0]}`.{hint(str(extra[0]), map(str, self.keys))}"
                )
            if missing := [k for k in self.keys if k not in items]:
                raise GradientError(f"{where}: `{missing[0]}` is missing; give None to skip a parameter.")
            values = [items[k] for k in self.keys]
        else:
            if items is not None or isinstance(given, np.ndarray) or not hasattr(given, "__len__"):
                raise GradientError(
                    f"{where}: expected a {self.kind} of {len(self.keys)} arrays, got {type(given).__name__}."
                )
            if len(given) != len(self.keys):
                raise GradientError(f"{where}: expected {len(self.keys)} arrays, got {len(given)}.")
            values = list(given)
        dot = f"{prefix}." if prefix else ""
        parts = zip(self.keys, self.children, values, strict=True)
        return [leaf for k, c, v in parts for leaf in c.leaves(v, f"{dot}{k}")]


def survey(params: Any, prefix: str = "") -> tuple[Tree, list[Any]]:
    """The structure of `params` and its leaves, whatever they are. Raises `ConfigError` for what is no structure."""
    where = f"parameters at `{prefix}`" if prefix else "parameters"
    if isinstance(params, Mapping):
        kind, keys, values = "dict", tuple(params), list(params.values())
        if bad := [k for k in keys if not isinstance(k, str | int) or k == ""]:
            raise ConfigError(f"{where}: the key {bad[0]!r} is no name; expected a non-empty str, or an int.")
    elif isinstance(params, Sequence) and not isinstance(params, str | bytes):
        kind = "tuple" if isinstance(params, tuple) else "list"
        keys, values = tuple(getattr(params, "_fields", range(len(params)))), list(params)
        if values and isinstance(values[0], Mapping) and "params" in values[0]:
            raise ConfigError(
                "these are PyTorch's parameter groups; give all parameters, and groups=[fastopt.Group(...)]."
            )
    elif isinstance(params, int | float | complex) and not isinstance(params, np.generic):
        raise ConfigError(
            f"{where}: got a {type(params).__name__}, which cannot change in place; expected an array, as "
            f"numpy.array({params}) gives, or a dict, list or tuple of arrays."
        )
    elif isinstance(params, set | frozenset | Iterator | str | bytes) or params is None:
        raise ConfigError(
            f"{where}: got a {type(params).__name__}; expected an array, or a dict, list or tuple of arrays."
        )
    else:
        return Tree("leaf"), [params]
    if not values:
        raise ConfigError(f"{where}: the {type(params).__name__} is empty; expected at least one array.")
    dot = f"{prefix}." if prefix else ""
    parts = [survey(v, f"{dot}{k}") for k, v in zip(keys, values, strict=True)]
    return Tree(kind, keys, tuple(p[0] for p in parts)), [leaf for p in parts for leaf in p[1]]


# -------------------------------------------------------------------- arrays
_HOST = (1, 3, 8, 11, 13)  # DLPack's devices whose memory a CPU reads: its own, pinned, Metal's, managed


def foreign(x: Any, name: str, wrong: type[FastoptError] = ArrayTypeError) -> Any:
    """A NumPy view of another library's array on the CPU: PyTorch, JAX, TensorFlow, buffers, anything with DLPack."""
    if isinstance(x, np.ndarray):
        return x
    kind = getattr(getattr(x, "device", None), "type", "cpu")
    if kind != "cpu" or hasattr(x, "__cuda_array_interface__") or _dlpack_device(x) not in _HOST:
        raise DeviceError(f"`{name}` lives on a GPU ({type(x).__name__}); expected an array in host memory.")
    x = x.detach() if hasattr(x, "detach") else x  # a PyTorch tensor that requires grad refuses to share its memory
    try:
        if (found := codecs.tensor(x)) is not None and found.dtype != np.uint16:  # codes would pass for integers
            return found
        for attribute in ("__array_interface__", "__array__", "__dlpack__"):
            if hasattr(x, attribute):
                return np.from_dlpack(x) if attribute == "__dlpack__" else np.asarray(x)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        remedy = ". Install ml_dtypes." if str(getattr(x, "dtype", "")) == "torch.bfloat16" else ""
        raise wrong(f"`{name}`: NumPy cannot read this {type(x).__name__}: {error}{remedy}") from error
    if isinstance(x, np.generic | str | bytes | list | tuple | dict):
        return x
    try:
        return np.asarray(memoryview(x))
    except (TypeError, ValueError, BufferError):
        return x


def _dlpack_device(x: Any) -> int:
    ask = getattr(x, "__dlpack_device__", None)
    return 1 if ask is None else int(ask()[0])


def parameter(x: Any, name: str) -> np.ndarray:
    """`x` as an array that a kernel can update in place. Raises `ArrayTypeError` with the remedy."""
    floats = "float32, float64, float16 or bfloat16"

    def refuse(what: str, remedy: str) -> ArrayTypeError:
        return ArrayTypeError(f"parameter `{name}` {what}; {remedy}.")

    if isinstance(x, np.generic):
        raise refuse(f"is a {type(x).__name__}, a number that cannot change in place", "pass numpy.array(x)")
    a = foreign(x, name)
    if not isinstance(a, np.ndarray):
        raise refuse(f"is a {type(x).__name__}", f"expected a NumPy array of {floats}")
    if type(a) is not np.ndarray and not isinstance(a, np.memmap):
        raise refuse(f"is a {type(a).__name__}, a subclass with rules of its own", "pass numpy.asarray(x), or its data")
    if a is not x and not np.may_share_memory(a, foreign(x, name)):
        raise refuse(f"is a {type(x).__name__} that hands out copies", "pass a NumPy array that you own")
    if not codecs.is_half(a.dtype) and a.dtype.newbyteorder("=") not in FLOATS:
        remedy = ": x.astype(numpy.float32)" if a.dtype.kind in "fiub" else ""
        raise refuse(f"has dtype {a.dtype}", f"expected {floats}{remedy}")
    if not a.dtype.isnative:
        raise refuse(f"has byte-swapped dtype {a.dtype.str}", "convert it: x.astype(x.dtype.newbyteorder('='))")
    if not a.flags.c_contiguous:
        raise refuse(
            f"of shape {a.shape} and strides {a.strides} is not C-contiguous",
            "pass numpy.ascontiguousarray(x), or let fastopt.pack copy it",
        )
    if not a.flags.aligned:
        raise refuse(f"starts at an address that is no multiple of {a.itemsize}", "pass x.copy()")
    if not a.flags.writeable:
        raise refuse("is read-only", "pass a writable copy: x.copy()")
    return a


def output(x: Any, name: str) -> np.ndarray | None:
    """`x` as an array that a kernel can write; None for one that none can. Raises `ConfigError`."""
    a: Any = foreign(x, name, ConfigError)
    return a if isinstance(a, np.ndarray) and storable(a.dtype) and a.flags.carray else None


def storable(dtype: np.dtype) -> bool:
    """Is it one that kernels read and write as it is?"""
    return dtype in FLOATS or (codecs.is_half(dtype) and dtype.isnative)


def gradient(x: Any, like: np.ndarray, name: str) -> np.ndarray:
    """`x` as an array that a kernel can read beside `like`: itself where possible, else a plain copy."""
    coded = codecs.tensor(x) if type(x) is not np.ndarray else None
    g = foreign(x, f"gradient of {name}", GradientError) if coded is None else coded
    if isinstance(g, float | int | np.floating) and like.ndim == 0:
        g = np.asarray(g, like.dtype)
    if not isinstance(g, np.ndarray) or isinstance(g, np.ma.MaskedArray):
        found = type(x).__name__
        raise GradientError(
            f"gradient of `{name}`: got a {found}; expected an array of shape {like.shape}: numpy.asarray."
        )
    half = coded is not None or codecs.is_half(g.dtype)
    if not half and g.dtype.newbyteorder("=") not in FLOATS:
        raise GradientError(
            f"gradient of `{name}`: dtype {g.dtype}; expected float32, float64, float16 or bfloat16, as "
            f"g.astype({like.dtype}) gives."
        )
    if g.shape != like.shape:
        raise GradientError(f"gradient of `{name}`: shape {g.shape}; expected {like.shape}, the parameter's.")
    return np.require(np.asarray(g), g.dtype if g.dtype.isnative else g.dtype.newbyteorder("="), ("C", "A"))


def span(array: np.ndarray) -> tuple[int, int]:
    """The address of an array's first byte, and of the one after its last."""
    return array.ctypes.data, array.ctypes.data + array.nbytes


def check_overlap(spans: Sequence[tuple[int, int]], names: tuple[str, ...]) -> None:
    """Raise `ConfigError` if two parameters share memory: a kernel would update the shared part twice."""
    if shared := overlap([(*span, n) for span, n in zip(spans, names, strict=True)]):
        raise ConfigError(
            f"parameters `{shared[0]}` and `{shared[1]}` share memory; give each array once, or a copy of it."
        )


def overlap(spans: Iterable[tuple[int, int, str]]) -> tuple[str, str] | None:
    """The names of two spans (first byte, the one after the last, name) that overlap, if there are any."""
    found = sorted(s for s in spans if s[0] < s[1])
    return next(((first, second) for (_, end, first), (start, _, second) in pairwise(found) if start < end), None)


def copied(params: Any) -> Any:
    """The same structure, of new NumPy arrays."""
    tree, arrays = survey(params)
    return tree.build(iter([np.array(foreign(a, n)) for a, n in zip(arrays, tree.names(), strict=True)]))


def assign(params: Any, source: Any, name: str = "params") -> None:
    """Copy `source` into the arrays of `params`, of the same structure, or raise `ConfigError` and change nothing."""
    (to, arrays), (tree, values) = survey(params), survey(source)
    names = to.names()
    if tree.names() != names:
        raise ConfigError(f"{name}: has {listing(tree.names())}; the parameters are {listing(names)}.")
    pairs = [(foreign(a, n), np.asarray(foreign(v, n))) for a, v, n in zip(arrays, values, names, strict=True)]
    for (array, value), path in zip(pairs, names, strict=True):
        if array.shape != value.shape:
            raise ConfigError(f"{name}: `{path}` has shape {value.shape}; the parameter has {array.shape}.")
    for array, value in pairs:
        array[...] = value


def zeros(size: int, dtype: Any) -> np.ndarray:
    """A 1-d array of zeros that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size * dtype.itemsize].view(dtype)
