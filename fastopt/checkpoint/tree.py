"""Nested dicts and lists <-> JSON and tensors: an array leaves a mark, {"$tensor": its name}, behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.errors import CheckpointError

_TENSOR, _FLOAT = "$tensor", "$float"  # JSON has neither arrays nor NaN; a key "$x" of the user's becomes "$$x"
_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def split(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; its arrays are added to `tensors` under their place, as in `state/m/layer.0.weight`.

    Raises `CheckpointError` for anything but dicts with str keys, lists, tuples (which become lists), str, numbers,
    bools, None and numeric arrays.
    """
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray and not isinstance(value, np.memmap):
            raise CheckpointError(f"`{name}` is a {type(value).__name__}; save numpy.asarray(x), or its parts.")
        place = name
        while place in tensors:  # {"a/b": x, "a": {"b": y}}
            place += "'"
        tensors[place] = value
        return {_TENSOR: place}
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Mapping):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise CheckpointError(f"`{name}` has the key {odd[0]!r} ({type(odd[0]).__name__}); expected a str.")
        return {"$" * k.startswith("$") + k: split(v, f"{name}/{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [split(v, f"{name}/{k}", tensors) for k, v in enumerate(value)]
    raise CheckpointError(
        f"`{name}` is a {type(value).__name__}; a checkpoint holds dicts, lists, text, numbers and NumPy arrays. If it "
        "has a state_dict(), save that."
    )


def join(value: Any, tensors: dict[str, Any]) -> Any:
    """What `split` was given, from tensors, each of which is taken out of the dict. Raises `CheckpointError`."""
    if isinstance(value, list):
        return [join(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if not any(k.startswith("$") and not k.startswith("$$") for k in value):
        return {k[k.startswith("$") :]: join(v, tensors) for k, v in value.items()}
    ((mark, content),) = value.items() if len(value) == 1 else (("", None),)
    if mark == _TENSOR and isinstance(content, str) and content in tensors:
        return tensors.pop(content)
    if mark == _FLOAT and content in ("nan", "inf", "-inf"):
        return _ODD[content]
    raise CheckpointError(f"the file holds {str(value)[:80]!a}, which is no mark that this version of fastopt knows.")
