"""Every rule against the memory: `python -m benchmarks.catalogue [--size N] [--rule NAME ...] [--out FILE.json]`.

A rule's limit is a kernel that reads and writes as many buffers in as many passes, and computes next to nothing. Rule
and limit take turns; figures are medians, the ratio is the median of the ratios of neighbours in time.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import facts, limits
from benchmarks.report import finish, markdown, setting
from benchmarks.step import figures
from fastopt.commands import bench, rule_named
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule
from fastopt.traffic import kept, moved, usual

GOAL = 0.9


def measure(rule: Rule, n: int, **timing: Any) -> dict[str, Any]:
    """One row of the results; `contenders` is empty for rules whose time is that of products of matrices."""
    lowered = usual(rule)
    seen = moved(lowered)
    row = {"rule": rule.name, "state": kept(lowered), "passes": seen.passes, "bytes": seen.bytes}
    if seen.calls:
        return row | {"of the limit": None, "contenders": {}}
    shape = bench.shape_for(rule, n)
    p, g = bench.buffer(n, 0.5).reshape(shape), bench.buffer(n, 1e-3).reshape(shape)
    limit, _ = limits.streams(n, lowered)
    samples = bench.interleave({"fastopt": partial(rule(p).step, g), "limit": limit}, **timing)
    fraction = samples["fastopt"].times_faster_than(samples["limit"])
    return row | {"of the limit": fraction, "contenders": figures(samples, n * seen.bytes)}


def run(rules: Sequence[Rule], n: int, repeat: int, budget: float) -> dict[str, Any]:
    others, rows = facts.Others(), []
    for rule in rules:
        print(f"{rule.name} ...", file=sys.stderr)
        rows.append(measure(rule, n, repeat=repeat, budget=budget, warmup=2))
    return {"elements": n, "machine": facts.machine() | {facts.OTHERS: others.share()}, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = []
    for r in result["rows"]:
        c, fraction = r["contenders"], r["of the limit"]
        rates = [f"{c[name]['gbps']:.1f}" if c else "" for name in ("fastopt", "limit")]
        shown = "products of matrices" if fraction is None else f"{fraction:.3f}"
        met = "" if fraction is None else "yes" if fraction >= GOAL else "**no**"
        lines.append((r["rule"], r["state"], str(r["passes"]), str(r["bytes"]), *rates, shown, met))
    head = ("", "state, bytes", "passes", "moved, bytes", "GB/s", "limit, GB/s", "of the limit", f">= {GOAL:g}")
    return f"{result['elements']:,} float32 elements. {setting(result)}\n\n{markdown(head, lines)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue", description=__doc__)
    parser.add_argument("--size", type=int, default=32_000_000, metavar="N", help="elements (default: 32,000,000)")
    parser.add_argument("--repeat", type=int, default=21, metavar="N", help="rounds (default: 21)")
    parser.add_argument("--budget", type=float, default=60.0, metavar="S", help="seconds for a rule (default: 60)")
    parser.add_argument("--rule", nargs="+", default=list(CATALOGUE), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results, and FILE.md with the table")
    args = parser.parse_args(words)
    result = run([rule_named(name) for name in args.rule], args.size, args.repeat, args.budget)
    finish(result, table(result), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
