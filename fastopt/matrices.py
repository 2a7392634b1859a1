"""Functions of whole matrices that a formula may call: NumPy code between two passes, on a 2-d parameter at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Work:
    """Buffers by name that functions of matrices compute in: made at the first call, kept for the length of a plan.

    A name has one buffer, as large as the largest matrix that was asked for; what it holds is whatever the last call
    left there.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Any] = {}

    def __call__(self, name: str, like: Any, shape: tuple[int, int]) -> Any:
        """An array of `shape`, of the kind and dtype of `like`."""
        size = shape[0] * shape[1]
        flat = self._buffers.get(name)
        if flat is None or flat.shape[0] < size or flat.dtype != like.dtype:
            make = getattr(like, "new_empty", None) or (lambda n: namespace(like).empty(n, dtype=like.dtype))
            flat = self._buffers[name] = make(size)
        return flat[:size].reshape(shape)


def namespace(x: Any) -> Any:
    """The module of functions for an array: numpy, cupy, torch, ..."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    return sys.modules[type(x).__module__.partition(".")[0]]


@dataclass(frozen=True, eq=False)
class MatrixFunction:
    """`f(x, *states, *numbers)`: `x` of the parameter's shape (rows, columns), square states, then numbers.

    Attributes:
        states: the side of each square state: "rows" or "columns".
        result: does it give a matrix of the parameter's shape?
        updates: does it give new states, in order, behind the result?
        work: does it take `work=`, a `Work`?
    """

    function: Callable[..., Any]
    states: tuple[str, ...]
    result: bool
    updates: bool
    work: bool = False

    def __call__(self, *args: Any) -> Any:
        """On copies: a formula that is called with arrays changes none of them."""
        matrices = [np.array(a) for a in args[: 1 + len(self.states)]]
        return self.function(*matrices, *args[1 + len(self.states) :], **({"work": Work()} if self.work else {}))

    @property
    def __name__(self) -> str:  # type: ignore[override]
        return self.function.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def run(self, x: np.ndarray, states: list[np.ndarray], numbers: list[float], work: Work) -> None:
        """Call it and put what it gives into `x` and the states, where it is not there already."""
        if not x.size:  # what has no rows or no columns is not worth a thought in every function
            return
        with np.errstate(all="ignore"):  # NaN and infinity pass silently, as through kernels
            given = self.function(x, *states, *numbers, **({"work": work} if self.work else {}))
        given = given if isinstance(given, tuple) else (given,)
        for target, new in zip([x] * self.result + states * self.updates, given, strict=True):
            if new is not target:
                target[...] = new


def matrix_function(
    *, states: tuple[str, ...] = (), result: bool = True, updates: bool = False, work: bool = False
) -> Callable[[Callable[..., Any]], MatrixFunction]:
    """Let formulas call a function of matrices, see `MatrixFunction`; it may overwrite what it is given."""
    return lambda function: MatrixFunction(function, states, result, updates, work)


class MatrixCall(NamedTuple):
    """A call in a lowered rule: after a pass, for every parameter of a launch in turn."""

    function: MatrixFunction
    scratch: str  # the buffer that holds `x`, and then the result
    states: tuple[str, ...]
    numbers: tuple[str, ...]  # columns of `hyper`, or literals
