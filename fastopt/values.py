"""What names and numbers of a rule become in a kernel: columns, locals, statements, constants of the compute type."""

import ast
import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple

from fastopt import math
from fastopt.schema import MATRIX, Rule
from fastopt.statements import Level, Statements, Value

# Words of the generated kernels; a rule's local of the same name gets an underscore there.
RESERVED = frozenset(
    "work hyper addresses tasks task chunk clock last lo hi segment group i scale real tiny flush kernel np njit "
    "prange types parameters reduced partials lanes parameter first width row start rows columns j wide count "
    "clear fold noise_key key place now present zeros n_chunks n_parameters control thread threads blocks entry "
    "table column numbers sums head end rest part step whole n_elements n_rows n_columns vectors across shift "
    "down mine line narrow seats seat d block_total update length stride own later begin given stop fetch add drain "
    "compose values final AHEAD mend of_group from_float16 to_float16 from_bfloat16 to_bfloat16 dice dice_key "
    "upper_half lower_half join_halves master round_float16 round_bfloat16 meaning store_block "
    "rooms end lane block aligned decoded all_decoded rounded nearest told widest".split()
)


class Column(NamedTuple):
    """A value per step and group: its name in the kernel and the Python expression that gives it."""

    name: str
    expression: str
    timed: bool  # does it depend on t?


class Values:
    """A walk over a rule. `env` says what each name means at this point; `statements` grows.

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
    made = r"(k|u|x|total|sum|matrix|scratch|vector|partial|all|noise)\d+|\w+_at|\w+_wide"
    return name in RESERVED or name.endswith("_") or re.fullmatch(made, name) is not None


def call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name), list(args), [])
