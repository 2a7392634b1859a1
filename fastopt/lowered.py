"""What a rule becomes when it is lowered: passes of text, columns, states and the buffers that kernels read."""

import re
from dataclasses import dataclass, replace

from fastopt.matrices import MatrixCall
from fastopt.passes import Number, Pass
from fastopt.statements import NUMBERS, VECTORS, Level
from fastopt.values import Column

COPY = "copy_"  # the buffer beside the parameter that is written and never read


@dataclass(frozen=True)
class Lowered:
    """A rule with its switches chosen, as text of scalar statements for one element."""

    state: tuple[str, ...]  # the states that exist with these switches
    levels: tuple[tuple[str, Level], ...]  # of those that are no buffer of the parameter's shape and dtype
    columns: tuple[Column, ...]
    passes: tuple[Pass, ...]
    functions: frozenset[str]  # what the statements on elements call
    number_functions: frozenset[str]  # what the statements on numbers call
    slots: int  # columns of `reduced`: the rule's totals, then every number
    square: tuple[tuple[str, str], ...]  # (state, "rows" or "columns"): those that are square matrices of that side
    noises: tuple[tuple[str, str], ...]  # (key of random numbers, its seed)
    stored: tuple[tuple[str, str], ...] = ()  # (buffer, codec) of those that are not stored as p is, see `codecs.py`
    rounded: tuple[str, ...] = ()  # those of them whose numbers are rounded up or down by chance
    master: str = ""  # how a parameter in 16 bits is known better, see `targets.masters`
    touched: str = ""  # for gradients of rows: "lazy", "exact", "closed" or "row", see `touched.py`

    def around(self, mends: bool, zeroes: bool, copy: str) -> "Lowered":
        """The same with more done in its passes.

        mends: elements of gradients that are not finite count as 0; zeroes: the pass that reads gradients last sets
        them to 0; copy: the codec of another array that is given the new parameter, or "".
        """
        passes = list(self.passes)
        last = max(k for k, q in enumerate(passes) if k == 0 or any(b == "g" for _, b in q.loads))
        for k, q in enumerate(passes):
            mended = tuple(f"{local} = mend({local})" for local, b in q.loads if b == "g" and mends)
            new = tuple((COPY, value) for b, value in q.stores if b == "p" and copy)
            stores = (*q.stores, *new, *((("g", "0"),) if zeroes and k == last else ()))
            passes[k] = replace(q, body=mended + q.body, stores=stores)
        return replace(self, passes=tuple(passes), stored=self.stored + ((COPY, copy),) * bool(copy))

    @property
    def looks(self) -> int:
        """How many passes, the first ones, leave parameters, state and gradients as they are."""
        if self.touched:  # its passes are one loop, row after row
            return 0
        lasting = {"p", "g", *self.state}
        writes = [q.kept or q.matrices or lasting & {b for b, _ in q.stores} for q in self.passes]
        return next(k for k, w in enumerate(writes) if w)

    @property
    def norm(self) -> Number | None:
        """The total that is the sum of the gradient's own squares, if a pass that only looks has it."""
        for q in self.passes[: self.looks]:
            same = {local for local, b in q.loads if b == "g"}
            for line in q.body:
                name, _, value = line.partition(" = ")
                same = same | {name} if value in same else same - {name}
            for n, value in q.totals:
                square = re.fullmatch(r"wide\((\w+)\) \* wide\((\w+)\)", value)
                if n.level is Level.REDUCED and n.total and square and {*square.groups()} <= same:
                    return n
        return None

    @property
    def numbers(self) -> dict[str, Level]:
        """State in float64, without elements -> REDUCED, ROW or COLUMN: a number per parameter, row or column."""
        return {s: level for s, level in self.levels if level in NUMBERS}

    @property
    def shaped(self) -> bool:
        """Does it look at rows or columns?"""
        return any(level in VECTORS for level in self.between.values())

    @property
    def sided(self) -> bool:
        """Does it need a matrix: for a function of one, for its rows and columns, or for their number?"""
        asked = any(n.name in ("rows", "columns") for q in self.passes for n in q.numbers)
        return bool(self.matrices) or self.shaped or asked

    @property
    def squares(self) -> dict[str, str]:
        """Square state -> its side."""
        return dict(self.square)

    @property
    def matrices(self) -> tuple[MatrixCall, ...]:
        """All calls of functions of matrices."""
        return tuple(call for q in self.passes for call in q.matrices)

    @property
    def scratch(self) -> tuple[str, ...]:
        """Buffers of the parameter's shape that live for a step."""
        return tuple(call.scratch for call in self.matrices)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Columns of the table of addresses."""
        own = (s for s in self.state if s not in self.squares)
        more = ("master",) * bool(self.master) + (COPY,) * (COPY in dict(self.stored))
        return ("p", "g", *own, *self.scales, *more, *self.scratch, *self.between)

    @property
    def scales(self) -> dict[str, str]:
        """float32 buffers with a number per block -> the buffer in 8 bits whose blocks they are."""
        return {f"{b}_scale": b for b, codec in self.stored if codec == "q8"}

    @property
    def between(self) -> dict[str, Level]:
        """float64 buffers that live for a step -> ROW or COLUMN, what they have a value for; ELEMENT: not a buffer.

        `vector<slot>` holds a number per row or column, `partial<total>` a chunk's part of the sums of columns;
        instead of an address, "columns" is the length of a row and "step" that of a chunk, in elements, "key" a number
        for the parameter that its random numbers start from. For what gradients of rows need see `touched.py`.
        """
        vectors = [n for q in self.passes for n in q.numbers if n.level in VECTORS and not self.touched]
        parts = {f"partial{n.total[0]}": n.level for n in vectors if n.total and n.total[1] == "column"}
        names = ("columns", "step") * bool(vectors) + ("key",) * bool(self.noises or self.rounded)
        names += ("columns", "places", "order", "sums") * bool(self.touched)
        names += ("steps",) * (self.touched in ("exact", "closed", "row"))
        names += ("now", "present", "end") * (self.touched in ("exact", "closed"))
        names += ("zeros",) * (self.touched == "exact") + ("products",) * (self.touched == "closed")
        plain = dict.fromkeys(names, Level.ELEMENT)
        return {**{n.vector: n.level for n in vectors}, **parts, **plain}

    @property
    def timed(self) -> int:
        """How many columns change with t; they are the last ones."""
        return sum(c.timed for c in self.columns)
