"""Statements -> passes over memory. A pass ends where a total must be known; what it needs again it loads again."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastopt.matrices import MatrixCall
from fastopt.statements import NUMBERS, Level, Statements


@dataclass(frozen=True)
class Number:
    """A statement about a parameter, its rows or its columns, in float64, between two passes.

    Its value is kept in a slot of `reduced`, or in a vector.
    """

    name: str
    slot: int
    level: Level
    text: str  # the expression; "" for a total of elements, a state, or a count
    total: tuple[int, str] | None  # (slot, over)
    inner: Level  # ROW or COLUMN: `text` is summed over these
    state: str

    @property
    def vector(self) -> str:
        return f"vector{self.slot}"


@dataclass(frozen=True)
class Pass:
    """One look at every element: first numbers, then per element loads, statements, sums and stores."""

    earlier: tuple[Number, ...]  # those of earlier passes that `numbers` read
    numbers: tuple[Number, ...]
    kept: tuple[tuple[str, str], ...]  # (state, name) of the numbers that are states from now on
    uses: tuple[Number, ...]  # those that elements read
    loads: tuple[tuple[str, str], ...]  # (local, buffer), in the order of the buffers
    body: tuple[str, ...]  # statements on locals
    totals: tuple[tuple[Number, str], ...]  # (the sum, what to sum)
    stores: tuple[tuple[str, str], ...]  # (buffer, expression)
    matrices: tuple[MatrixCall, ...]  # called after the pass, in this order; their operands are among the stores


def cut(statements: Statements, finals: Mapping[str, int], slots: int, squares: Iterable[str]) -> tuple[Pass, ...]:
    """The passes that give every buffer its final value, which is the statement at its position in `finals`.

    `slots`: how many totals the rule names. A state is stored in the first pass that can compute it, so that later
    ones load it instead, unless they need its old value, too.
    """
    live = _reached(statements, finals.values())
    last = max(statements[k].depth - (statements[k].level is Level.MATRIX) for k in live)
    numbers = {
        k: Number(s.name, slots + n, s.level, ast.unparse(s.node) if s.node and not s.total else "", *s[5:8])
        for n, (k, s) in enumerate((k, statements[k]) for k in live if statements[k].level in NUMBERS)
    }
    elements = {b: k for b, k in finals.items() if statements[k].level is Level.ELEMENT and b not in squares}
    stored = {b: statements[k].depth for b, k in elements.items()}
    while True:
        slices = [
            _Slice(statements, q, _roots(statements, live, elements, stored, q), elements, stored)
            for q in range(last + 1)
        ]
        late = {b: q for q, s in enumerate(slices) for b in s.overwritten}
        if not late:
            break
        stored |= late
    return tuple(
        Pass(
            *_between(statements, numbers, finals, q),
            uses=tuple(numbers[k] for k in sorted(s.numbers)),
            loads=s.loads(),
            body=s.body(),
            totals=tuple((numbers[k], ast.unparse(node)) for k in s.totals if (node := statements[k].node)),
            stores=tuple((b, s.result(k)) for b, k in elements.items() if stored[b] == q)
            + tuple((m.matrix.scratch, ast.unparse(m.node)) for m in s.matrices if m.matrix and m.node),
            matrices=tuple(m.matrix for m in s.matrices if m.matrix),
        )
        for q, s in enumerate(slices)
    )


def _reached(statements: Statements, roots: Iterable[int]) -> list[int]:
    found: set[int] = set()
    todo = list(roots)
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo += statements[k].reads
    return sorted(found)


def _roots(
    statements: Statements, live: list[int], elements: Mapping[str, int], stored: Mapping[str, int], q: int
) -> tuple[list[int], list[int]]:
    """What pass q must compute: the finals it stores, and the totals and matrices that are known after it."""
    known = [k for k in live if (statements[k].total or statements[k].matrix) and statements[k].depth == q + 1]
    return [k for b, k in elements.items() if stored[b] == q], known


def _between(
    statements: Statements, numbers: Mapping[int, Number], finals: Mapping[str, int], q: int
) -> tuple[tuple[Number, ...], tuple[Number, ...], tuple[tuple[str, str], ...]]:
    """What is computed before pass q: the earlier numbers it needs, its own, and which of these become states."""
    mine = [k for k in numbers if statements[k].depth == q]
    earlier = {r for k in mine if not statements[k].total for r in statements[k].reads} - set(mine)
    kept = tuple((b, statements[k].name) for b, k in finals.items() if k in mine)
    return tuple(numbers[k] for k in sorted(earlier)), tuple(numbers[k] for k in mine), kept


class _Slice:
    """The statements on elements that one pass has to execute."""

    def __init__(
        self,
        statements: Statements,
        q: int,
        roots: tuple[list[int], list[int]],
        finals: Mapping[str, int],
        stored: Mapping[str, int],
    ):
        self.statements = statements
        self.numbers: set[int] = set()
        self.executed: set[int] = set()
        self.loaded: dict[int, str] = {}  # position -> buffer that holds its value
        self.overwritten: set[str] = set()  # buffers whose old value is needed, though an earlier pass replaced it
        self.totals = [k for k in roots[1] if statements[k].total]
        self.matrices = [statements[k] for k in roots[1] if statements[k].matrix]
        final = {k: b for b, k in finals.items() if stored[b] < q and statements[k].node is not None}
        todo = [*roots[0], *(r for k in roots[1] for r in statements[k].reads)]
        while todo:
            k = todo.pop()
            s = statements[k]
            if s.level is Level.MATRIX:
                continue
            if s.level in NUMBERS:
                self.numbers.add(k)
            elif s.matrix:
                self.loaded[k] = s.matrix.scratch
            elif s.node is None or k in final:
                self.loaded[k] = final.get(k, s.buffer)
                if s.node is None and stored.get(s.buffer, q) < q:
                    self.overwritten.add(s.buffer)
            elif k not in self.executed:
                self.executed.add(k)
                todo += s.reads
        # a local that is assigned here must not be loaded under its name before
        assigned = {statements[k].name for k in self.executed}
        names = [statements[k].name for k in self.loaded]
        self.renamed = {
            k: f"{b}_now"
            for k, b in self.loaded.items()
            if statements[k].node is not None
            and (statements[k].name in assigned or names.count(statements[k].name) > 1)
        }

    def loads(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.renamed.get(k, self.statements[k].name), b) for k, b in sorted(self.loaded.items()))

    def body(self) -> tuple[str, ...]:
        lines = []
        for k in sorted(self.executed | set(self.renamed)):
            s = self.statements[k]
            if k in self.renamed:
                lines.append(f"{s.name} = {self.renamed[k]}")
            elif s.name and s.node is not None:
                lines.append(f"{s.name} = {ast.unparse(s.node)}")
        return tuple(lines)

    def result(self, k: int) -> str:
        s = self.statements[k]
        return s.name or ast.unparse(s.node) if s.node is not None else s.name
