"""Calls of functions of matrices: statements whose operand is written to memory and whose result is loaded again."""

import ast
from collections.abc import Iterator
from typing import Any

from fastopt.formula import Formula
from fastopt.matrices import MatrixCall, MatrixFunction
from fastopt.reductions import Reductions
from fastopt.statements import Level, Value


def calls(source: Formula) -> Iterator[tuple[ast.Call, MatrixFunction]]:
    """The calls of functions of matrices in a formula."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(function := source.lookup(node.func), MatrixFunction):
            yield node, function


def squares(source: Formula, state: tuple[str, ...]) -> dict[str, str]:
    """The states that are square matrices, and their sides, "rows" or "columns"."""
    found: dict[str, str] = {}
    for node, function in calls(source):
        for argument, side in zip(node.args[1:], function.states, strict=False):
            if isinstance(argument, ast.Name) and argument.id in state:
                if found.setdefault(argument.id, side) != side:
                    source.refuse(node, f"uses `{argument.id}` with {side} and with {found[argument.id]} as its side.")
    return found


class MatrixCalls(Reductions):
    """`u, L, R = f(u, L, R, beta)` in a formula. `writer` says which statement gave a state its present value."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.writer: dict[str, int] = {}
        self.users: dict[str, int] = {}  # state -> depth of the last call that used it

    def matrix_call(self, node: ast.Call, f: MatrixFunction) -> Value:
        """The call as a statement; its value is the result, if it has one."""
        n = len(f.states)
        names = [a.id for a in node.args[1 : 1 + n] if isinstance(a, ast.Name) and a.id in self.squares]
        if node.keywords or len(names) != n or len(set(names)) != n or len(node.args) < 1 + n:
            states = "".join(f", {side} x {side} state" for side in f.states)
            self.source.refuse(node, f"has `{ast.unparse(node)}`; expected {f.__name__}(matrix{states}, numbers...).")
        operand = self.expr(node.args[0])
        if operand.level is not Level.ELEMENT:
            self.source.refuse(node, f"gives `{f.__name__}` `{ast.unparse(node.args[0])}`, which is no matrix.")
        numbers = [self.expr(a) for a in node.args[1 + n :]]
        if any(not v.staged for v in numbers):
            self.source.refuse(node, f"gives `{f.__name__}` a number that is not made of hyperparameters alone.")
        columns = [self._column(v) for v in numbers]
        k = sum(s.matrix is not None for s in self.statements)
        result = self.statements.add(
            f"matrix{k}",
            # a name of its own: stores stand at the end of a loop, after later assignments to the names in it
            self.hold(Value(self.number(operand, Level.ELEMENT), Level.ELEMENT)).node,
            Level.ELEMENT if f.result else Level.MATRIX,
            matrix=MatrixCall(f, f"scratch{k}", tuple(names), tuple(columns)),
            after=max((self.users.get(s, 0) for s in names), default=0),
            also=tuple(self.writer[s] for s in names if s in self.writer),
        )
        here = len(self.statements) - 1
        for s in names:
            self.users[s] = self.statements[here].depth
            self.read |= {s} & self.untouched
            if f.updates:
                self.writer[s] = here
        return Value(result, Level.ELEMENT if f.result else Level.MATRIX)

    def assign_matrices(self, target: ast.expr, node: ast.Call, f: MatrixFunction) -> None:
        """`u, L, R = f(u, L, R, beta)`."""
        given = list(target.elts) if isinstance(target, ast.Tuple) else [target]
        names = [a.id for a in given if isinstance(a, ast.Name)]
        updated = [a.id for a in node.args[1 : 1 + len(f.states)] if isinstance(a, ast.Name)] if f.updates else []
        if len(names) != len(given) or names[f.result :] != updated or len(names) != f.result + len(updated):
            wanted = ", ".join(["a name"] * f.result + updated)
            self.source.refuse(node, f"assigns `{ast.unparse(node)}` to `{ast.unparse(target)}`; expected {wanted}.")
        value = self.matrix_call(node, f)
        self.untouched.difference_update(updated)
        if f.result:
            self.bind(names[0], value)

    def bind(self, name: str, value: Value) -> None:
        raise NotImplementedError

    def _column(self, value: Value) -> str:
        """The column of `hyper` that holds a number, or the number itself."""
        node = self.number(value, Level.ELEMENT)
        if isinstance(node, ast.Call) and isinstance(literal := node.args[0], ast.Constant):
            return repr(literal.value)
        return ast.unparse(node)
