"""Calls that look at all elements of a parameter: statements whose value is one number, known a pass later."""

import ast
from functools import cached_property

from fastopt import math
from fastopt.expressions import Expressions, call
from fastopt.statements import Level, Value


class Reductions(Expressions):
    """`total`, `mean`, `norm`, `rms` and `size` in a formula."""

    def reduction(self, node: ast.Call, name: str) -> Value:
        if name == "size":
            if not (isinstance(node.args[0], ast.Name) and node.args[0].id in ("p", "g", *self.rule.state)):
                self.source.refuse(node, f"asks for `{ast.unparse(node)}`; expected size(p).")
            return self.size()
        over = node.args[1].value if len(node.args) == 2 and isinstance(node.args[1], ast.Constant) else "parameter"
        if over not in ("parameter", "all") or (len(node.args) == 2 and not isinstance(node.args[1], ast.Constant)):
            self.source.refuse(node, f"sums over `{ast.unparse(node.args[1])}`; expected 'parameter' or 'all'.")
        value = self.expr(node.args[0])
        if value.level is not Level.ELEMENT:
            self.source.refuse(node, f"has `{ast.unparse(node)}`, of what is the same number for every element.")
        summed = self.number(value, Level.ELEMENT)
        if name in ("norm", "rms"):  # float32 squares overflow; in float64 they are exact
            x = self.hold(Value(summed, Level.ELEMENT)).node if not isinstance(summed, ast.Name) else summed
            summed = ast.BinOp(call("wide", x), ast.Mult(), call("wide", x))
        slot = self.slots[node.lineno, node.col_offset]
        result = Value(self.statements.add(f"total{slot}", summed, Level.REDUCED, (slot, over)), Level.REDUCED)
        if name in ("mean", "rms"):
            if over == "all":
                self.source.refuse(node, f"has `{ast.unparse(node)}`; write total(..., 'all') and what to divide by.")
            result = Value(ast.BinOp(result.node, ast.Div(), self.size().node), Level.REDUCED)
        if name in ("norm", "rms"):
            self.functions[Level.REDUCED].add("sqrt")
            result = Value(call("sqrt", result.node), Level.REDUCED)
        return result

    def size(self) -> Value:
        if "count" not in self.statements.latest:
            self.statements.add("count", None, Level.REDUCED)
        return Value(ast.Name("count"), Level.REDUCED)

    @cached_property
    def slots(self) -> dict[tuple[int, int], int]:
        """Place in the source of each reduction -> its number, the same for every choice of switches."""
        calls = [n for n in ast.walk(self.source.tree) if isinstance(n, ast.Call)]
        places = [(n.lineno, n.col_offset) for n in calls if self.source.meant(n) in math.REDUCTIONS]
        return {place: k for k, place in enumerate(sorted(places))}
