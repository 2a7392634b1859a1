"""`copy_out`: arrays of other dtypes that a step writes beside the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.errors import ConfigError, DeviceError, GradientError
from fastopt.params import FLOATS, Tree, foreign, overlap


def survey(
    given: Any, tree: Tree, names: Sequence[str], owned: Sequence[Any], span: Callable[[Any], tuple[int, int]]
) -> list[Any]:
    """The arrays that a step copies parameters into, None where there is none. Raises `ConfigError`."""
    if given is None:
        return [None] * len(names)
    if any(not isinstance(a, np.ndarray) for a in owned):
        raise DeviceError("copy_out is for parameters in host memory.")
    try:
        leaves = tree.leaves(given)
    except GradientError as error:
        raise ConfigError(f"copy_out: {str(error).replace('gradient', 'array')}") from error
    found: list[Any] = []
    for x, name, like in zip(leaves, names, owned, strict=True):
        a: Any = None if x is None else foreign(x, f"copy_out of {name}", ConfigError)
        if x is not None:
            usable = isinstance(a, np.ndarray) and (a.dtype in FLOATS or codecs.is_half(a.dtype)) and a.flags.carray
            if not usable or a.shape != like.shape or not a.dtype.isnative:
                what = f"{a.dtype} {a.shape}" if isinstance(a, np.ndarray) else type(x).__name__
                raise ConfigError(
                    f"copy_out of `{name}`: {what}; expected a writable, C-contiguous array of shape {like.shape} and "
                    "dtype float32, float64, float16 or bfloat16."
                )
        found.append(a)
    spans = [(*span(a), f"copy_out of {n}") for a, n in zip(found, names, strict=True) if a is not None]
    if shared := overlap([*spans, *((*span(a), n) for a, n in zip(owned, names, strict=True))]):
        raise ConfigError(f"`{shared[0]}` and `{shared[1]}` share memory; a copy needs memory of its own.")
    return found
