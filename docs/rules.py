"""Writes docs/rules.md from the catalogue: `python docs/rules.py`."""

import inspect
import itertools
import sys
from pathlib import Path

from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.rules.readings import READINGS
from fastopt.schema import Rule

HEAD = """# Rules

Generated from the catalogue by `python docs/rules.py`. Bytes are for float32 parameters and gradients: state per
parameter, and what a step moves (reads of p, g and state, writes of p and state).
"""

BETWEEN = """# Readings

The same rules as other libraries write them, with their defaults, for a training loop that moves here: `fo.keras.adam`,
`fo.optax.adam`. The hyperparameters have fastopt's names; their values mean what they mean there.
"""


def section(rule: Rule) -> str:
    source = inspect.getsource(rule.formula)
    lines = [f"## {rule.name}", "", inspect.cleandoc(rule.__doc__ or ""), "", "```text"]
    lines += [line for line in source.splitlines() if not line.startswith("@")]
    lines += ["```", "", "| switches | state | state, bytes | moved, bytes |", "|---|---|---|---|"]
    seen: set[tuple[str, ...]] = set()
    for truth in itertools.product((False, True), repeat=len(rule.switches)):
        chosen = tuple(zip(rule.switches, truth, strict=True))
        state = lower(rule, chosen).state
        if state not in seen:
            seen.add(state)
            on = ", ".join(n for n, v in chosen if v) or "-"
            names = ", ".join(state) or "none"
            lines.append(f"| {on} | {names} | {4 * len(state)} | {4 * (3 + 2 * len(state))} |")
    return "\n".join(lines)


def text() -> str:
    catalogue, readings = ("\n\n".join(section(rule) for rule in table.values()) for table in (CATALOGUE, READINGS))
    return f"{HEAD}\n{catalogue}\n\n{BETWEEN}\n{readings}\n"


if __name__ == "__main__":
    sys.exit(Path(__file__).with_suffix(".md").write_text(text()) == 0)
