"""Stored results -> docs/benchmarks.md, its pictures, and the README's table: `python -m benchmarks.report [FILE]`.

Losses as well as wins: every row is printed, and wherever a peer's median is faster it is listed under a heading.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.facts import OTHERS
from benchmarks.step import goal, value
from fastopt.commands import picture
from fastopt.commands.bench import duration

ROOT = Path(__file__).parents[1]
MARKERS = re.compile(r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)", re.DOTALL)
YARDSTICKS = ("memory limit", "NumPy copy")  # move bytes and do no step
_INTRO = """\
# Benchmarks

Written by `python -m benchmarks.report` from stored results; do not edit. To measure on your machine:
`python -m benchmarks.step --out benchmarks/results/cpu.json`, then the report.

Contenders run interleaved in one process, in shuffled order, warm, compile time apart. Figures are medians; a ratio
is the median of the ratios of neighbours in time. GB/s counts the bytes a fused step must move (parameter, gradient
and state read; parameter and state written), whatever a contender really moves. The memory limit is a kernel that
reads and writes as many buffers in place and computes one addition each.
"""


_LOSSES = """\
## Where fastopt loses

Missed goals, then every measured row and every size of the sweep where a contender's median time is lower than
fastopt's, by the ratio of the two medians.

"""
_RULES = """\
## Every rule, as a fraction of the memory limit for its own bytes

GB/s; blank where torch has none. The rules were measured one after the other. Each row is a minute of its own: the
rule, its memory limit (a kernel that moves the same bytes) and torch, interleaved. The machine's bandwidth drifts from
minute to minute, so the limit differs between rows of equal bytes, and figures compare within a row, not down a column.
The last column is the median of the ratios of neighbours in time, not the ratio of the two medians before it.
"""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds names and the others figures, or notes."""
    rule = "|" + "|".join(["---", *("---" if h == "note" else "--:" for h in head[1:])]) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def finish(result: dict[str, Any], text: str, out: Path | None) -> None:
    """Print the text of results, say if the machine was busy, and store both: FILE.json and FILE.md."""
    print(text)
    if (result["machine"][OTHERS] or 0.0) > 0.05:
        print("Other processes took more than 5 % of the cores: do not trust these figures.", file=sys.stderr)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text, encoding="utf-8")


def setting(result: dict[str, Any]) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items() if v)
    others = m[OTHERS]
    busy = "" if others is None else f" Other processes took {others:.1%} of the cores' time meanwhile."
    return (f"{m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}; {versions}; threads: fastopt "
            f"{m['threads']['fastopt']} ({m['threads']['layer']}), torch {m['threads'].get('torch', '-')}. "
            f"Measured {m['date']}.{busy}")  # fmt: skip


def met(row: dict[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: ""}[row["met"]]


def goals(rows: Iterable[dict[str, Any]]) -> str:
    lines = [(r["what"], value(r), goal(r), met(r), r["note"]) for r in rows if r["goal"] is not None]
    return markdown(("", "measured", "goal", "met", "note"), lines)


def details(row: dict[str, Any]) -> str:
    """Every contender of a row, fastest first, fastopt's time as the unit."""
    c = row["contenders"]
    unit, lines = c["fastopt"]["seconds"], []
    for name, s in sorted(c.items(), key=lambda item: item[1]["seconds"]):
        spread, rate = f"{duration(s['q1'])} .. {duration(s['q3'])}", f"{s['gbps']:.1f}" if "gbps" in s else ""
        lines.append((name, duration(s["seconds"]), spread, rate, f"{s['seconds'] / unit:.2f}"))
    return markdown((row["what"].split(":")[0], "median", "quartiles", "GB/s", "time / fastopt's"), lines)


def slower(result: dict[str, Any]) -> list[str]:
    """What fastopt loses: goals missed, and every peer with a faster median, in any row, at any size of the sweep."""
    missed = [r for r in result["rows"] if r["met"] is False]
    found = [f"goal missed: {r['what']}: {value(r)}, wanted {goal(r)}" for r in missed]
    races = [(f"sweep, {r['elements']:,} elements", r["contenders"]) for r in result["sweep"]]
    for what, contenders in [(r["what"].split(":")[0], r["contenders"]) for r in result["rows"]] + races:
        for name, s in contenders.items():
            mine = contenders["fastopt"]
            if name not in (*YARDSTICKS, "fastopt packed") and s["seconds"] < mine["seconds"]:
                factor = mine["seconds"] / s["seconds"]
                spread = "beyond the quartiles" if s["q3"] < mine["q1"] else "the quartiles overlap"
                found.append(f"{what}: {name} is {factor:.3f} times as fast as fastopt ({spread})")
    return list(dict.fromkeys(found))


def document(result: dict[str, Any]) -> str:
    rows = {r["key"]: r for r in result["rows"]}
    losses = slower(result) or ["Nothing: no goal was missed, and no peer had a faster median."]
    seen: set[str] = set()
    tables = []
    for r in result["rows"]:
        head = r["what"].split(":")[0]
        if "fastopt" in r["contenders"] and head not in seen and not r["key"].startswith("rule-"):
            seen.add(head)
            tables.append(details(r))
    columns = ("fastopt", "memory limit", "torch fused", "torch foreach")
    catalogue = [
        (key.removeprefix("rule-"), *(_rate(r, name) for name in columns), value(r))
        for key, r in rows.items()
        if key.startswith("rule-")
    ]
    names = list(dict.fromkeys(name for r in result["sweep"] for name in r["contenders"]))
    times = [{name: duration(c["seconds"]) for name, c in r["contenders"].items()} for r in result["sweep"]]
    swept = [
        (f"{r['elements']:,}", *(t.get(n, "") for n in names)) for r, t in zip(result["sweep"], times, strict=True)
    ]
    parts = [
        f"{_INTRO}\n{setting(result)}\n",
        f"## Goals\n\n{goals(result['rows'])}",
        _LOSSES + "".join(f"- {line}\n" for line in losses),
        "## From small to large: AdamW on one float32 array\n\n![GB/s over elements](img/bench_sweep.png)\n",
        markdown(("elements", *names), swept),
        "## Every contender\n\n" + "\n".join(tables),
        _RULES,
        markdown(("", *columns, "of the limit"), catalogue),
    ]
    return "\n".join(parts)


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{row['contenders'][name]['gbps']:.1f}" if name in row["contenders"] else ""


def pictures(result: dict[str, Any], folder: Path) -> None:
    """bench_sweep.png: GB/s and relative time over size; the memory limit, where the results hold it."""
    races = []
    for r in result["sweep"]:
        mine = r["contenders"]["fastopt"]["seconds"]
        races.append((r["elements"], {name: (c["gbps"], c["seconds"] / mine) for name, c in r["contenders"].items()}))
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(picture.sweep("AdamW", races), folder / "bench_sweep.png")


def readme(result: dict[str, Any], file: Path) -> bool:
    """Put the table between the README's markers. False if there is no such file or no markers."""
    if not file.exists() or not MARKERS.search(text := file.read_text(encoding="utf-8")):
        return False
    rows = [r for r in result["rows"] if not r["key"].startswith("rule-")]
    lines = [(r["what"].replace("AdamW, ", ""), value(r) or "not installed", goal(r), met(r)) for r in rows]
    table = markdown(("float32 AdamW", "measured", "design goal", "met"), lines) + f"\n{setting(result)}\n"
    file.write_text(MARKERS.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")
    return True


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=ROOT / "benchmarks" / "results" / "cpu.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder to write into (default: docs)")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(words)
    result = json.loads(args.results.read_text(encoding="utf-8"))
    if result["quick"]:
        print("these are results of --quick, which measures nothing; run benchmarks.step without it", file=sys.stderr)
        return 1
    args.docs.mkdir(parents=True, exist_ok=True)
    (args.docs / "benchmarks.md").write_text(document(result), encoding="utf-8")
    pictures(result, args.docs / "img")
    done = readme(result, args.readme)
    print(f"written: benchmarks.md, img/bench_sweep.png{', README.md' if done else ' (no README.md with markers)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
