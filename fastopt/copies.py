"""`copy_out`: arrays of other dtypes that a step writes beside the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastopt.errors import ConfigError, GradientError
from fastopt.params import Tree, overlap


def survey(given: Any, tree: Tree, names: Sequence[str], owned: Sequence[Any], place: Any) -> list[Any]:
    """The arrays that a step copies parameters into, None where there is none. Raises `ConfigError`.

    They are where the parameters are, else `DeviceError` is raised.
    """
    if given is None:
        return [None] * len(names)
    try:
        leaves = tree.leaves(given)
    except GradientError as error:
        raise ConfigError(f"copy_out: {str(error).replace('gradient', 'array')}") from error
    found: list[Any] = []
    for x, name, like in zip(leaves, names, owned, strict=True):
        a: Any = None if x is None else place.output(x, f"copy_out of {name}")
        if x is not None and (a is None or a.shape != like.shape):
            what = f"{x.dtype} {tuple(x.shape)}" if hasattr(x, "dtype") and hasattr(x, "shape") else type(x).__name__
            raise ConfigError(
                f"copy_out of `{name}`: {what}; expected a writable, C-contiguous array of shape {like.shape} and "
                "dtype float32, float64, float16 or bfloat16."
            )
        found.append(a)
    spans = [(*place.span(a), f"copy_out of {n}") for a, n in zip(found, names, strict=True) if a is not None]
    if shared := overlap([*spans, *((*place.span(a), n) for a, n in zip(owned, names, strict=True))]):
        raise ConfigError(f"`{shared[0]}` and `{shared[1]}` share memory; a copy needs memory of its own.")
    return found
