"""`@rule`: a function read as a rule. What it may contain is checked when it is declared."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args, overload

from fastopt import lower, views
from fastopt.errors import RuleError
from fastopt.formula import Formula, read
from fastopt.math import FUNCTIONS
from fastopt.schema import MATRIX, OPTIONS, REQUIRED, Domain, Hyper, Rule

# The field's names carry their domain: one table instead of an annotation on every rule.
_BY_NAME = {
    ("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value"): Domain(low=0.0),
    ("beta", "beta1", "beta2", "beta3"): Domain(low=0.0, high=1.0, open_high=True),
    ("temperature",): Domain(low=0.0),
    ("seed",): Domain(low=0.0, high=2.0**24 - 1, whole=True),  # float32 holds these
}


@overload
def rule(
    function: Callable[..., Any] | str,
    /,
    *,
    init: Mapping[str, float | str] | None = None,
    view: Callable[..., Any] | str | None = None,
    name: str = "",
) -> Rule: ...
@overload
def rule(
    *,
    init: Mapping[str, float | str] | None = None,
    view: Callable[..., Any] | str | None = None,
    name: str = "",
) -> Callable[[Callable[..., Any] | str], Rule]: ...
def rule(
    function: Callable[..., Any] | str | None = None,
    /,
    *,
    init: Mapping[str, float | str] | None = None,
    view: Callable[..., Any] | str | None = None,
    name: str = "",
) -> Rule | Callable[[Callable[..., Any] | str], Rule]:
    """Make a rule of a function `(p, g, *state, *, **hyperparameters[, t]) -> (p, *state)`.

    `p` and `g` are one element of a parameter and of its gradient, the further positional parameters are state, one
    element each, keyword-only ones are hyperparameters. Two of those are supplied: `t` counts steps from 1, `matrix`
    tells whether the parameter is 2-d. The body is assignments, `if`s on switches, and one return. `init` says how a
    state starts (see `Rule.init`).

    `view` is what `opt.eval()` shows instead of p: the name of a state, or a formula of p, states and hyperparameters,
    `(p, z, *, beta1) -> x`. `name` is the rule's name where the function's would be ambiguous, as in "keras.adam".

    A state whose new value depends on no element, only on `total`s, is a single float64 number per parameter, and one
    that depends on totals over "row" or "column" alone has a number for each of those.

    Raises `RuleError` (file, line, reason) for anything that is not such a formula.
    """
    if function is None:
        return lambda f: rule(f, init=init, view=view, name=name)
    if not isinstance(name, str) or not name.isprintable():  # it stands in a comment of the generated code
        raise RuleError(f"the name of a rule is {name!r}; expected a printable text.")
    source = replace(read(function), title=name)
    state, schema, timed, matrix = signature(source)
    unknown = [n for n in init or {} if n not in state]
    if unknown:
        source.refuse(source.tree, f"gives a start for `{unknown[0]}`, which is not one of its states {list(state)}.")
    for name, start in (init or {}).items():
        if isinstance(start, str) and start != "p" and start not in schema:
            source.refuse(
                source.tree, f"starts `{name}` at {start!r}; expected a number, a hyperparameter's name or 'p'."
            )
    made = Rule(
        name=source.name,
        formula=source.function,
        source=source,
        state=state,
        schema=schema,
        init=dict(init or {}),
        switches=lower.switches(source, schema) + (MATRIX,) * matrix,
        timed=timed,
    )
    made = made if view is None else views.attach(made, view)
    if not str(source.function.__module__).startswith("fastopt.rules."):
        lower.check(made)  # our own are checked by their tests, or importing fastopt would take as long again
        views.check(made)
    return made


def signature(source: Formula) -> tuple[tuple[str, ...], dict[str, Hyper], bool, bool]:
    """The states, the hyperparameters, and whether it takes `t` and `matrix`. Raises `RuleError`."""
    positional, keyword = [], {}
    for q in inspect.signature(source.function, eval_str=True).parameters.values():
        if q.kind in (q.VAR_POSITIONAL, q.VAR_KEYWORD):
            source.refuse(source.tree, f"takes `*{q.name}`; name every state and hyperparameter.")
        if q.kind is q.KEYWORD_ONLY:
            keyword[q.name] = q
        elif q.default is not q.empty:
            source.refuse(source.tree, f"gives `{q.name}` a default; put hyperparameters behind a `*`.")
        else:
            positional.append(q.name)
    if positional[:2] != ["p", "g"]:
        source.refuse(source.tree, f"takes ({', '.join(positional)}); the first two must be `p` and `g`.")
    settings = {n for names in _BY_NAME for n in names} - {"momentum"}  # which is a fine name for a state, too
    if known := [n for n in positional[2:] if n in settings]:
        source.refuse(source.tree, f"takes `{known[0]}` as a state; hyperparameters stand behind the `*`.")
    for name in {"params", "rule", "frozen", *OPTIONS} & {*positional, *keyword}:
        source.refuse(source.tree, f"names something `{name}`, a word the optimizer itself uses; choose another name.")
    if called := [n for n in keyword if n in FUNCTIONS]:
        source.refuse(source.tree, f"has a hyperparameter `{called[0]}`, a function of fastopt.math; rename it.")
    t = keyword.pop("t", None)
    if t is not None and t.default is not t.empty:
        source.refuse(source.tree, "gives `t` a default; it is supplied and counts from 1.")
    matrix = keyword.pop(MATRIX, None)
    if matrix is not None and matrix.default is not matrix.empty:
        source.refuse(source.tree, "gives `matrix` a default; it is supplied: is the parameter 2-d?")
    schema = {name: _hyper(source, q) for name, q in keyword.items()}
    return tuple(positional[2:]), schema, t is not None, matrix is not None


def _hyper(source: Formula, q: inspect.Parameter) -> Hyper:
    if q.default is not q.empty and type(q.default) not in (bool, int, float):
        source.refuse(source.tree, f"gives `{q.name}` the default {q.default!r}; expected a number or a bool.")
    annotated = [a for a in get_args(q.annotation) if isinstance(a, Domain)]
    named = [d for names, d in _BY_NAME.items() if q.name in names]
    hyper = Hyper(q.name, q.default, [*annotated, *named, Domain()][0])
    if not hyper.boolean and hyper.default is not REQUIRED and hyper.default not in hyper.domain:
        source.refuse(source.tree, f"gives `{q.name}` the default {q.default!r}; expected {hyper.domain}.")
    return hyper
