"""A target for tests: the passes of a lowered rule, executed by NumPy on whole arrays. It compiles nothing.

What it leaves out: matrices, random numbers, gradients of rows.
"""

import ast
from functools import cache

import numpy as np

from fastopt import math
from fastopt.lower import lower
from fastopt.statements import Level

_AXIS = {Level.REDUCED: None, Level.ROW: 1, Level.COLUMN: 0}
_GIVEN = {
    **math.FUNCTIONS,
    "where": np.where,
    "logical_not": np.logical_not,
    "real": lambda x: x,
    "wide": lambda x: x,
}


class Arrays(ast.NodeTransformer):
    """Conditions on elements as NumPy has them."""

    def visit_IfExp(self, node):
        self.generic_visit(node)
        return ast.Call(ast.Name("where", ast.Load()), [node.test, node.body, node.orelse], [])

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.Not):
            return node
        return ast.Call(ast.Name("logical_not", ast.Load()), [node.operand], [])


@cache
def compiled(text):
    tree = ast.fix_missing_locations(Arrays().visit(ast.parse(text, mode="eval")))
    return compile(tree, "<pass>", "eval")


def value(text, env):
    return eval(compiled(text), {**_GIVEN, **env})


class Machine:
    """One parameter under a rule; `step(g)` executes the passes, which is what every target prints."""

    def __init__(self, rule, p, **hyper):
        given = {**rule.hyper, **hyper}
        chosen = tuple((n, p.ndim == 2 if n == "matrix" else bool(given[n])) for n in rule.switches)
        self.lowered, self.given, self.t = lower(rule, chosen), given, 0
        assert not self.lowered.matrices and not self.lowered.noises
        self.buffers = {"p": p}
        for name in self.lowered.state:
            start = rule.init.get(name, 0.0)
            shapes = {Level.REDUCED: (), Level.ROW: (p.shape[0], 1), Level.COLUMN: (1, p.shape[-1])}
            shape = shapes[self.lowered.numbers[name]] if name in self.lowered.numbers else p.shape
            start = given[start] if isinstance(start, str) and start != "p" else start
            self.buffers[name] = p.copy() if isinstance(start, str) else np.full(shape, start)

    def step(self, g):
        self.t += 1
        staged = {**math.NUMBERS, **self.given, "t": self.t}
        columns = {c.name: eval(c.expression, dict(staged)) for c in self.lowered.columns}
        numbers, sums, p = {}, {}, self.buffers["p"]
        self.buffers["g"] = g
        counts = {"count": p.size, "rows": p.shape[0], "columns": p.shape[-1]}
        for q in self.lowered.passes:
            for n in q.numbers:
                env = {**columns, **numbers}
                if n.inner in _AXIS and n.text:
                    numbers[n.name] = np.sum(value(n.text, env))
                elif n.total:
                    numbers[n.name] = sums[n.total[0]]
                elif n.state:
                    numbers[n.name] = self.buffers[n.state]
                else:
                    numbers[n.name] = value(n.text, env) if n.text else counts[n.name]
            for state, name in q.kept:
                self.buffers[state] = numbers[name]
            env = {**columns, **numbers, **{local: self.buffers[b] for local, b in q.loads}}
            for line in q.body:
                name, text = line.split(" = ", 1)
                env[name] = value(text, env)
            for n, text in q.totals:
                whole = np.broadcast_to(value(text, env), p.shape)
                sums[n.total[0]] = whole.sum(axis=_AXIS[n.level], keepdims=n.level is not Level.REDUCED)
            self.buffers |= {b: np.broadcast_to(value(text, env), p.shape) for b, text in q.stores}
        return self.buffers["p"]
