"""Wrappers: Rule -> Rule, for every rule. A wrapper is a formula, too, spliced before or behind that of the rule, so
that the compiler sees one formula and makes one kernel of both."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastopt import lower, splice, views
from fastopt.errors import ConfigError, hint
from fastopt.formula import Formula, read
from fastopt.rule import rule as declare
from fastopt.rule import signature
from fastopt.schema import MATRIX, REQUIRED, Hyper, Rule

_SUPPLIED = ("t", MATRIX)
_Text = Callable[..., Any] | str
_Starts = Mapping[str, float | str]


@dataclass(frozen=True, eq=False)
class Wrapper:
    """`wrapper(rule, **hyper)` is a rule called "wrapper(rule)"; what it adds stands behind the rule's own things.

    A state or hyperparameter whose name the rule has as well gets the wrapper's name before its own: `grokfast_alpha`.
    An `lr` without a default is the rule's own.

    Attributes:
        behind: `(p, g, new, *state)`, with p and g as the step finds them and the rule's new p, gives what p becomes;
            a formula before the rule is `(p, g, *state)` and gives the g that the rule sees. The new states follow.
        schema, state, init, view: as of a rule; a view of the wrapper hides that of the rule.
        supplied: which of `t` and `matrix` it takes.
        borrowed: the hyperparameters of the rule that it takes: `lr`, or none.
    """

    source: Formula
    behind: bool
    state: tuple[str, ...]
    schema: Mapping[str, Hyper]
    init: _Starts
    supplied: tuple[str, ...]
    borrowed: tuple[str, ...]
    view: _Text | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.source.function.__doc__

    def __call__(self, rule: Rule, *values: Any, **defaults: Any) -> Rule:
        """The wrapped rule. Hyperparameters given here, in order or by name, are defaults of the new rule.

        Raises `ConfigError` for an unknown name or a bad value, `RuleError` where the two formulas do not fit.
        """
        if not isinstance(rule, Rule):
            raise ConfigError(f"{self.name}: rule is a {type(rule).__name__}; expected a rule, such as fastopt.adamw.")
        if missing := [n for n in self.borrowed if n not in rule.schema]:
            raise ConfigError(f"{self.name}: takes the `{missing[0]}` of its rule, and `{rule.name}` has none.")
        schema = self._defaults(values, defaults)
        renamed = self._names(rule)
        title = f"{self.name}({rule.name})"
        own = {renamed[n]: replace(h, name=renamed[n]) for n, h in schema.items()}
        state = (*rule.state, *(renamed[s] for s in self.state))
        both = {**rule.schema, **own}
        supplied = tuple(n for n in _SUPPLIED if n in self.supplied or n in _supplied(rule))
        statements = self._behind(rule, renamed) if self.behind else self._before(rule, renamed)
        tree = splice.define(rule.source, state, (*both, *supplied), statements)
        formula = self._function(rule, renamed, title, state, both, supplied)
        source = Formula(formula, tree, rule.source.file, title)
        starts = {renamed[s]: renamed.get(v, v) if v in schema else v for s, v in self.init.items()}
        made = Rule(
            name=title,
            formula=formula,
            source=source,
            state=state,
            schema=both,
            init={**rule.init, **starts},
            switches=lower.switches(source, both) + (MATRIX,) * (MATRIX in supplied),
            timed="t" in supplied,
        )
        public = {n: renamed[n] for n in (*self.state, *self.schema)}
        made = views.again(made, rule) if self.view is None else views.attach(made, self.view, public)
        lower.check(made)
        views.check(made)
        return made

    def _defaults(self, values: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Hyper]:
        has = ", ".join(self.schema) or "none"
        if len(values) > len(self.schema):
            raise ConfigError(f"{self.name}: {len(values)} values for its hyperparameters; it has {has}.")
        given = dict(zip(self.schema, values, strict=False))
        if twice := [n for n in named if n in given]:
            raise ConfigError(f"{self.name}: `{twice[0]}` is given by position and by name.")
        if unknown := [n for n in named if n not in self.schema]:
            close = hint(unknown[0], self.schema)
            raise ConfigError(f"unknown hyperparameter `{unknown[0]}` for `{self.name}`; it has {has}.{close}")
        given |= named
        if late := [n for n, v in given.items() if callable(v)]:
            raise ConfigError(
                f"{self.name}: `{late[0]}` is a schedule; give schedules to the optimizer: {self.name}(rule)(params, "
                f"{late[0]}=...)."
            )
        checked = {n: self.schema[n].check(v, None, f"`{self.name}`") for n, v in given.items()}
        return {n: replace(h, default=checked.get(n, h.default)) for n, h in self.schema.items()}

    def _names(self, rule: Rule) -> dict[str, str]:
        """What each name of the wrapper is called in the whole formula."""
        taken = splice.names(rule.source.tree) | {*rule.schema, *rule.state, *_SUPPLIED}
        given = {*_SUPPLIED, *self.borrowed}
        bound = splice.bound(self.source.tree) - given
        if clash := (splice.names(self.source.tree) - bound - given) & splice.bound(rule.source.tree):
            self.source.refuse(
                self.source.tree, f"uses `{min(clash)}` from outside, but `{rule.name}` has a name like it; rename it."
            )
        renamed: dict[str, str] = {} if self.behind else {"p": "p", "g": "g"}
        for name in sorted(bound - {*renamed}):
            new = name
            while new in taken:
                new = f"{self.name}_{new}"
            taken.add(new)
            renamed[name] = new
        return renamed

    def _before(self, rule: Rule, renamed: Mapping[str, str]) -> splice.Statements:
        own = [renamed[s] for s in self.state]

        def inner(node: ast.Return, values: list[ast.expr]) -> splice.Statements:
            return [splice.give(node, [*values, *own])]

        def outer(node: ast.Return, values: list[ast.expr]) -> splice.Statements:
            self._count(node, values, "g")
            then = splice.returning(splice.body(rule.source, {}), inner)
            return [*splice.assign(node, ["g", *own], values), *then]

        return splice.returning(splice.body(self.source, renamed, splice.parts(rule.source.tree)), outer)

    def _behind(self, rule: Rule, renamed: Mapping[str, str]) -> splice.Statements:
        asked = splice.names(self.source.tree)
        kept = [s for n in ("p", "g") if n in asked for s in splice.assign(rule.source.tree, [renamed[n]], [n])]

        def inner(node: ast.Return, values: list[ast.expr]) -> splice.Statements:
            def outer(end: ast.Return, results: list[ast.expr]) -> splice.Statements:
                self._count(end, results, "new")
                return [splice.give(end, [results[0], *values[1:], *results[1:]])]

            body = splice.body(self.source, renamed, splice.parts(rule.source.tree))
            return [*splice.assign(node, [renamed["new"]], values[:1]), *splice.returning(body, outer)]

        return [*kept, *splice.returning(splice.body(rule.source, {}), inner)]

    def _count(self, node: ast.Return, values: list[ast.expr], first: str) -> None:
        if len(values) != 1 + len(self.state):
            wanted = ", ".join((first, *self.state))
            given = "1 value" if len(values) == 1 else f"{len(values)} values"
            self.source.refuse(node, f"returns {given}; expected {1 + len(self.state)}: {wanted}.")

    def _function(
        self,
        rule: Rule,
        renamed: Mapping[str, str],
        title: str,
        state: tuple[str, ...],
        schema: Mapping[str, Hyper],
        supplied: tuple[str, ...],
    ) -> Callable[..., Any]:
        """One step of the whole, as an ordinary function that calls both formulas."""
        positional = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("p", "g", *state)]
        defaults = {**{n: h.default for n, h in schema.items()}, **dict.fromkeys(supplied, REQUIRED)}
        keyword = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d) for n, d in defaults.items()]
        whole = inspect.Signature([*positional, *keyword])
        own = {n: renamed[n] for n in self.schema} | {n: n for n in (*self.supplied, *self.borrowed)}
        inner = (*rule.schema, *_supplied(rule))

        def formula(*args: Any, **named: Any) -> Any:
            bound = whole.bind(*args, **named)
            bound.apply_defaults()
            p, g, *states = bound.args
            theirs, mine = states[: len(rule.state)], states[len(rule.state) :]
            settings = {n: bound.arguments[k] for n, k in own.items()}
            if not self.behind:
                g, *mine = _tuple(self.source.function(p, g, *mine, **settings))
            new, *theirs = _tuple(rule.formula(p, g, *theirs, **{n: bound.arguments[n] for n in inner}))
            if self.behind:
                new, *mine = _tuple(self.source.function(p, g, new, *mine, **settings))
            return (new, *theirs, *mine) if states else new

        formula.__name__ = formula.__qualname__ = title
        formula.__doc__ = "\n\n".join(filter(None, map(inspect.cleandoc, (self.__doc__ or "", rule.__doc__ or ""))))
        formula.__signature__ = whole  # type: ignore[attr-defined]
        return formula

    def __repr__(self) -> str:
        shown = ", ".join(n if h.default is REQUIRED else f"{n}={h.default!r}" for n, h in self.schema.items())
        return f"<wrapper {self.name}(rule, {shown})>"


def _supplied(rule: Rule) -> tuple[str, ...]:
    return ("t",) * rule.timed + (MATRIX,) * (MATRIX in rule.switches)


def _tuple(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def before(function: _Text | None = None, /, *, init: _Starts | None = None, view: _Text | None = None) -> Any:
    """Make a wrapper of `(p, g, *state, *, **hyperparameters[, t]) -> (g, *state)`: the rule sees the new g.

    Body, states, `init`, `view`, hyperparameters and errors are those of `fastopt.rule`; an `lr` without a default is
    that of the rule.
    """
    return _wrapper(function, init or {}, view, behind=False)


def behind(function: _Text | None = None, /, *, init: _Starts | None = None, view: _Text | None = None) -> Any:
    """Make a wrapper of `(p, g, new, *state, *, **hyperparameters[, t]) -> (new, *state)`.

    p and g are what the step found, `new` is what the rule made of p. Else as `before`.
    """
    return _wrapper(function, init or {}, view, behind=True)


def _wrapper(function: _Text | None, init: _Starts, view: _Text | None, behind: bool) -> Any:
    if function is None:
        return lambda f: _wrapper(f, init, view, behind)
    source = read(function)
    state, schema, timed, matrix = signature(source)
    if behind and state[:1] != ("new",):
        source.refuse(source.tree, "stands behind a rule, so it takes (p, g, new, states, *, hyperparameters).")
    state = state[behind:]
    borrowed = tuple(n for n in ("lr",) if n in schema and schema[n].default is REQUIRED)
    if changed := splice.assigned(source.tree) & {"p", *schema, *(("g",) if behind else ())}:
        source.refuse(source.tree, f"assigns to `{min(changed)}`, which is not its own; choose another name.")
    if wrong := [s for s, v in init.items() if s not in state or (isinstance(v, str) and v != "p" and v not in schema)]:
        source.refuse(source.tree, f"gives `{wrong[0]}` the start {init[wrong[0]]!r}; see fastopt.rule.")
    schema = {n: h for n, h in schema.items() if n not in borrowed}
    made = Wrapper(source, behind, state, schema, dict(init), ("t",) * timed + (MATRIX,) * matrix, borrowed, view)
    if not str(source.function.__module__).startswith("fastopt."):  # our own are checked by their tests
        made(_PLAIN)
    return made


_PLAIN = declare("def plain(p, g, *, lr):\n    return p - lr * g")
