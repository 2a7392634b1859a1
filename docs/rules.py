"""Writes docs/rules.md from the catalogue: `python docs/rules.py`."""

import inspect
import itertools
import sys
from pathlib import Path

from fastopt.commands.rates import SETTINGS
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.rules.readings import READINGS
from fastopt.schema import Rule
from fastopt.traffic import kept, moved

HEAD = """# Rules

Generated from the catalogue by `python docs/rules.py`. Bytes are for float32 parameters and gradients. State: what an
optimizer keeps. Moved: what a step reads and writes for each element, all passes together; a rule that must know a
total first looks at its elements more than once. A state that no element takes part in is a float64 number per
parameter, row or column. Where nothing is said, state starts at 0.
"""

BETWEEN = """# Readings

The same rules as other libraries write them, with their defaults, for a training loop that moves here: `fo.keras.adam`,
`fo.optax.adam`. The hyperparameters have fastopt's names; their values mean what they mean there.
"""

COLUMNS = ("switches", "state", "state, bytes", "passes", "moved, bytes an element")


def section(rule: Rule) -> str:
    source = inspect.getsource(rule.formula)
    lines = [f"## {rule.name}", "", inspect.cleandoc(rule.__doc__ or ""), "", "```text"]
    lines += [*_formula(source), "```", ""]
    if rule.init:
        lines += [f"Starts: {', '.join(f'{name} at {_start(rule, name)}' for name in rule.init)}.", ""]
    if rule.name in SETTINGS:
        lines += [_digits(rule), ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    seen: dict[tuple[str, ...], None] = {}
    for truth in itertools.product((False, True), repeat=len(rule.switches)):
        chosen = tuple(zip(rule.switches, truth, strict=True))
        lowered = lower(rule, chosen)
        step = moved(lowered)
        calls = " and the matrices'" if step.calls else ""
        row = ", ".join(lowered.state) or "none", kept(lowered), str(step.passes), f"{step.bytes}{calls}"
        if row not in seen:
            seen[row] = None
            lines.append(f"| {' | '.join((', '.join(n for n, v in chosen if v) or '-', *row))} |")
    return "\n".join(lines)


def _formula(source: str) -> list[str]:
    """Signature and statements; the docstring stands above."""
    lines = [line for line in source.splitlines() if not line.startswith("@")]
    quotes = [k for k, line in enumerate(lines) if '"""' in line]
    last = quotes[0] if lines[quotes[0]].count('"""') == 2 else quotes[1]
    return lines[: quotes[0]] + lines[last + 1 :]


def _start(rule: Rule, name: str) -> str:
    start = rule.init[name]
    return "the parameter" if start == "p" else f"`{start}`" if isinstance(start, str) else f"{start:g}"


def _digits(rule: Rule) -> str:
    s = SETTINGS[rule.name]
    more = "".join(f", {name} {value:g}" for name, value in s.hyper.items())
    more += ", the whole data at each step" if s.whole else ""
    more += f", `{s.vectors}` for biases" if s.vectors else ""
    return f"`fastopt train`: lr {s.softmax:g} (softmax), {s.mlp:g} (mlp){more}."


def text() -> str:
    catalogue, readings = ("\n\n".join(section(rule) for rule in table.values()) for table in (CATALOGUE, READINGS))
    return f"{HEAD}\n{catalogue}\n\n{BETWEEN}\n{readings}\n"


if __name__ == "__main__":
    sys.exit(Path(__file__).with_suffix(".md").write_text(text()) == 0)
