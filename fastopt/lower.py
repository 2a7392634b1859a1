"""Rule -> lowered rule: text in, text out. Four steps, the first three of them here.

Fold    switches are known, so their branches are chosen and state that is never read disappears.
Stage   what depends on hyperparameters and `t` alone becomes a column, computed once a step in float64.
Type    literals take the compute type, `x / column` becomes `x * (1 / column)`, small powers become products.
Write   each target prints its own kernel around the result (targets/).
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from fastopt import math
from fastopt.errors import RuleError

if TYPE_CHECKING:
    from fastopt.formula import Formula
    from fastopt.rule import Hyper, Rule

# Words of the generated kernels; a rule's local of the same name gets an underscore there.
RESERVED = frozenset("work hyper addresses tasks task chunk clock last lo hi segment group i real tiny flush scale".split())
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


class Column(NamedTuple):
    """A value per step and group: its name in the kernel and the Python expression that gives it."""

    name: str
    expression: str


@dataclass(frozen=True)
class Lowered:
    """A rule with its switches chosen, as text of scalar statements for one element."""

    state: tuple[str, ...]  # the states that exist with these switches
    columns: tuple[Column, ...]
    loads: tuple[tuple[str, str], ...]  # (local, buffer), p and g first
    body: tuple[str, ...]  # statements on locals
    stores: tuple[tuple[str, str], ...]  # (buffer, expression); a buffer returned unchanged is not stored
    functions: frozenset[str]  # what the statements call
    timed: bool  # does any column change with t?


class _Value(NamedTuple):
    node: ast.expr
    staged: bool  # of hyperparameters and literals only
    boolean: bool = False


def switches(source: Formula, schema: Mapping[str, Hyper]) -> tuple[str, ...]:
    """The bool hyperparameters, and those that some test of the rule asks only for their truth (`if momentum:`)."""
    tests = [n.test for n in ast.walk(source.tree) if isinstance(n, ast.If | ast.IfExp)]
    asked = {name for test in tests for name in _truths(test)}
    return tuple(n for n, h in schema.items() if h.boolean or n in asked)


def _truths(test: ast.expr) -> Iterator[str]:
    if isinstance(test, ast.Name):
        yield test.id
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _truths(test.operand)
    elif isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _truths(value)


def check(rule: Rule) -> None:
    """Lower every combination of switches once; raises `RuleError` for the first thing that is no formula."""
    if len(rule.switches) > 6:
        rule.source.refuse(rule.source.tree, f"has {len(rule.switches)} switches; at most 6 can be compiled.")
    used: set[str] = set()
    for truth in itertools.product((False, True), repeat=len(rule.switches)):
        used.update(lower(rule, tuple(zip(rule.switches, truth, strict=True))).state)
    for name in rule.state:
        if name not in used:
            rule.source.refuse(rule.source.tree, f"never reads its state `{name}`; remove it, or use it.")


@lru_cache(maxsize=512)
def lower(rule: Rule, chosen: tuple[tuple[str, bool], ...]) -> Lowered:
    """The rule with its switches `chosen`, as (name, truth) pairs in the order of `rule.switches`."""
    live = _Lowering(rule, dict(chosen), rule.state).run()[1]
    return _Lowering(rule, dict(chosen), live).run()[0]


class _Lowering:
    """One walk over a rule's body. `env` says what each name means at this point; `text` grows with statements."""

    def __init__(self, rule: Rule, chosen: dict[str, bool], live: tuple[str, ...]):
        self.rule, self.source, self.chosen, self.live = rule, rule.source, chosen, live
        self.columns: dict[str, Column] = {}  # by expression
        self.text: list[str] = []
        self.functions: set[str] = set()
        self.untouched = set(rule.state)  # states that still hold what the last step left
        self.read: set[str] = set()
        self.env = {n: _Value(ast.Name(n), staged=True) for n in rule.schema}
        self.env |= {n: _Value(ast.Constant(chosen[n]), True, True) for n, h in rule.schema.items() if h.boolean}
        self.env |= {n: _Value(ast.Name(self.local(n)), staged=False) for n in ("p", "g", *rule.state)}
        if rule.timed:
            self.env["t"] = _Value(ast.Name("t"), staged=True)

    def run(self) -> tuple[Lowered, tuple[str, ...]]:
        results = self.block(self.source.tree.body)
        if results is None:
            self.refuse(self.source.tree, "has no return; it returns p and every state, in the order of the signature.")
        stores = []
        for name, node in zip(("p", *self.rule.state), results, strict=True):
            unchanged = isinstance(node, ast.Name) and node.id == name and name in self.untouched
            if (name == "p" or name in self.live) and not unchanged:
                stores.append((name, ast.unparse(self.real(self.expr(node)))))
        lowered = Lowered(
            state=self.live,
            columns=tuple(self.columns.values()),
            loads=tuple((self.local(n), n) for n in ("p", "g", *self.live)),
            body=tuple(self.text),
            stores=tuple(stores),
            functions=frozenset(self.functions),
            timed=any(re.search(r"\bt\b", c.expression) for c in self.columns.values()),
        )
        return lowered, tuple(s for s in self.rule.state if s in self.read)

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        self.source.refuse(node, reason)

    # ---------------------------------------------------------------- statements
    def block(self, body: list[ast.stmt]) -> list[ast.expr] | None:
        for node in body:
            if isinstance(node, ast.Return):
                return self.results(node)
            if isinstance(node, ast.If):
                truth = self.truth(node.test)
                if truth is None:
                    self.refuse(node, f"has `if {ast.unparse(node.test)}:`; an `if` chooses by switches only. "
                                      "For values write `x = a if test else b`, or `where(test, a, b)`.")
                results = self.block(node.body if truth else node.orelse)
                if results is not None:
                    return results
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                self.assign(node.targets[0], node.value)
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                left = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
                self.assign(node.target, ast.copy_location(ast.BinOp(left, node.op, node.value), node))
            elif not (isinstance(node, ast.Pass) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                self.refuse(node, f"contains {_STATEMENTS.get(type(node), f'a {type(node).__name__} statement')}; "
                                  "a formula is assignments, `if`s on switches and one return, for a single element.")
        return None

    def results(self, node: ast.Return) -> list[ast.expr]:
        value = node.value
        given = list(value.elts) if isinstance(value, ast.Tuple) else [value] if value is not None else []
        wanted = ("p", *self.rule.state)
        if len(given) != len(wanted):
            self.refuse(node, f"returns {len(given)} values; expected {len(wanted)}: {', '.join(wanted)}.")
        return given

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.bind(target.id, self.expr(value))
        elif (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)
              and all(isinstance(e, ast.Name) for e in target.elts)):
            # every right-hand side sees the old values
            values = [self.hold(self.expr(e)) for e in value.elts]
            for name, held in zip(target.elts, values, strict=True):
                self.bind(name.id, held)  # type: ignore[attr-defined]
        else:
            self.refuse(target, f"assigns to `{ast.unparse(target)}`; a formula assigns to plain names.")

    def bind(self, name: str, value: _Value) -> None:
        if name == "t" and self.rule.timed:
            self.refuse(self.source.tree, "assigns to `t`, the step; choose another name.")
        self.untouched.discard(name)
        if not value.staged:
            self.text.append(f"{self.local(name)} = {ast.unparse(value.node)}")
            value = value._replace(node=ast.Name(self.local(name)))
        self.env[name] = value

    def hold(self, value: _Value) -> _Value:
        """The value under a name of its own, so that it can be used twice or later."""
        if value.staged or isinstance(value.node, ast.Name) and not self.text:
            return value
        name = next(n for k in itertools.count() if (n := f"x{k}") not in self.env)
        self.env[name] = held = value._replace(node=ast.Name(name))
        self.text.append(f"{name} = {ast.unparse(value.node)}")
        return held

    def local(self, name: str) -> str:
        taken = name in RESERVED or name in self.rule.schema or re.fullmatch(r"k\d+|\w+_at", name)
        return f"{name}_" if taken else name

    # ---------------------------------------------------------------- expressions
    def truth(self, test: ast.expr) -> bool | None:
        """The value of a test that is made of switches, else None."""
        if isinstance(test, ast.Constant) and isinstance(test.value, bool):
            return test.value
        if isinstance(test, ast.Name) and test.id in self.chosen and test.id in self.rule.schema:
            return self.chosen[test.id]
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            parts = [self.truth(v) for v in test.values]
            decides = isinstance(test.op, ast.Or)
            return decides if decides in parts else None if None in parts else not decides
        return None

    def expr(self, node: ast.expr) -> _Value:
        handler: Callable[[Any], _Value] | None = getattr(self, f"on_{type(node).__name__}", None)
        if handler is None:
            self.refuse(node, f"contains `{ast.unparse(node)}`; a formula is arithmetic on single numbers.")
        return handler(node)

    def on_Constant(self, node: ast.Constant) -> _Value:
        if type(node.value) not in (int, float, bool):
            self.refuse(node, f"contains {node.value!r}; only numbers belong in a formula.")
        return _Value(node, True, isinstance(node.value, bool))

    def on_Name(self, node: ast.Name | ast.Attribute) -> _Value:
        name = ast.unparse(node)
        if name in self.env:
            if name in self.untouched:
                self.read.add(name)
            return self.env[name]
        value = self.source.lookup(node)
        if type(value) not in (int, float):
            what = "t, but does not take it: add `t` behind the `*`" if name == "t" else f"`{name}`, which is not a number"
            self.refuse(node, f"uses {what}.")
        return _Value(ast.Constant(value), True)

    on_Attribute = on_Name

    def on_UnaryOp(self, node: ast.UnaryOp) -> _Value:
        value = self.expr(node.operand)
        if isinstance(node.op, ast.Not):
            return value._replace(node=ast.UnaryOp(ast.Not(), self.boolean(node, value)))
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self.refuse(node, f"uses the operator in `{ast.unparse(node)}`; expected arithmetic.")
        return _Value(ast.UnaryOp(node.op, value.node if value.staged else self.real(value)), value.staged)

    def on_BinOp(self, node: ast.BinOp) -> _Value:
        if type(node.op) not in _ARITHMETIC:
            self.refuse(node, f"uses the operator in `{ast.unparse(node)}`; expected one of {' '.join(_ARITHMETIC.values())}.")
        left, right = self.expr(node.left), self.expr(node.right)
        if left.staged and right.staged:
            power = right.node
            if (isinstance(node.op, ast.Sub) and isinstance(power, ast.BinOp) and isinstance(power.op, ast.Pow)
                    and isinstance(left.node, ast.Constant) and left.node.value == 1
                    and isinstance(power.right, ast.Name) and power.right.id == "t"):
                return _Value(_call("bias_correction", power.left, power.right), True)
            return _Value(ast.BinOp(left.node, node.op, right.node), True)
        if isinstance(node.op, ast.Div) and right.staged:
            right = _Value(ast.BinOp(ast.Constant(1), ast.Div(), right.node), True)
            return _Value(ast.BinOp(self.real(left), ast.Mult(), self.real(right)), False)
        if isinstance(node.op, ast.Pow):
            return self.power(left, right)
        return _Value(ast.BinOp(self.real(left), node.op, self.real(right)), False)

    def power(self, base: _Value, exponent: _Value) -> _Value:
        n = exponent.node.value if isinstance(exponent.node, ast.Constant) else None
        if n == 0.5:
            self.functions.add("sqrt")
            return _Value(_call("sqrt", self.real(base)), False)
        if n in (2, 3, 4):
            x = self.hold(base._replace(node=self.real(base), staged=False)).node
            square = ast.BinOp(x, ast.Mult(), x)
            both = {2: square, 3: ast.BinOp(square, ast.Mult(), x), 4: ast.BinOp(square, ast.Mult(), square)}
            return _Value(both[n], False)
        return _Value(ast.BinOp(self.real(base), ast.Pow(), self.real(exponent)), False)

    def on_Compare(self, node: ast.Compare) -> _Value:
        sides = [self.expr(e) for e in (node.left, *node.comparators)]
        staged = all(s.staged for s in sides)
        operands = [s.node if staged else self.real(s) for s in sides]
        if bad := [o for o in node.ops if isinstance(o, ast.Is | ast.IsNot | ast.In | ast.NotIn)]:
            self.refuse(node, f"compares with `{type(bad[0]).__name__}`; expected < <= > >= == !=.")
        return _Value(ast.Compare(operands[0], node.ops, operands[1:]), staged, True)

    def on_BoolOp(self, node: ast.BoolOp) -> _Value:
        values = [self.expr(v) for v in node.values]
        staged = all(v.staged for v in values)
        tests = [self.boolean(node, v) if staged else self.test(node, v) for v in values]
        if staged:
            return _Value(ast.BoolOp(node.op, tests), True, True)
        joined = tests[0]
        for test in tests[1:]:  # `&` and `|` of bools do not branch
            joined = ast.BinOp(joined, ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr(), test)
        return _Value(joined, False, True)

    def on_IfExp(self, node: ast.IfExp) -> _Value:
        return self.choose(node, node.test, node.body, node.orelse)

    def choose(self, node: ast.expr, test: ast.expr, body: ast.expr, orelse: ast.expr) -> _Value:
        truth = self.truth(test)
        if truth is not None:
            return self.expr(body if truth else orelse)
        asked, yes, no = self.expr(test), self.expr(body), self.expr(orelse)
        if asked.staged and yes.staged and no.staged:
            return _Value(ast.IfExp(self.boolean(node, asked), yes.node, no.node), True, yes.boolean and no.boolean)
        return _Value(ast.IfExp(self.test(node, asked), self.real(yes), self.real(no)), False)

    def on_Call(self, node: ast.Call) -> _Value:
        name = self.source.called(node)
        if name == "where":
            return self.choose(node, *node.args)
        values = [self.expr(a) for a in node.args]
        if all(v.staged for v in values):
            return _Value(_call(name, *(v.node for v in values)), True, name == "isfinite")
        if name == "square":
            return self.power(values[0], _Value(ast.Constant(2), True))
        self.functions.add(name)
        return _Value(_call(name, *map(self.real, values)), False, name == "isfinite")

    # ---------------------------------------------------------------- what a value becomes in the kernel
    def boolean(self, node: ast.AST, value: _Value) -> ast.expr:
        if not value.boolean:
            self.refuse(node, f"uses `{ast.unparse(value.node)}` as a truth value; write a comparison.")
        return value.node

    def test(self, node: ast.AST, value: _Value) -> ast.expr:
        """A boolean in the kernel; a staged one is a column of 1 or 0."""
        condition = self.boolean(node, value)
        if not value.staged:
            return condition
        flag = self.column(ast.IfExp(condition, ast.Constant(1.0), ast.Constant(0.0)))
        return ast.Compare(flag, [ast.NotEq()], [_call("real", ast.Constant(0))])

    def real(self, value: _Value) -> ast.expr:
        """A number of the compute type in the kernel."""
        if value.staged:
            node = ast.IfExp(value.node, ast.Constant(1.0), ast.Constant(0.0)) if value.boolean else value.node
            return self.column(node)
        if value.boolean:
            return ast.IfExp(value.node, _call("real", ast.Constant(1)), _call("real", ast.Constant(0)))
        return value.node

    def column(self, node: ast.expr) -> ast.expr:
        text = ast.unparse(node)
        if not {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & {*self.rule.schema, "t"}:
            number = ast.literal_eval(text) if isinstance(node, ast.Constant) else eval(text, dict(math.NUMBERS))
            return _call("real", ast.Constant(number))
        if text not in self.columns:
            numbered = sum(c.name != c.expression for c in self.columns.values())
            name = text if text in self.rule.schema else f"k{numbered + 1}"
            self.columns[text] = Column(name, text)
        return ast.Name(self.columns[text].name)


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name), list(args), [])


_STATEMENTS: dict[type[ast.stmt], str] = {
    ast.For: "a loop", ast.While: "a loop", ast.With: "a `with` block", ast.Try: "a `try` block",
    ast.Import: "an import", ast.ImportFrom: "an import", ast.Global: "`global`", ast.Nonlocal: "`nonlocal`",
    ast.FunctionDef: "a function", ast.ClassDef: "a class", ast.Expr: "an expression whose value is not used",
    ast.Raise: "`raise`", ast.Assert: "`assert`", ast.Delete: "`del`", ast.AnnAssign: "an annotated assignment",
}
__all__ = ["Column", "Lowered", "RuleError", "check", "lower", "switches"]
