"""A rule's function as syntax: found in its file, parsed, and its names resolved. Nothing is compiled here."""

import ast
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, NoReturn

from fastopt import math
from fastopt.errors import RuleError, hint

MISSING = object()


@dataclass(frozen=True, eq=False)
class Formula:
    """`def` of a rule: its syntax tree, where it stands, and the values its free names had at decoration.

    A tree may be spliced from several (splice.py): then its nodes know the formula they are of as `origin`.
    """

    function: Callable[..., Any]
    tree: ast.FunctionDef
    file: str
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or self.tree.name

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        origin = getattr(node, "origin", self)
        line = getattr(node, "lineno", origin.tree.lineno)
        raise RuleError(f"{origin.file}:{line}: rule `{self.name}` {reason}")

    def __deepcopy__(self, memo: object) -> "Formula":
        return self  # copies of nodes are of the same formula

    def lookup(self, node: ast.expr) -> Any:
        """What a dotted name means where the rule was written, or MISSING."""
        if (origin := getattr(node, "origin", self)) is not self:
            return origin.lookup(node)
        if isinstance(node, ast.Attribute):
            owner = self.lookup(node.value)
            return MISSING if owner is MISSING else getattr(owner, node.attr, MISSING)
        if not isinstance(node, ast.Name):
            return MISSING
        scope = self.function.__globals__
        cells = dict(zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True))
        if node.id in cells:
            try:
                return cells[node.id].cell_contents
            except ValueError:  # a closure variable that is assigned later
                return MISSING
        built_in = scope.get("__builtins__", {})
        built_in = built_in if isinstance(built_in, dict) else vars(built_in)
        return scope.get(node.id, built_in.get(node.id, MISSING))

    def meant(self, node: ast.Call) -> str | None:
        """The canonical name of the function a call means, or None."""
        try:
            return math.CANONICAL.get(self.lookup(node.func))
        except TypeError:  # unhashable
            return None

    def called(self, node: ast.Call) -> str:
        """The canonical name of the function a call in the rule means."""
        text, name = ast.unparse(node.func), self.meant(node)
        if name is None:
            value = self.lookup(node.func)
            if value is MISSING and isinstance(node.func, ast.Attribute):
                what = "is not known here; a rule sees one element, so methods and reductions have no place in it"
            elif value is MISSING:
                what = "is not defined here"
            else:
                what = "is not a function of fastopt.math; write it out in the formula"
            known = ", ".join(sorted(math.FUNCTIONS))
            self.refuse(node, f"calls `{text}`, which {what}.{hint(text, math.FUNCTIONS)} A formula may call: {known}.")
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            self.refuse(node, f"calls `{text}` with keywords or a star; give plain arguments in order.")
        if len(node.args) not in (arity := math.ARITY.get(name, (1,))):
            self.refuse(node, f"calls `{text}` with {len(node.args)} arguments; it takes {arity[-1]}.")
        return name


@lru_cache(maxsize=64)
def _functions(text: str) -> dict[tuple[str, int], ast.FunctionDef]:
    found: dict[tuple[str, int], ast.FunctionDef] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name, first] = node
    return found


def read(function: Callable[..., Any] | str) -> Formula:
    """The formula of a function, or of the text of one. Raises `RuleError` when its source cannot be found."""
    if isinstance(function, str):
        return _read_text(textwrap.dedent(function).strip() + "\n")
    if not isinstance(function, FunctionType):
        raise RuleError(f"@fo.rule takes a function written with `def`, or its text; got {type(function).__name__}.")
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    try:
        tree = _functions("".join(lines)).get((code.co_name, code.co_firstlineno))
    except SyntaxError:
        tree = None
    if tree is None:
        what = "a lambda has no body to read" if code.co_name == "<lambda>" else "its source text is not available"
        raise RuleError(
            f"rule `{code.co_name}`: {what} ({code.co_filename}, line {code.co_firstlineno}). fastopt compiles the "
            "text of a rule: put the `def` in a file or a notebook cell, or pass its text: "
            'fo.rule("""def my_rule(p, g, *, lr):\\n    return p - lr * g""").'
        )
    return Formula(function, tree, code.co_filename)


def _read_text(text: str) -> Formula:
    try:
        (tree,) = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise RuleError(f"the text of a rule must be one `def`: {error}") from error
    if not isinstance(tree, ast.FunctionDef):
        raise RuleError(f"the text of a rule must be one `def`; it is a {type(tree).__name__}.")
    file = f"<rule {tree.name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # so that tracebacks show the formula
    scope: dict[str, Any] = {**math.FUNCTIONS}
    # The text is the caller's own program, as trusted as any `def` it runs; nothing loaded from a file gets here.
    exec(compile(ast.Module([tree], []), file, "exec"), scope)
    return Formula(scope[tree.name], tree, file)
