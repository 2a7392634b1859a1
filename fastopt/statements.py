"""What a rule's body became: statements in order, each knowing which others it reads."""

from __future__ import annotations

import ast
from enum import IntEnum
from typing import NamedTuple

from fastopt.matrices import MatrixCall


class Level(IntEnum):
    """How often a value exists: once a step and group, once a parameter, its rows or columns, or once an element."""

    STAGED = 0  # of hyperparameters and t: a column of `hyper`, computed in float64 before any kernel runs
    REDUCED = 1  # of totals and of states that are one number: computed in float64 between two passes
    ROW = 2  # so are these, a number per row
    COLUMN = 3
    ELEMENT = 4
    MATRIX = 5  # a state of a shape of its own, which only functions of matrices read and write


VECTORS = (Level.ROW, Level.COLUMN)
NUMBERS = (Level.REDUCED, *VECTORS)  # computed between two passes


def join(*levels: Level) -> Level:
    """The level of what is computed from values of these levels."""
    return Level.ELEMENT if {*VECTORS} <= {*levels} else max(levels)


class Value(NamedTuple):
    """What an expression of the rule became."""

    node: ast.expr
    level: Level
    boolean: bool = False

    @property
    def staged(self) -> bool:
        return self.level is Level.STAGED


class Statement(NamedTuple):
    """`name = node`; or a leaf without `node`: a buffer's element or number, as it is when the step begins."""

    name: str
    node: ast.expr | None
    level: Level
    reads: tuple[int, ...] = ()  # positions of the statements it reads
    depth: int = 0  # how many totals, one after another, must be known before it
    total: tuple[int, str] | None = None  # (slot, over): `node` is summed over elements, and this is the sum
    inner: Level = Level.STAGED  # ROW or COLUMN: `node` is summed over these, and this is the sum
    buffer: str = ""  # of a leaf: the parameter, the gradient or the state it is
    matrix: MatrixCall | None = None  # `node` is its matrix, and this is the result


class Statements(list[Statement]):
    """The statements so far. Reassigned names are fine: each reader knows the assignment it means."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, int] = {}  # local -> position of the statement that gave it its present value

    def add(
        self,
        name: str,
        node: ast.expr | None,
        level: Level,
        total: tuple[int, str] | None = None,
        inner: Level = Level.STAGED,
        buffer: str = "",
        matrix: MatrixCall | None = None,
        after: int = 0,
        also: tuple[int, ...] = (),
    ) -> ast.Name:
        """Append a statement, of depth `after` at least, that reads `also` others; returns the name to read it by."""
        if level in NUMBERS and name in self.latest:
            name = f"{name}_{len(self)}"  # numbers outlive a pass, so each needs a name of its own
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if node is not None else ()
        reads = tuple(sorted({*(self.latest[n] for n in names if n in self.latest), *also}))
        depth = max((self[k].depth for k in reads if k not in also), default=0) + (
            total is not None or matrix is not None
        )
        self.latest[name] = len(self)
        self.append(Statement(name, node, level, reads, max(depth, after), total, inner, buffer, matrix))
        return ast.Name(name)
