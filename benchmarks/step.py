"""The step, measured against the memory and against peers: `python -m benchmarks.step [--quick] [--out FILE.json]`.

Every row of the design's table that concerns the CPU, fastopt's first part. Contenders are interleaved in one process;
figures are medians; a ratio is the median of the ratios of neighbours in time. `benchmarks.report` makes the documents.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fastopt as fo
from benchmarks import cold, facts, limits
from benchmarks.peers import deepspeed_step
from fastopt.commands import bench
from fastopt.commands import peers as rivals
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule
from fastopt.traffic import moved, usual

MEMORY_BOUND = 10**7  # elements; 28 bytes each: more than any cache
_KINDS = {"torch fused": "fused", "torch foreach": "foreach"}


@dataclass(frozen=True)
class Row:
    """One measured figure with its goal. value None: could not be measured here, `note` says why."""

    key: str
    what: str
    value: float | None
    unit: str  # "x": times; "of": fraction of the memory limit; "s": seconds
    goal: float | None = None
    note: str = ""
    contenders: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds, q1, q3 [, gbps]

    @property
    def met(self) -> bool | None:
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.unit == "s" else self.value >= self.goal


def figures(samples: dict[str, bench.Sample], size: float = 0.0) -> dict[str, dict[str, float]]:
    """What is stored of each contender; size: bytes per step, for GB/s."""
    out = {}
    for name, s in samples.items():
        low, high = s.quartiles
        out[name] = {"seconds": s.median, "q1": low, "q3": high} | ({"gbps": size / s.median / 1e9} if size else {})
    return out


def loose(count: int, each: int) -> tuple[list, list]:
    return [bench.buffer(each, 0.5) for _ in range(count)], [bench.buffer(each, 1e-3) for _ in range(count)]


def peers(count: int, each: int) -> dict[str, rivals.Step]:
    """AdamW of torch and DeepSpeed over `count` tensors of their own; those not installed are left out."""
    made = {name: rivals.torch_step(fo.adamw, *loose(count, each), kind=kind) for name, kind in _KINDS.items()}
    made["DeepSpeed CPUAdam"] = deepspeed_step(fo.adamw, *loose(count, each))
    return {name: step for name, step in made.items() if step}


MISSING = {"torch fused": "torch is not installed", "DeepSpeed CPUAdam": "DeepSpeed is not installed"}


def ours(count: int, each: int) -> rivals.Step:
    p, g = loose(count, each)
    return partial(fo.adamw(p).step, g) if count > 1 else partial(fo.adamw(p[0]).step, g[0])


def against(key: str, what: str, samples: dict[str, bench.Sample], other: str, goal: float, stored: dict) -> Row:
    if other not in samples:
        return Row(key, what, None, "x", goal, MISSING[other], stored)
    return Row(key, what, samples["fastopt"].times_faster_than(samples[other]), "x", goal, "", stored)


def large(n: int, **timing: Any) -> list[Row]:
    others = {name: step for name, step in peers(1, n).items() if name != "torch foreach"}
    limit = {"memory limit": limits.read_modify_write(n, 2), "NumPy copy": limits.copy(n)}
    samples = bench.interleave({"fastopt": ours(1, n)} | others | limit, **timing)
    stored = figures(samples, 28 * n)
    stored["NumPy copy"]["gbps"] *= 8 / 28
    name = f"AdamW, {n:,} float32"
    fraction = samples["fastopt"].times_faster_than(samples["memory limit"])
    return [
        Row("limit", f"{name}: of the memory limit", fraction, "of", 0.95, "", stored),
        against("large-torch", f"{name}: against torch fused", samples, "torch fused", 1.0, stored),
        against("large-deepspeed", f"{name}: against DeepSpeed CPUAdam", samples, "DeepSpeed CPUAdam", 1.0, stored),
    ]


def tensors(count: int, each: int, goal: float, **timing: Any) -> Row:
    p, g = loose(count, each)
    packed = fo.pack(p)
    for grad, values in zip(packed.grads, g, strict=True):
        grad[...] = values
    mine = {"fastopt": ours(count, each), "fastopt packed": fo.adamw(packed).step}
    limit = {"memory limit": limits.read_modify_write(count * each, 2)} if count * each >= MEMORY_BOUND else {}
    samples = bench.interleave(mine | peers(count, each) | limit, **timing)
    what = f"AdamW, {f'{count} x' if count > 1 else 'one of'} {each:,}: against torch fused"
    stored = figures(samples, 28 * count * each)
    return against(f"tensors-{count}x{each}", what, samples, "torch fused", goal, stored)


def plain(n: int, **timing: Any) -> Row:
    samples = bench.race(fo.adamw, n, **timing).samples
    value = samples["fastopt"].times_faster_than(samples["NumPy out="])
    return Row("numpy", f"AdamW, {n:,}: against NumPy out=", value, "x", 8.0, "", figures(samples, 28 * n))


def starting(repeat: int) -> list[Row]:
    s = cold.measure(repeat)
    note = f"of it {s['numba']:.2f} s are Numba's own import"
    return [
        Row("import", "import fastopt", s["import"], "s", 0.3, "NumPy's import included"),
        Row("cold", "first step, cold", s["cold"], "s", 1.5, note),
        Row("warm", "first step, warm", s["warm"], "s", 0.3, note),
    ]


def rules(n: int, **timing: Any) -> list[Row]:
    """Every rule of the catalogue, as its defaults have it, as a fraction of the memory limit of its own bytes."""
    rows = []
    for rule in CATALOGUE.values():
        lowered = usual(rule)
        if lowered.matrices:
            continue  # not a question of memory
        shape = bench.shape_for(rule, n)
        p, g = bench.buffer(n, 0.5).reshape(shape), bench.buffer(n, 1e-3).reshape(shape)
        optimizer = rule(p)
        limit, _ = limits.streams(n, lowered)
        contenders = {"fastopt": partial(optimizer.step, g), "memory limit": limit}
        for name, kind in _KINDS.items():
            if step := rivals.torch_step(rule, [p.copy()], [g], kind):
                contenders[name] = step
        samples = bench.interleave(contenders, **timing)
        value = samples["fastopt"].times_faster_than(samples["memory limit"])
        stored = figures(samples, n * moved(lowered).bytes)
        rows.append(Row(f"rule-{rule.name}", f"{rule.name}, {n:,}: of the memory limit", value, "of", None, "", stored))
    return rows


def limit_step(rule: Rule, params: Sequence[Any], grads: Sequence[Any]) -> rivals.Step | None:
    """AdamW's bytes and no step; None where they may stay in a cache."""
    n = params[0].size
    return limits.read_modify_write(n, 2) if n >= MEMORY_BOUND else None


def sweep(sizes: Sequence[int], **timing: Any) -> list[dict[str, Any]]:
    """AdamW from small to large, for the picture; from MEMORY_BOUND elements on beside the memory limit."""
    races = []
    extra = {"DeepSpeed CPUAdam": deepspeed_step, "memory limit": limit_step}
    for n in sizes:
        r = bench.race(fo.adamw, n, extra, warmup=1 if n >= 10**7 else 3, **timing)
        races.append({"elements": n, "contenders": figures(r.samples, r.bytes)})
    return races


def run(quick: bool) -> dict[str, Any]:
    """All measurements; quick: the same code at small sizes, to see that it works."""
    others, rows = facts.Others(), []
    shrink, timing = (100, {"repeat": 3, "visit": 1e-3}) if quick else (1, {"repeat": 21})
    tasks = [
        ("memory", lambda: large(32_000_000 // shrink, **timing)),
        ("many tensors", lambda: [tensors(100, 64, 30.0, **timing), tensors(148, 1_000, 10.0, **timing)]),
        ("larger tensors", lambda: [tensors(148, 10_000 // shrink, 4.0, **timing)]),
        ("large tensors", lambda: [tensors(148, 100_000 // shrink, 1.4, **timing)]),
        ("one tensor", lambda: [tensors(1, 1_000, 4.0, **timing), tensors(1, 20_000, 4.0, **timing)]),
        ("NumPy", lambda: [plain(16_000_000 // shrink, budget=40.0, **timing)]),
        ("import and first step", lambda: starting(1 if quick else 7)),
        ("rules", lambda: rules(32_000_000 // shrink, **timing)),
    ]
    for name, task in tasks:
        print(f"{name} ...", file=sys.stderr)
        if not quick:
            facts.wait_for_quiet(20.0)
        rows += task()
    print("sweep ...", file=sys.stderr)
    races = sweep([10**k for k in (range(3, 5) if quick else range(3, 9))], budget=20.0, **timing)
    return {
        "quick": quick,
        "machine": facts.machine() | {facts.OTHERS: others.share()},
        "rows": [asdict(row) | {"met": None if quick else row.met} for row in rows],
        "sweep": races,
    }


def show(result: dict[str, Any]) -> None:
    lines = []
    for r in result["rows"]:
        gbps = r["contenders"].get("fastopt", {}).get("gbps")
        rate = f"{gbps:.1f}" if gbps else ""
        lines.append((r["what"], value(r), goal(r), verdict(r), rate, r["note"]))
    bench.table("fastopt, measured", ("", "measured", "goal", "met", "GB/s", ""), lines)


def value(row: dict[str, Any]) -> str:
    """The figure with its unit: three decimals near 1, and always enough that rounding cannot seem to meet the goal."""
    v, unit, wanted = row["value"], row["unit"], row["goal"]
    if v is None:
        return ""
    digits = 3 if unit == "of" or (unit == "x" and 0.9 <= v < 1.1) else 2
    while wanted not in (None, v) and (round(v, digits) - wanted) * (v - wanted) <= 0:
        digits += 1
    return f"{v:.{digits}f}{'' if unit == 'of' else ' s' if unit == 's' else 'x'}"


def goal(row: dict[str, Any]) -> str:
    g, unit = row["goal"], row["unit"]
    return "" if g is None else f"<= {g:g} s" if unit == "s" else f">= {g:g}{'x' if unit == 'x' else ''}"


def verdict(row: dict[str, Any]) -> str:
    return {True: "yes", False: "NO", None: ""}[row["met"]]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results")
    args = parser.parse_args(words)
    result = run(args.quick)
    show(result)
    if (result["machine"][facts.OTHERS] or 0.0) > 0.05:
        print("Other processes took more than 5 % of the cores: do not trust these figures.", file=sys.stderr)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
