"""Expressions of a rule -> expressions of one element in a kernel: staged and typed."""

import ast
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastopt import math
from fastopt.errors import hint
from fastopt.formula import MISSING
from fastopt.matrices import MatrixFunction
from fastopt.schema import MATRIX, Rule
from fastopt.statements import Level, Statements, Value, join

# Words of the generated kernels; a rule's local of the same name gets an underscore there.
RESERVED = frozenset(
    "work hyper addresses tasks task chunk clock last lo hi segment group i scale real tiny flush kernel np njit "
    "prange types parameters reduced partials lanes parameter first width row start rows columns j wide count "
    "clear fold noise_key key place now present zeros n_chunks n_parameters control thread threads blocks entry "
    "table column numbers sums head end rest part step whole n_elements n_rows n_columns vectors across shift "
    "down mine line narrow seats seat d block_total update".split()
)
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


class Column(NamedTuple):
    """A value per step and group: its name in the kernel and the Python expression that gives it."""

    name: str
    expression: str
    timed: bool  # does it depend on t?


class Expressions:
    """Translates expressions. `env` says what each name means at this point; `statements` grows.

    `levels` says what each state is taken for, `squares` which side those have that are matrices.
    """

    def __init__(self, rule: Rule, chosen: dict[str, bool], levels: Mapping[str, Level], squares: Mapping[str, str]):
        self.rule, self.source, self.chosen, self.squares = rule, rule.source, chosen, squares
        self.columns: dict[str, Column] = {}  # by expression
        self.statements = Statements()
        self.noises: dict[str, str] = {}  # key -> its seed
        self.functions: dict[Level, set[str]] = {level: set() for level in Level}  # what statements of a level call
        self.untouched = set(rule.state)  # states that still hold what the last step left
        self.read: set[str] = set()
        self.doubts: list[tuple[ast.AST, str]] = []  # reasons to refuse, if no state turns out to be wider than taken
        self.env = {n: Value(ast.Name(n), Level.STAGED) for n in rule.schema}
        self.env |= {n: Value(ast.Constant(chosen[n]), Level.STAGED, True) for n, h in rule.schema.items() if h.boolean}
        for n in ("p", "g", *rule.state):
            level = levels.get(n, Level.ELEMENT)
            self.env[n] = Value(self.statements.add(self.local(n), None, level, buffer=n), level)
        if MATRIX in chosen:
            self.env[MATRIX] = Value(ast.Constant(chosen[MATRIX]), Level.STAGED, True)
        if rule.timed:
            self.env["t"] = Value(ast.Name("t"), Level.STAGED)

    def hold(self, value: Value) -> Value:
        """The value under a name of its own, so that it can be used twice, or after other names have changed."""
        if value.staged:
            return value
        name = next(n for k in itertools.count() if (n := f"x{k}") not in self.env)
        self.env[name] = held = value._replace(node=self.statements.add(name, value.node, value.level))
        return held

    def local(self, name: str) -> str:
        """What a name of the rule is called in the kernel: itself, unless the kernel uses that word."""
        return f"{name}_" if _taken(name) or name in self.rule.schema or name in math.FUNCTIONS else name

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

    # ---------------------------------------------------------------- what a value becomes in the kernel
    def boolean(self, node: ast.AST, value: Value) -> ast.expr:
        if not value.boolean:
            self.source.refuse(node, f"uses `{ast.unparse(value.node)}` as a truth value; write a comparison.")
        return value.node

    def test(self, node: ast.AST, value: Value, level: Level) -> ast.expr:
        """A boolean among values of a level; one that is known earlier is kept as 1 or 0."""
        condition = self.boolean(node, value)
        if value.level == level:
            return condition
        return ast.Compare(self.number(value, level), [ast.NotEq()], [call("real", ast.Constant(0))])

    def number(self, value: Value, level: Level) -> ast.expr:
        """A number of the compute type among values of a level, REDUCED or ELEMENT."""
        if value.staged:
            node = ast.IfExp(value.node, ast.Constant(1.0), ast.Constant(0.0)) if value.boolean else value.node
            return self.column(node)
        if value.boolean:
            yes, no = (call("real", ast.Constant(n)) for n in (1, 0))
            value = Value(ast.IfExp(value.node, yes, no), value.level)
        if value.level < level and not isinstance(value.node, ast.Name):
            value = self.hold(value)
        return value.node

    def column(self, node: ast.expr) -> ast.expr:
        text = ast.unparse(node)
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if not names & {*self.rule.schema, "t"}:
            try:
                number = node.value if isinstance(node, ast.Constant) else eval(text, dict(math.NUMBERS))
            except (ArithmeticError, ValueError) as error:
                self.source.refuse(self.source.tree, f"contains `{text}`, which cannot be evaluated: {error}.")
            return call("real", ast.Constant(number))
        if text not in self.columns:
            numbered = sum(c.name != c.expression for c in self.columns.values())
            name = text if text in self.rule.schema and not _taken(text) else f"k{numbered + 1}"
            self.columns[text] = Column(name, text, "t" in names)
        return ast.Name(self.columns[text].name)


def _taken(name: str) -> bool:
    """Is it a word of the kernel, or like names that the compiler makes up?"""
    made = r"(k|u|x|total|sum|matrix|scratch|vector|partial|all|noise)\d+|\w+_at"
    return name in RESERVED or name.endswith("_") or re.fullmatch(made, name) is not None


def call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name), list(args), [])
