"""How a number is stored: the codecs, by name, and the arrays that hold their codes.

A kernel computes in float32 or float64. A buffer may hold its numbers in fewer bytes: then each one is decoded where it
is loaded and encoded where it is stored, and no rule knows. `float16` is NumPy's; for `bfloat16`, the upper half of a
float32, arrays have the dtype of the package ml_dtypes if it is installed, else they are uint16, the codes as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fastopt import blocks


@dataclass(frozen=True)
class Codec:
    """How the elements of a buffer are stored, and what a kernel makes of them."""

    name: str  # also of the pointer to such a buffer: see `targets.pointers`
    itemsize: int  # bytes of an element
    real: np.dtype  # of arithmetic on a decoded number
    coded: bool = True  # is a number decoded when it is loaded, and encoded when it is stored?
    blocked: bool = False  # or are they decoded and encoded block by block, around the loop over elements?

    def __str__(self) -> str:
        return self.name

    @property
    def moved(self) -> str:
        """The type as which a CUDA kernel loads and stores elements."""
        return f"uint{8 * self.itemsize}" if self.coded or self.blocked else self.name


_F4 = np.dtype(np.float32)
CODECS = {
    c.name: c
    for c in (
        Codec("float64", 8, np.dtype(np.float64), coded=False),
        Codec("float32", 4, _F4, coded=False),
        Codec("float16", 2, _F4),
        Codec("bfloat16", 2, _F4),
        Codec("q8", 1, _F4, coded=False, blocked=True),
    )
}
# Kinds of arrays -> codec. Only codes of a bfloat16 are uint16 here: `params` refuses integers.
_OF_CHAR = {"d": "float64", "f": "float32", "e": "float16", "E": "bfloat16", "H": "bfloat16"}


@cache
def of(what: Any) -> Codec:
    """The codec of that name, of a NumPy dtype, or of the character of one."""
    if isinstance(what, Codec):
        return what
    char = what.char if isinstance(what, np.dtype) else what
    return CODECS[_OF_CHAR.get(char, char)]


@cache
def array_dtype(name: str) -> np.dtype:
    """The dtype of arrays that hold the codes of a codec."""
    if name != "bfloat16":
        return np.dtype(np.uint8 if name == "q8" else name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return np.dtype(np.uint16)
    return np.dtype(bfloat16)


def is_half(dtype: np.dtype) -> bool:
    """Is it float16, in any byte order, or bfloat16?"""
    return dtype.char == "e" or dtype.name == "bfloat16"


def widened(a: Any) -> Any:
    """An array of one of our codecs with its numbers decoded: itself if they are not coded, else one on the host."""
    codec = of(a.dtype)
    if not codec.coded:
        return a
    a = np.asarray(a)
    return (a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a.astype(np.float32)


def tensor(x: Any) -> np.ndarray | None:
    """The memory of a PyTorch bfloat16 tensor on the CPU, which NumPy does not know; None for anything else."""
    if str(getattr(x, "dtype", "")) != "torch.bfloat16" or getattr(x.device, "type", "") != "cpu":
        return None
    import torch

    return x.detach().view(torch.int16).numpy().view(array_dtype("bfloat16"))


def alike(a: np.dtype, b: np.dtype) -> bool:
    """Do arrays of the two hold the same, bit by bit? Codes of bfloat16 are uint16 where ml_dtypes is missing."""
    return a == b or {a.name, b.name} == {"uint16", "bfloat16"}


def write(state: Mapping[str, np.ndarray], name: str, values: np.ndarray) -> None:
    """Encode numbers, to nearest, into a state that is stored in fewer bits."""
    codes = state[name]
    if f"{name}_scale" in state:
        blocks.write(codes, state[f"{name}_scale"], values)
    elif codes.dtype == np.uint16:
        bits = values.astype(np.float32).view(np.uint32)
        codes[...] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        codes[...] = values
