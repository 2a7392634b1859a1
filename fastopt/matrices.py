"""Functions of whole matrices that a formula may call: NumPy code between two passes, on a 2-d parameter at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class MatrixFunction:
    """`f(x, *states, *numbers)`: `x` of the parameter's shape (rows, columns), square states, then numbers.

    Attributes:
        states: the side of each square state: "rows" or "columns".
        result: does it give a matrix of the parameter's shape?
        updates: does it give new states, in order, behind the result?
    """

    function: Callable[..., Any]
    states: tuple[str, ...]
    result: bool
    updates: bool

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    @property
    def __name__(self) -> str:  # type: ignore[override]
        return self.function.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def run(self, x: np.ndarray, states: list[np.ndarray], numbers: list[float]) -> None:
        """Call it and put what it gives into `x` and the states, where it is not there already."""
        given = self.function(x, *states, *numbers)
        given = given if isinstance(given, tuple) else (given,)
        for target, new in zip([x] * self.result + states * self.updates, given, strict=True):
            if new is not target:
                target[...] = new


def matrix_function(
    *, states: tuple[str, ...] = (), result: bool = True, updates: bool = False
) -> Callable[[Callable[..., Any]], MatrixFunction]:
    """Let formulas call a function of matrices, see `MatrixFunction`; it may overwrite what it is given."""
    return lambda function: MatrixFunction(function, states, result, updates)


class MatrixCall(NamedTuple):
    """A call in a lowered rule: after a pass, for every parameter of a launch in turn."""

    function: MatrixFunction
    scratch: str  # the buffer that holds `x`, and then the result
    states: tuple[str, ...]
    numbers: tuple[str, ...]  # columns of `hyper`, or literals
