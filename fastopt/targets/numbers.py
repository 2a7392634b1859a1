"""What the CPU target computes between two passes: a number per parameter, row or column, in float64."""

import numpy as np

from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import VECTORS, Level
from fastopt.targets import text

_FUNCTION = """

@njit
def numbers_{name}(parameters, addresses, hyper, reduced):{everywhere}
    for parameter in range(parameters.shape[0]):
        segment, group = parameters[parameter, 0], parameters[parameter, 1]
        count, rows, columns = parameters[parameter, 4], parameters[parameter, 5], parameters[parameter, 6]
{lines}
"""
FLOAT64 = np.dtype(np.float64)
_SIDE = {Level.ROW: "rows", Level.COLUMN: "columns"}


def function(name: str, lowered: Lowered, q: Pass) -> str:
    """The text of the function that computes the numbers of a pass; `parameters` is described in `cpu.py`."""
    lines = text.columns(lowered, [n.text for n in q.numbers], "wide({})")
    for n in q.earlier:
        lines += [_pointer(lowered, n)] if n.level in VECTORS else [f"{n.name} = reduced[segment, {n.slot}]"]
    known = {n.name: n for n in (*q.earlier, *q.numbers)}
    for n in q.numbers:
        lines += _vector(lowered, n, known) if n.level in VECTORS else _scalar(lowered, n, known)
    for state, new in q.kept:
        n, target = known[new], text.pointer(lowered, state, FLOAT64)
        if n.level in VECTORS:
            lines += [f"{n.name}_to = {target}", f"for j in range({_SIDE[n.level]}):"]
            lines += [f"    {n.name}_to[j] = {n.name}_at[j]"]
        else:
            lines += [f"{target}[0] = {new}"]
    slots = dict.fromkeys(n.total[0] for n in q.numbers if n.total and n.total[1] == "all")
    everywhere = "".join(f"\n    all{k} = everywhere(reduced, {k})" for k in slots)
    return _FUNCTION.format(name=name, everywhere=everywhere, lines=text.indent(lines, 8))


def _pointer(lowered: Lowered, n: Number) -> str:
    return f"{n.name}_at = {text.pointer(lowered, n.vector, FLOAT64)}"


def _scalar(lowered: Lowered, n: Number, known: dict[str, Number]) -> list[str]:
    if n.inner in VECTORS:
        lines = [f"{n.name} = 0.0", f"for j in range({_SIDE[n.inner]}):", *_elements(n, known)]
        lines += [f"    {n.name} += {text.wide(n.text, lowered)}"]
    elif n.total:
        k, over = n.total
        sums = {"all": f"all{k}", "group": f"of_group(reduced, {k}, segment)"}
        lines = [f"{n.name} = {sums.get(over, f'reduced[segment, {k}]')}"]
    elif n.state:
        lines = [f"{n.name} = {text.pointer(lowered, n.state, FLOAT64)}[0]"]
    else:
        lines = [f"{n.name} = {text.wide(n.text, lowered)}"] if n.text else [f"{n.name} = wide({n.name})"]
    return [*lines, f"reduced[segment, {n.slot}] = {n.name}"]


def _vector(lowered: Lowered, n: Number, known: dict[str, Number]) -> list[str]:
    lines = [_pointer(lowered, n)]
    if n.total:
        k, over = n.total  # rows were summed where they were read; columns are still in parts, one a chunk
        if over == "column":
            lines += [f"part = {text.pointer(lowered, f'partial{k}', FLOAT64)}"]
            lines += [f"add_columns(part, {n.name}_at, parameters[parameter])"]
    elif n.state:
        lines += [f"{n.name}_from = {text.pointer(lowered, n.state, FLOAT64)}", f"for j in range({_SIDE[n.level]}):"]
        lines += [f"    {n.name}_at[j] = {n.name}_from[j]"]
    else:
        lines += [f"for j in range({_SIDE[n.level]}):", *_elements(n, known)]
        lines += [f"    {n.name}_at[j] = {text.wide(n.text, lowered)}"]
    return lines


def _elements(n: Number, known: dict[str, Number]) -> list[str]:
    """Reads of the vectors that a statement names, at j."""
    named = [known[w] for w in sorted(text.words([n.text])) if w in known and known[w].level in VECTORS]
    return [f"    {v.name} = {v.name}_at[j]" for v in named]
