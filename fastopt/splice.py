"""Formulas put together at the level of syntax, so that the compiler sees one formula and makes one kernel of it."""

import ast
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastopt.formula import Formula

Statements = list[ast.stmt]


def names(tree: ast.AST) -> set[str]:
    """Every name a formula says, its arguments among them."""
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return found | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def assigned(tree: ast.AST) -> set[str]:
    """The names it assigns."""
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def bound(tree: ast.AST) -> set[str]:
    """Its arguments, and the names it assigns."""
    return assigned(tree) | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def parts(tree: ast.AST) -> int:
    """Of how many formulas a tree is made."""
    return 1 + max(getattr(n, "part", 0) for n in ast.walk(tree))


def body(source: Formula, renamed: Mapping[str, str], part: int = 0) -> Statements:
    """A copy of a formula's body under other names, its docstring left out. Nodes know their lines and files."""
    copied = copy.deepcopy(source.tree.body[ast.get_docstring(source.tree, clean=False) is not None :])
    for node in (n for statement in copied for n in ast.walk(statement)):
        if not hasattr(node, "origin"):
            node.origin = source  # type: ignore[attr-defined]
        node.part = getattr(node, "part", 0) + part  # type: ignore[attr-defined]
        if isinstance(node, ast.Name):
            node.id = renamed.get(node.id, node.id)
    return copied


def returning(statements: Statements, go_on: Callable[[ast.Return, list[ast.expr]], Statements]) -> Statements:
    """The statements, with each `return` replaced by what `go_on` makes of it and of the values it gives."""

    class Replace(ast.NodeTransformer):
        def visit_Return(self, node: ast.Return) -> Statements:
            value = node.value
            return go_on(node, list(value.elts) if isinstance(value, ast.Tuple) else [value] if value else [])

    return [new for s in statements for new in _several(Replace().visit(s))]


def _several(new: ast.stmt | Statements) -> Statements:
    return new if isinstance(new, list) else [new]


def give(like: ast.AST, values: Iterable[ast.expr | str]) -> ast.Return:
    """`return values`, at the place of another node."""
    elements = [_at(like, ast.Name(v, ast.Load())) if isinstance(v, str) else v for v in values]
    return _at(like, ast.Return(_at(like, ast.Tuple(elements, ast.Load()))))


def assign(like: ast.AST, targets: Iterable[str], values: Iterable[ast.expr | str]) -> Statements:
    """`targets = values`, all at once; none for a name that stays what it is."""
    given = [_at(like, ast.Name(v, ast.Load())) if isinstance(v, str) else v for v in values]
    pairs = zip(targets, given, strict=True)
    pairs = [(t, v) for t, v in pairs if not (isinstance(v, ast.Name) and v.id == t)]
    left = [_at(like, ast.Name(t, ast.Store())) for t, _ in pairs]
    if len(pairs) > 1:
        right = _at(like, ast.Tuple([v for _, v in pairs], ast.Load()))
        return [_at(like, ast.Assign([_at(like, ast.Tuple(left, ast.Store()))], right))]
    return [_at(like, ast.Assign([target], v)) for target, (_, v) in zip(left, pairs, strict=True)]


def define(source: Formula, state: Iterable[str], keywords: Iterable[str], statements: Statements) -> ast.FunctionDef:
    """`def` of a formula of these arguments, at the place of another one."""
    positional = [ast.arg(n) for n in ("p", "g", *state)]
    keyword = [ast.arg(n) for n in keywords]
    arguments = ast.arguments([], positional, None, keyword, [None] * len(keyword), None, [])
    made = ast.FunctionDef(source.tree.name, arguments, statements, [], lineno=source.tree.lineno, col_offset=0)
    made.origin = source  # type: ignore[attr-defined]
    return made


def _at(like: ast.AST, node: Any) -> Any:
    if origin := getattr(like, "origin", None):
        node.origin = origin
    return ast.copy_location(node, like)
