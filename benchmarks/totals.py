"""Rules with totals, pass by pass: `python -m benchmarks.totals [--rows N] [--rule NAME ...] [--out FILE.json]`.

On a matrix, so that rules with numbers per row and column have them. The limit of a pass is a kernel that reads and
writes as many buffers in place and computes next to nothing; the limit of a rule is that of all its passes. A step and
its limit take turns; figures are medians, a ratio is the median of the ratios of neighbours in time.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import facts, limits
from benchmarks.report import finish, markdown, setting
from benchmarks.step import figures
from fastopt.commands import bench, rule_named
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule
from fastopt.traffic import moved, usual

GOAL = 0.85
ROWS, COLUMNS = 8192, 4096
RULES = [name for name, rule in CATALOGUE.items() if usual(rule, matrix=True).slots]


def measure(rule: Rule, shape: tuple[int, int], **timing: Any) -> list[dict[str, Any]]:
    """A row for the whole step, and one for each of its passes where there are several."""
    lowered, n = usual(rule, matrix=True), shape[0] * shape[1]
    if lowered.matrices:
        return []
    p, g = bench.buffer(n, 0.5).reshape(shape), bench.buffer(n, 1e-3).reshape(shape)
    optimizer = rule(p)
    parts = {"step": (partial(optimizer.step, g), lowered)}
    optimizer.step(g)  # compiles, and makes the plan
    if len(lowered.passes) > 1:
        plan, clock = optimizer._plan, optimizer._clock
        assert plan is not None
        for k, q in enumerate(lowered.passes):
            parts[f"pass {k + 1}"] = (partial(plan.launches[0].run, k, clock, False), replace(lowered, passes=(q,)))
    rows = []
    for name, (step, part) in parts.items():
        limit, _ = limits.streams(n, part)
        seen = moved(part)
        samples = bench.interleave({"fastopt": step, "limit": limit}, **timing)
        rows.append(
            {
                "rule": rule.name,
                "part": name,
                "read": seen.loads,
                "written": seen.stores,
                "bytes": seen.bytes,
                "of the limit": samples["fastopt"].times_faster_than(samples["limit"]),
                "contenders": figures(samples, n * seen.bytes),
            }
        )
    return rows


def run(rules: Sequence[Rule], shape: tuple[int, int], repeat: int, budget: float) -> dict[str, Any]:
    others, rows = facts.Others(), []
    for rule in rules:
        print(f"{rule.name} ...", file=sys.stderr)
        rows += measure(rule, shape, repeat=repeat, budget=budget, warmup=2)
    return {"shape": list(shape), "machine": facts.machine() | {facts.OTHERS: others.share()}, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = []
    for r in result["rows"]:
        rates = [f"{r['contenders'][name].get('gbps', 0.0):.1f}" for name in ("fastopt", "limit")]
        fraction, whole = r["of the limit"], r["part"] == "step"
        met = ("yes" if fraction >= GOAL else "**no**") if whole else ""
        counts = [str(r[name]) for name in ("read", "written", "bytes")]
        lines.append((r["rule"] if whole else "", r["part"], *counts, *rates, f"{fraction:.3f}", met))
    head = ("", "", "read", "written", "bytes", "GB/s", "limit, GB/s", "of the limit", f">= {GOAL:g}")
    rows, columns = result["shape"]
    return f"A float32 matrix of {rows:,} x {columns:,}. {setting(result)}\n\n{markdown(head, lines)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.totals", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"of {COLUMNS} columns (default: {ROWS})")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="rounds (default: 15)")
    parser.add_argument("--budget", type=float, default=20.0, metavar="S", help="seconds for a part (default: 20)")
    parser.add_argument("--rule", nargs="+", default=RULES, metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results, and FILE.md with the table")
    args = parser.parse_args(words)
    shape = args.rows, COLUMNS
    result = run([rule_named(name) for name in args.rule], shape, args.repeat, args.budget)
    finish(result, table(result), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
