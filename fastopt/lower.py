"""Rule -> lowered rule: text in, text out. Five steps, the first four of them here and in the files it imports.

Fold    switches are known, so their branches are chosen and state that is never read disappears.
Stage   what depends on hyperparameters and `t` alone becomes a column, computed once a step in float64.
Type    literals take the compute type, `x / column` becomes `x * (1 / column)`, small powers become products.
Cut     where a total must be known a pass over memory ends, and what depends on it goes into the next one.
Write   each target prints its own kernels around the result (targets/).
"""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from fastopt.formula import Formula
from fastopt.lowered import Lowered
from fastopt.matrices import MatrixFunction
from fastopt.matrix_calls import MatrixCalls, squares
from fastopt.passes import cut
from fastopt.schema import MATRIX, Hyper, Rule
from fastopt.statements import NUMBERS, Level, Value, join


def of_matrices(rule: Rule) -> bool:
    """Does a rule take 2-d parameters alone?"""
    return lower(rule, tuple((n, n != MATRIX) for n in rule.switches)).sided


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
    read: set[str] = set(rule.switches) | {s for s in rule.init.values() if isinstance(s, str)}
    changed: set[str] = set(rule.init)
    for truth in itertools.product((False, True), repeat=len(rule.switches)):
        lowered = lower(rule, tuple(zip(rule.switches, truth, strict=True)))
        staged = {word for c in lowered.columns for word in re.findall(r"[A-Za-z_]\w*", c.expression)}
        read |= {*lowered.state, *staged}
        changed |= {buffer for q in lowered.passes for buffer, _ in (*q.stores, *q.kept)}
        changed |= {s for call in lowered.matrices if call.function.updates for s in call.states}
    for kind, names in (("state", rule.state), ("hyperparameter", rule.schema)):
        for name in names:
            if name not in read:
                rule.source.refuse(rule.source.tree, f"never reads its {kind} `{name}`; remove it, or use it.")
    for name in rule.state:
        if name not in changed:
            rule.source.refuse(rule.source.tree, f"never changes its state `{name}`, which starts at 0.")


@lru_cache(maxsize=512)
def lower(rule: Rule, chosen: tuple[tuple[str, bool], ...]) -> Lowered:
    """The rule with its switches `chosen`, as (name, truth) pairs in the order of `rule.switches`."""
    square = squares(rule.source, rule.state)
    live, levels = rule.state, {s: Level.REDUCED for s in rule.state if rule.init.get(s) != "p"}
    levels |= {s: Level.MATRIX for s in square}
    while True:
        lowering = _Lowering(rule, dict(chosen), live, levels, square)
        lowered, read = lowering.run()
        if lowering.wider:  # taken for numbers at first; a look shows which states differ from element to element
            levels |= lowering.wider
        elif read == live:
            return lowered
        else:
            live = read  # a state that served only another, dead one dies in the next round


class _Lowering(MatrixCalls):
    """One walk over a rule's body."""

    def __init__(
        self,
        rule: Rule,
        chosen: dict[str, bool],
        live: tuple[str, ...],
        levels: Mapping[str, Level],
        square: Mapping[str, str],
    ):
        super().__init__(rule, chosen, levels, square)
        self.live, self.levels = live, levels
        self.wider: dict[str, Level] = {}

    def run(self) -> tuple[Lowered, tuple[str, ...]]:
        results = self.block(self.source.tree.body)
        if results is None:
            self.source.refuse(
                self.source.tree, "has no return; it returns p and every state, in the order of the signature."
            )
        finals = {}
        for name, node in zip(("p", *self.rule.state), results, strict=True):
            unchanged = isinstance(node, ast.Name) and node.id == name and name in self.untouched
            if name in self.squares:
                if not (isinstance(node, ast.Name) and node.id == name):
                    self.source.refuse(
                        node, f"returns `{ast.unparse(node)}` for `{name}`, a matrix; expected `{name}`."
                    )
                if name in self.live and name in self.writer:
                    finals[name] = self.writer[name]
            elif unchanged:  # a state that others write: one element differs from the next
                if name in self.live and self.levels.get(name) in NUMBERS:
                    self.wider[name] = Level.ELEMENT
            elif name == "p" or name in self.live:
                value, level = self.expr(node), self.levels.get(name, Level.ELEMENT)
                if (wider := join(level, value.level)) is not level:
                    self.wider[name] = wider
                finals[name] = self.final(value, wider)
        if self.doubts and not self.wider:
            self.source.refuse(*self.doubts[0])
        lowered = Lowered(
            state=self.live,
            levels=tuple(
                (s, self.levels[s]) for s in self.live if self.levels.get(s, Level.ELEMENT) is not Level.ELEMENT
            ),
            columns=tuple(sorted(self.columns.values(), key=lambda c: c.timed)),
            passes=() if self.wider else cut(self.statements, finals, len(self.slots), self.squares),
            functions=frozenset(self.functions[Level.ELEMENT]),
            number_functions=frozenset(n for level in NUMBERS for n in self.functions[level]),
            square=tuple((n, side) for n, side in self.squares.items() if n in self.live),
            noises=tuple(self.noises.items()),
            slots=len(self.slots) + sum(s.level in NUMBERS for s in self.statements),
        )
        return lowered, tuple(s for s in self.rule.state if s in self.read)

    def final(self, value: Value, level: Level) -> int:
        """The position of the statement that gives a buffer its value."""
        node = self.number(value, level)
        if isinstance(node, ast.Name) and node.id in self.statements.latest:
            k = self.statements.latest[node.id]
            if self.statements[k].level is level:
                return k
        self.statements.add("" if level is Level.ELEMENT else "x", node, level)
        return len(self.statements) - 1

    # ---------------------------------------------------------------- statements
    def block(self, body: list[ast.stmt]) -> list[ast.expr] | None:
        for node in body:
            if isinstance(node, ast.Return):
                return self.results(node)
            if isinstance(node, ast.If):
                truth = self.truth(node.test)
                if truth is None:
                    self.source.refuse(
                        node,
                        f"has `if {ast.unparse(node.test)}:`; an `if` chooses by switches only. "
                        "For values write `x = a if test else b`, or `where(test, a, b)`.",
                    )
                results = self.block(node.body if truth else node.orelse)
                if results is not None:
                    return results
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                self.assign(node.targets[0], node.value)
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                left = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
                self.assign(node.target, ast.copy_location(ast.BinOp(left, node.op, node.value), node))
            elif not (
                isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            ):
                self.source.refuse(
                    node,
                    f"contains {_STATEMENTS.get(type(node), f'a {type(node).__name__} statement')}; "
                    "a formula is assignments, `if`s on switches and one return, for a single element.",
                )
        return None

    def results(self, node: ast.Return) -> list[ast.expr]:
        value = node.value
        given = list(value.elts) if isinstance(value, ast.Tuple) else [value] if value is not None else []
        wanted = ("p", *self.rule.state)
        if len(given) != len(wanted):
            number = "1 value" if len(given) == 1 else f"{len(given)} values"
            self.source.refuse(node, f"returns {number}; expected {len(wanted)}: {', '.join(wanted)}.")
        bare = [e.id for e in given[1:] if isinstance(e, ast.Name)]
        if sorted(bare) == sorted(self.rule.state) and tuple(bare) != self.rule.state:
            self.source.refuse(node, f"returns its states as {', '.join(bare)}; the order is {', '.join(wanted)}.")
        return [self.folded(e) for e in given]

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        value = self.folded(value)
        if isinstance(value, ast.Call) and isinstance(f := self.source.lookup(value.func), MatrixFunction):
            return self.assign_matrices(target, value, f)
        if isinstance(target, ast.Name) and isinstance(value, ast.Name) and target.id == value.id:
            return  # `m = ... if on else m` leaves m as it is
        if isinstance(target, ast.Name):
            self.bind(target.id, self.expr(value))
        elif (
            isinstance(target, ast.Tuple)
            and isinstance(value, ast.Tuple)
            and len(target.elts) == len(value.elts)
            and all(isinstance(e, ast.Name) for e in target.elts)
        ):
            # every right-hand side sees the old values
            values = [self.hold(self.expr(e)) for e in value.elts]
            for name, held in zip(target.elts, values, strict=True):
                self.bind(name.id, held)  # type: ignore[attr-defined]
        else:
            self.source.refuse(target, f"assigns to `{ast.unparse(target)}`; a formula assigns to plain names.")

    def bind(self, name: str, value: Value) -> None:
        if name == "t" and self.rule.timed:
            self.source.refuse(self.source.tree, "assigns to `t`, the step; choose another name.")
        self.untouched.discard(name)
        if not value.staged:
            value = value._replace(node=self.statements.add(self.local(name), value.node, value.level))
        self.env[name] = value


_STATEMENTS: dict[type[ast.stmt], str] = {
    ast.For: "a loop",
    ast.While: "a loop",
    ast.With: "a `with` block",
    ast.Try: "a `try` block",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.Global: "`global`",
    ast.Nonlocal: "`nonlocal`",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.Expr: "an expression whose value is not used",
    ast.Raise: "`raise`",
    ast.Assert: "`assert`",
    ast.Delete: "`del`",
    ast.AnnAssign: "an annotated assignment",
}
