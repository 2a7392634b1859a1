"""Calls that look at all elements of a parameter: statements whose value is a number, or one a row or column."""

import ast
from functools import cached_property

from fastopt import math
from fastopt.expressions import Expressions
from fastopt.statements import VECTORS, Level, Value
from fastopt.values import call

# What a reduction of elements gives, and the count that a mean divides by.
_OVER = {
    "parameter": (Level.REDUCED, "count"),
    "group": (Level.REDUCED, ""),
    "all": (Level.REDUCED, ""),
    "row": (Level.ROW, "columns"),
    "column": (Level.COLUMN, "rows"),
}


class Reductions(Expressions):
    """`total`, `mean`, `norm`, `rms` and `size` in a formula."""

    def reduction(self, node: ast.Call, name: str) -> Value:
        if name == "size":
            if not (isinstance(node.args[0], ast.Name) and node.args[0].id in ("p", "g", *self.rule.state)):
                self.source.refuse(node, f"asks for `{ast.unparse(node)}`; expected size(p).")
            name = _OVER[self.over(node)][1]
            if not name:
                self.source.refuse(node, f"asks for `{ast.unparse(node)}`; expected size(p), of a parameter.")
            return self.count(name)
        over = self.over(node)
        value = self.expr(node.args[0])
        if value.level is not Level.ELEMENT and not (value.level in VECTORS and over == "parameter"):
            self.doubts.append((node, f"has `{ast.unparse(node)}`, of what is the same number for every element."))
        level, divisor = _OVER[over]
        # a name of its own: additions stand at the end of a loop, after later assignments to the names in it
        summed = self.hold(Value(self.number(value, value.level), value.level)).node
        if name in ("norm", "rms"):  # float32 squares overflow; in float64 they are exact
            summed = ast.BinOp(call("wide", summed), ast.Mult(), call("wide", summed))
        if value.level in VECTORS:
            divisor = "rows" if value.level is Level.ROW else "columns"
            result = Value(self.statements.add("x", summed, level, inner=value.level), level)
        else:
            slot = self.slots[_place(node)]
            result = Value(self.statements.add(f"total{slot}", summed, level, (slot, over)), level)
        if name in ("mean", "rms"):
            if not divisor:
                self.source.refuse(node, f"has `{ast.unparse(node)}`; write total(..., 'all') and what to divide by.")
            result = Value(ast.BinOp(result.node, ast.Div(), self.count(divisor).node), level)
        if name in ("norm", "rms"):
            self.functions[level].add("sqrt")
            result = Value(call("sqrt", result.node), level)
        return result

    def over(self, node: ast.Call) -> str:
        """What a reduction is over: the second argument, a text."""
        if len(node.args) == 1:
            return "parameter"
        given = node.args[1]
        if isinstance(given, ast.Constant) and given.value in _OVER:
            return given.value
        self.source.refuse(node, f"sums over `{ast.unparse(given)}`; expected one of {', '.join(map(repr, _OVER))}.")

    def count(self, name: str) -> Value:
        """The number of elements, rows or columns of the parameter."""
        if name not in self.statements.latest:
            self.statements.add(name, None, Level.REDUCED)
        return Value(ast.Name(name), Level.REDUCED)

    @cached_property
    def slots(self) -> dict[tuple[int, int, int], int]:
        """Place in the source of each reduction -> its number, the same for every choice of switches."""
        calls = [n for n in ast.walk(self.source.tree) if isinstance(n, ast.Call)]
        places = {_place(n) for n in calls if self.source.meant(n) in math.REDUCTIONS}
        return {place: k for k, place in enumerate(sorted(places))}


def _place(node: ast.Call) -> tuple[int, int, int]:
    """Which part of a spliced formula, line, column."""
    return getattr(node, "part", 0), node.lineno, node.col_offset
