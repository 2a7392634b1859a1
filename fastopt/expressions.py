"""Expressions of a rule -> expressions of one element in a kernel: staged and typed."""

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt import math
from fastopt.errors import hint
from fastopt.formula import MISSING
from fastopt.matrices import MatrixFunction
from fastopt.statements import Level, Value, join
from fastopt.values import Values, call

_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


class Expressions(Values):
    """Translates expressions."""

    def truth(self, test: ast.expr) -> bool | None:
        """The value of a test that is made of switches, else None."""
        if isinstance(test, ast.Constant) and isinstance(test.value, bool):
            return test.value
        if isinstance(test, ast.Name) and test.id in self.chosen:
            return self.chosen[test.id]
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.truth(v) for v in test.values]
            decides = isinstance(test.op, ast.Or)
            return decides if decides in parts else None if None in parts else not decides
        return None

    def folded(self, node: ast.expr) -> ast.expr:
        """The branch that the switches choose, where they choose."""
        while isinstance(node, ast.IfExp) and (truth := self.truth(node.test)) is not None:
            node = node.body if truth else node.orelse
        return node

    def expr(self, node: ast.expr) -> Value:
        handler: Callable[[Any], Value] | None = getattr(self, f"on_{type(node).__name__}", None)
        if handler is None:
            self.source.refuse(node, f"contains `{ast.unparse(node)}`; a formula is arithmetic on single numbers.")
        return handler(node)

    def on_Constant(self, node: ast.Constant) -> Value:
        if type(node.value) not in (int, float, bool):
            self.source.refuse(node, f"contains {node.value!r}; only numbers belong in a formula.")
        return Value(node, Level.STAGED, isinstance(node.value, bool))

    def on_Name(self, node: ast.Name | ast.Attribute) -> Value:
        name = ast.unparse(node)
        if name in self.squares:
            self.source.refuse(node, f"uses `{name}`, a square matrix, outside of a function of matrices.")
        if name in self.env:
            if name in self.untouched:
                self.read.add(name)
            return self.env[name]
        value = self.source.lookup(node)
        if isinstance(value, np.floating | np.integer):
            value = value.item()
        if type(value) in (int, float):
            return Value(ast.Constant(value), Level.STAGED)
        if name == "t":
            self.source.refuse(node, "uses t, but does not take it: add `t` behind the `*`.")
        if value is MISSING:
            self.source.refuse(node, f"uses `{name}`, which is not defined.{hint(name, self.env)}")
        what = "an array; a rule sees one element of each" if isinstance(value, np.ndarray) else "not a number"
        self.source.refuse(node, f"uses `{name}`, which is {what}.")

    on_Attribute = on_Name

    def on_UnaryOp(self, node: ast.UnaryOp) -> Value:
        value = self.expr(node.operand)
        if isinstance(node.op, ast.Not):
            return value._replace(node=ast.UnaryOp(ast.Not(), self.boolean(node, value)))
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self.source.refuse(node, f"uses the operator in `{ast.unparse(node)}`; expected arithmetic.")
        inner = value.node if value.staged else self.number(value, value.level)
        return Value(ast.UnaryOp(node.op, inner), value.level)

    def on_BinOp(self, node: ast.BinOp) -> Value:
        left, right = self.expr(node.left), self.expr(node.right)
        level = join(left.level, right.level)
        # `t % interval` is for the hyperparameters; of elements it would be slow, and no paper has it
        if type(node.op) not in _ARITHMETIC and not (isinstance(node.op, ast.Mod) and level is Level.STAGED):
            self.source.refuse(
                node, f"uses the operator in `{ast.unparse(node)}`; expected one of {' '.join(_ARITHMETIC.values())}."
            )
        if level is Level.STAGED:
            power = right.node
            if (
                isinstance(node.op, ast.Sub)
                and isinstance(power, ast.BinOp)
                and isinstance(power.op, ast.Pow)
                and isinstance(left.node, ast.Constant)
                and left.node.value == 1
                and isinstance(power.right, ast.Name)
                and power.right.id == "t"
            ):
                return Value(call("bias_correction_", power.left, power.right), level)
            return Value(ast.BinOp(left.node, node.op, right.node), level)
        if isinstance(node.op, ast.Div) and right.level < level:  # a division per element becomes a product
            one = ast.Constant(1) if right.staged else call("real", ast.Constant(1))
            right = right._replace(node=ast.BinOp(one, ast.Div(), right.node))
            return Value(ast.BinOp(self.number(left, level), ast.Mult(), self.number(right, level)), level)
        if isinstance(node.op, ast.Pow):
            return self.power(left, right, level)
        return Value(ast.BinOp(self.number(left, level), node.op, self.number(right, level)), level)

    def power(self, base: Value, exponent: Value, level: Level) -> Value:
        n = exponent.node.value if isinstance(exponent.node, ast.Constant) else None
        if n == 0.5:
            self.functions[level].add("sqrt")
            return Value(call("sqrt", self.number(base, level)), level)
        if n in (2, 3, 4):
            base = base._replace(node=self.number(base, level), level=level)
            x = base.node if isinstance(base.node, ast.Name) else self.hold(base).node
            square = ast.BinOp(x, ast.Mult(), x)
            both = {2: square, 3: ast.BinOp(square, ast.Mult(), x), 4: ast.BinOp(square, ast.Mult(), square)}
            return Value(both[n], level)
        return Value(ast.BinOp(self.number(base, level), ast.Pow(), self.number(exponent, level)), level)

    def on_Compare(self, node: ast.Compare) -> Value:
        sides = [self.expr(e) for e in (node.left, *node.comparators)]
        level = join(*(s.level for s in sides))
        operands = [s.node if level is Level.STAGED else self.number(s, level) for s in sides]
        if bad := [o for o in node.ops if isinstance(o, ast.Is | ast.IsNot | ast.In | ast.NotIn)]:
            self.source.refuse(node, f"compares with `{type(bad[0]).__name__}`; expected < <= > >= == !=.")
        return Value(ast.Compare(operands[0], node.ops, operands[1:]), level, True)

    def on_BoolOp(self, node: ast.BoolOp) -> Value:
        values = [self.expr(v) for v in node.values]
        level = join(*(v.level for v in values))
        tests = [self.test(node, v, level) for v in values]
        if level is Level.STAGED:
            return Value(ast.BoolOp(node.op, tests), level, True)
        joined = tests[0]
        for test in tests[1:]:  # `&` and `|` of bools do not branch
            joined = ast.BinOp(joined, ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr(), test)
        return Value(joined, level, True)

    def on_IfExp(self, node: ast.IfExp) -> Value:
        if (chosen := self.folded(node)) is not node:
            return self.expr(chosen)
        asked, yes, no = self.expr(node.test), self.expr(node.body), self.expr(node.orelse)
        level = join(asked.level, yes.level, no.level)
        test = self.test(node, asked, level)
        if level is Level.STAGED:
            return Value(ast.IfExp(test, yes.node, no.node), level, yes.boolean and no.boolean)
        return Value(ast.IfExp(test, self.number(yes, level), self.number(no, level)), level)

    def on_Call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id in self.env:
            self.source.refuse(node, f"calls `{node.func.id}`, which is a number here.")
        if isinstance(function := self.source.lookup(node.func), MatrixFunction):
            return self.matrix_call(node, function)
        name = self.source.called(node)
        if name == "where":
            return self.on_IfExp(ast.copy_location(ast.IfExp(*node.args), node))
        if name == "size" or name in math.REDUCTIONS:
            return self.reduction(node, name)
        if name == "normal":
            return self.normal(node)
        values = [self.expr(a) for a in node.args]
        level = join(*(v.level for v in values))
        if level is Level.STAGED:
            return Value(call(name, *(v.node for v in values)), level, name == "isfinite")
        if name == "square":
            return self.power(values[0], Value(ast.Constant(2), Level.STAGED), level)
        self.functions[level].add(name)
        return Value(call(name, *(self.number(v, level) for v in values)), level, name == "isfinite")

    def normal(self, node: ast.Call) -> Value:
        """A random number for each element, by a key that a chunk computes."""
        like, seed = (self.expr(a) for a in node.args)
        if like.level is not Level.ELEMENT or not seed.staged:
            self.source.refuse(node, f"has `{ast.unparse(node)}`; expected normal(p, seed), the seed a hyperparameter.")
        key = f"noise{len(self.noises)}"
        self.noises[key] = ast.unparse(self.number(seed, Level.ELEMENT))
        return Value(call("normal", ast.Name(key), ast.Name("i")), Level.ELEMENT)

    def reduction(self, node: ast.Call, name: str) -> Value:
        """A call of total, mean, norm, rms or size."""
        raise NotImplementedError

    def matrix_call(self, node: ast.Call, f: MatrixFunction) -> Value:
        """A call of a function of matrices."""
        raise NotImplementedError
