"""What a file says of rules and schedules, which are code and are not saved: enough to notice that they changed."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np

from fastopt.matrices import MatrixFunction
from fastopt.schedules.declare import Schedule
from fastopt.schedules.plateau import Plateau
from fastopt.schema import MATRIX, Rule

# of syntax nodes: what does not change the meaning, or is not there in every version of Python
_SILENT = frozenset(("ctx", "kind", "type_comment", "annotation", "simple"))


@lru_cache(maxsize=256)
def digest(rule: Rule) -> str:
    """16 hex digits of a rule's formula, its hyperparameters' defaults and how its states start.

    Spaces, comments, docstrings, annotations and the name by which a function was imported do not count; the names of
    variables do. A function of matrices counts by its name alone.
    """
    texts = [s for s in rule.source.tree.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    body = [s for s in rule.source.tree.body if s not in texts]  # a wrapped rule may have several docstrings
    stored = {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known = stored | {"p", "g", "t", MATRIX, *rule.state, *rule.schema}
    content = [
        rule.state,
        {n: None if v is ... else _number(v) for n, v in rule.hyper.items()},
        {n: v if isinstance(v, str) else _number(v) for n, v in rule.init.items()},
        [_plain(rule, statement, known) for statement in body],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _number(value: Any) -> str:
    return str(value) if isinstance(value, bool | np.bool_) else float(value).hex()


def _plain(rule: Rule, node: Any, known: set[str]) -> Any:
    """A piece of syntax as nested lists; constants of the module by their value."""
    if isinstance(node, list):
        return [_plain(rule, n, known) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return ["number", _number(node.value)]
    if isinstance(node, ast.Name | ast.Attribute):
        name = ast.unparse(node)
        value = None if name in known else rule.source.lookup(node)
        return ["number", _number(value)] if isinstance(value, int | float | np.number) else ["name", name]
    if isinstance(node, ast.Call):
        function = rule.source.lookup(node.func)
        name = function.__name__ if isinstance(function, MatrixFunction) else rule.source.meant(node)
        return ["call", name or ast.unparse(node.func), [_plain(rule, a, known) for a in node.args]]
    content = {k: v for k, v in ast.iter_fields(node) if k not in _SILENT and v not in (None, [])}
    return [type(node).__name__, {k: _plain(rule, v, known) for k, v in content.items()}]


def described(value: Callable[..., Any]) -> str:
    """A schedule in words, as it would be written: `cosine(peak=0.1, total=100, warmup=0, floor=0.0)`."""
    if isinstance(value, Schedule):
        return f"{value.make.__name__}({', '.join(f'{n}={_argument(v)}' for n, v in value.values)})"
    if isinstance(value, Plateau):
        return f"Plateau({', '.join(f'{f.name}={getattr(value, f.name)!r}' for f in fields(value) if f.init)})"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"function {name.replace('<locals>.', '')}"


def _argument(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_argument, value))}]"
    return described(value) if callable(value) else repr(value)
