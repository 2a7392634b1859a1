"""What a launch needs for the length of a step: matrices, sums, numbers between passes. Sized once, with the plan."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import codecs
from fastopt.blocks import BLOCK
from fastopt.lowered import Lowered
from fastopt.matrices import MatrixCall, MatrixFunction, Work
from fastopt.params import zeros
from fastopt.statements import Level
from fastopt.targets import loops, text
from fastopt.work import CHUNK

APART = 1024  # float32 numbers, a page, between what two tasks write: processors fetch more than they are asked for


class Product(NamedTuple):
    """A function of matrices and what it is called with, a parameter after the other."""

    function: MatrixFunction
    numbers: list[tuple[int, float]]  # (column of `hyper`, 0), or (-1, a literal)
    operands: list[tuple[np.ndarray, list[np.ndarray], int]]  # the matrix, square states, row of `hyper`
    work: Work

    def run(self, hyper: np.ndarray) -> None:
        for x, states, row in self.operands:
            numbers = [float(hyper[row, k]) if k >= 0 else value for k, value in self.numbers]
            self.function.run(x, states, numbers, self.work)


def step(lowered: Lowered, array: Any, chunk: int = CHUNK) -> int:
    """Elements of a chunk: `chunk`. One of a rule that looks at rows holds whole ones, and there are at most 64.

    Each chunk has its part of the sums of columns, so that many times a row is what they take.
    """
    if not lowered.shaped:
        return chunk
    rows, columns = array.shape
    return max(1, columns) * max(1, CHUNK // max(1, columns), -(-rows // 64))


def buffers(lowered: Lowered, arrays: Sequence[Any], zeros: Callable[[int, Any], Any] = zeros) -> list[dict[str, Any]]:
    """Per parameter, the buffers by name that live for a step; see `Lowered.between` for all but the matrices."""
    shapes = {s: [a.shape for a in arrays] for s in lowered.scratch}
    for name, level in lowered.between.items():
        if level is not Level.ELEMENT:
            sides = [a.shape[level is Level.COLUMN] for a in arrays]
            parts = [max(1, -(-a.size // step(lowered, a))) if name.startswith("partial") else 1 for a in arrays]
            shapes[name] = [(n * k,) for n, k in zip(sides, parts, strict=True)]
    found: list[dict[str, Any]] = [{} for _ in arrays]
    for name, sizes in shapes.items():
        ends = np.cumsum([0, *(int(np.prod(s)) for s in sizes)])
        flat = zeros(int(ends[-1]), np.float64 if name in lowered.between else codecs.of(arrays[0].dtype).real)
        for mine, shape, i, j in zip(found, sizes, ends, ends[1:], strict=False):
            mine[name] = flat[i:j].reshape(shape)
    return found


def plain(lowered: Lowered, array: Any, key: int) -> dict[str, int]:
    """The numbers among the addresses."""
    shape = {"columns": array.shape[1], "step": step(lowered, array)} if lowered.shaped else {}
    return {"g": 0, "key": key, **shape}


def tables(
    lowered: Lowered, work: np.ndarray, arrays: Sequence[np.ndarray], n_tasks: int, reduced: np.ndarray
) -> tuple[np.ndarray, ...]:
    """What kernels with numbers take besides, if there are any: see their signature in `targets.cpu`."""
    if not lowered.slots:
        return ()
    totals = text.totals(lowered)
    # no cache line is shared by two tasks: they would wait for each other at every block
    lanes = zeros(n_tasks * totals * loops.BLOCK, np.float64).reshape(n_tasks, totals, loops.BLOCK)
    return parameters(work, arrays), reduced, np.zeros((len(work), totals)), lanes


def rooms(lowered: Lowered, n_tasks: int) -> dict[str, np.ndarray]:
    """ "rooms", what kernels of state in 8 bits take besides, and "room", the memory it holds addresses of."""
    if not lowered.scales:
        return {}
    room = zeros(n_tasks * (len(lowered.scales) * BLOCK + APART), np.float32)
    starts = np.arange(n_tasks) * (room.nbytes // n_tasks) + room.ctypes.data
    return {"rooms": starts.astype(np.uint64), "room": room}


def parameters(work: np.ndarray, arrays: Sequence[Any]) -> np.ndarray:
    """A row per parameter: segment, row of `hyper`, its chunks' bounds, elements, rows, columns."""
    first = np.flatnonzero(work[:, 0] == 0)
    bounds = np.append(first, len(work))
    sizes = np.array([(a.size, *(a.shape if a.ndim == 2 else (0, 0))) for a in arrays])
    return np.column_stack([work[first, 2:], bounds[:-1], bounds[1:], sizes]).astype(np.uint64)


def products(
    lowered: Lowered,
    columns: Sequence[str],
    rows: Sequence[int],
    states: Sequence[dict[str, np.ndarray]],
    matrices: Sequence[dict[str, np.ndarray]],
) -> list[list[Product]]:
    """The calls of functions of matrices after each pass; `columns` of `hyper`, and per parameter its row there."""

    def product(call: MatrixCall) -> Product:
        numbers = [(columns.index(c), 0.0) if c in columns else (-1, float(c)) for c in call.numbers]
        squares = [[mine[s] for s in call.states] for mine in states]
        operands = zip([m[call.scratch] for m in matrices], squares, rows, strict=True)
        return Product(call.function, numbers, list(operands), work)

    work = Work()  # one call at a time

    return [[product(call) for call in q.matrices] for q in lowered.passes]
