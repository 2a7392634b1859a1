"""Writes the table of wrappers in docs/one_pass.md: `python docs/wrappers.py`."""

import re
import sys
from pathlib import Path

import fastopt as fo
from fastopt import wrappers
from fastopt.schema import REQUIRED

PAGE = Path(__file__).with_name("one_pass.md")
NEEDED = {"clip_norm": {"max_norm": 1.0}, "clip_group_norm": {"max_norm": 1.0}, "clip_each_norm": {"max_norm": 1.0}}
NEEDED |= {"clip_value": {"limit": 1.0}, "independent_decay": {"initial_lr": 1e-3}}


def table() -> str:
    lines = ["| wrapper | what it does | state | bytes |", "|---|---|---|--:|"]
    for name in wrappers.__all__:
        wrapper = getattr(fo, name)
        made = wrapper(fo.adamw, **NEEDED.get(name, {}))
        hyper = {n: h.default for n, h in wrapper.schema.items()}
        given = "".join(f", {n}" if d is REQUIRED else f", {n}={d!r}" for n, d in hyper.items())
        first = wrapper.__doc__.strip().split("\n\n")[0].replace("\n", " ")
        first = re.sub(r"\s+", " ", first)
        state = ", ".join(made.state[len(fo.adamw.state) :]) or "none"
        lines.append(f"| `fo.{name}(rule{given})` | {first} | {state} | {fo.traffic(made).bytes} |")
    return "\n".join(lines)


def text() -> str:
    """The page with the table as it should be."""
    return re.sub(
        r"(<!-- wrappers:begin -->\n).*?(<!-- wrappers:end -->)",
        lambda m: f"{m[1]}{table()}\n{m[2]}",
        PAGE.read_text(),
        flags=re.S,
    )


if __name__ == "__main__":
    sys.exit(PAGE.write_text(text()) == 0)
