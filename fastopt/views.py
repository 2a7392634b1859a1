"""Views: a second formula on a rule, for what its user wants to see instead of p, such as an average."""

import ast
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastopt import splice
from fastopt.errors import hint
from fastopt.formula import Formula, read
from fastopt.lower import lower
from fastopt.schema import MATRIX, Rule


def attach(rule: Rule, view: Callable[..., Any] | str, renamed: Mapping[str, str] | None = None) -> Rule:
    """The rule with a view: `(p, *some states, *, some hyperparameters[, t]) -> x`, or the name of a state.

    `renamed`: what states and hyperparameters of the formula are called in the rule, where it is not the same. Raises
    `RuleError` for what is no such formula.
    """
    renamed = renamed or {}
    source = _of_state(view) if isinstance(view, str) and view.isidentifier() else read(view)
    source = replace(source, title=f"{rule.name}.view")
    timed = _check(rule, source, renamed)
    if changed := splice.assigned(source.tree) & {*rule.state, *rule.schema}:
        source.refuse(source.tree, f"assigns to `{min(changed)}`, which belongs to the rule; choose another name.")
    return _seen(rule, source, renamed, timed)


def again(rule: Rule, old: Rule) -> Rule:
    """A rule that has the states and hyperparameters of another, with its view."""
    if old.view is None:
        return rule
    source = replace(old.view.source, title=f"{rule.name}.view")
    own = splice.assigned(source.tree) & {*rule.state, *rule.schema} - {*old.state, *old.schema}
    return _seen(rule, source, {n: f"{n}_" for n in own}, old.view.timed)


def _seen(rule: Rule, source: Formula, renamed: Mapping[str, str], timed: bool) -> Rule:
    def ending(node: ast.Return, values: list[ast.expr]) -> splice.Statements:
        if len(values) != 1:
            source.refuse(node, f"returns {len(values)} values; expected one, what to show for p.")
        return [splice.give(node, [*values, *rule.state])]

    def first(node: ast.Return, values: list[ast.expr]) -> splice.Statements:
        return [splice.give(node, [values[0], *rule.state])]

    whole = hasattr(source.tree, "origin")  # it returns the states already, those of the rule it was made for
    statements = splice.returning(splice.body(source, renamed), first if whole else ending)
    keywords = (*rule.schema, *("t",) * timed, *(MATRIX,) * (MATRIX in rule.switches))
    tree = splice.define(source, rule.state, keywords, statements)
    seen = replace(rule, name=source.name, formula=source.function, source=replace(source, tree=tree), timed=timed)
    return replace(rule, view=seen)


def check(rule: Rule) -> None:
    """Lower the view for every combination of switches once; raises `RuleError` for what is no view of the rule."""
    if (view := rule.view) is None:
        return
    for truth in itertools.product((False, True), repeat=len(rule.switches)):
        chosen = tuple(zip(rule.switches, truth, strict=True))
        shown, own = lower(view, chosen), lower(rule, chosen)
        for state in shown.state:
            if state not in own.state or state in own.numbers or state in own.squares:
                what = "is no buffer of the parameter's shape" if state in own.state else "not every switch setting has"
                view.source.refuse(view.source.tree, f"reads the state `{state}`, which {what}.")


def _of_state(state: str) -> Formula:
    return read(f"def {state}_of(p, {state}):\n    return {state}")


def _check(rule: Rule, source: Formula, renamed: Mapping[str, str]) -> bool:
    """Does the signature fit the rule? Whether it takes `t`."""
    given = inspect.signature(source.function).parameters
    positional = [n for n, q in given.items() if q.kind in (q.POSITIONAL_ONLY, q.POSITIONAL_OR_KEYWORD)]
    if positional[:1] != ["p"] or any(q.default is not q.empty for q in given.values()):
        source.refuse(source.tree, "is a view, so it takes (p, states, *, hyperparameters), none with a default.")
    for name in given:
        known = ("p", *rule.state) if name in positional else (*rule.schema, "t", MATRIX)
        if renamed.get(name, name) not in known:
            source.refuse(source.tree, f"takes `{name}`, which `{rule.name}` does not have.{hint(name, known)}")
    return "t" in given
