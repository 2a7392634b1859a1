"""AdamW with state in fewer bits against torch's fused AdamW: `python -m benchmarks.memory [--elements N] [--out F]`.

All on one float32 array of N elements, steps taking turns in one process; figures are medians, a ratio is the median of
the ratios of neighbours in time.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes

import fastopt as fo
from benchmarks import facts
from benchmarks.report import finish, markdown, setting
from fastopt.commands import bench
from fastopt.commands.peers import torch_step

ELEMENTS = 1 << 25
HALVES = ("all in bf16", "all in bf16, nearest")  # parameters and gradients, too
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"state_dtype": "bf16"},
    "bf16, nearest": {"state_dtype": "bf16", "rounding": "nearest"},
    "f16": {"state_dtype": "f16"},
    "8bit": {"memory": "8bit"},
    "8bit, nearest": {"memory": "8bit", "rounding": "nearest"},
    HALVES[0]: {"state_dtype": "bf16"},
    HALVES[1]: {"state_dtype": "bf16", "rounding": "nearest"},
}


def run(n: int, **timing: Any) -> dict[str, Any]:
    others, g = facts.Others(), bench.buffer(n, 1e-3)
    half = bench.buffer(n, 1e-3, ml_dtypes.bfloat16)
    steps: dict[str, Callable[..., Any]] = {}
    made = {}
    for name, options in WAYS.items():
        dtype, given = (ml_dtypes.bfloat16, half) if name in HALVES else ("f4", g)
        made[name] = fo.adamw(bench.buffer(n, 0.5, dtype), **options)
        steps[name] = partial(made[name].step, given)
    if torch := torch_step(fo.adamw, [bench.buffer(n, 0.5)], [g], "fused"):
        steps["torch fused, float32"] = torch
        steps["torch fused, all in bf16"] = _torch_in_halves(n)
    samples = bench.interleave(steps, **timing)
    rows = []
    for name, sample in samples.items():
        row = {"name": name, "ms": sample.median * 1e3}
        if name in made:
            row["bytes"] = made[name].memory().state_bytes / n
        if torch:
            row["times faster than torch"] = sample.times_faster_than(samples["torch fused, float32"])
        rows.append(row)
    return {"elements": n, "machine": facts.machine() | {facts.OTHERS: others.share()}, "rows": rows}


def _torch_in_halves(n: int) -> Callable[[], Any]:
    import torch

    p = torch.nn.Parameter(torch.full((n,), 0.5, dtype=torch.bfloat16))
    p.grad = torch.full((n,), 1e-3, dtype=torch.bfloat16)
    return torch.optim.AdamW([p], fused=True).step


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        (
            r["name"],
            f"{r['bytes']:.2f}" if "bytes" in r else "4.00" if "bf16" in r["name"] else "8.00",
            f"{r['ms']:.1f}",
            f"{r.get('times faster than torch', float('nan')):.2f}x",
        )
        for r in result["rows"]
    ]
    head = ("", "bytes of state per parameter", "ms", "times faster than torch fused")
    return f"AdamW, {result['elements']:,} float32 parameters. {setting(result)}\n\n{markdown(head, lines)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--elements", type=int, default=ELEMENTS, metavar="N", help=f"default: {ELEMENTS:,}")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="rounds (default: 15)")
    parser.add_argument("--budget", type=float, default=60.0, metavar="S", help="seconds (default: 60)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results, and FILE.md with the table")
    args = parser.parse_args(words)
    result = run(args.elements, repeat=args.repeat, budget=args.budget, warmup=2)
    finish(result, table(result), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
