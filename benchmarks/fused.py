"""A whole training step in one pass: `python -m benchmarks.fused [--quick] [--out FILE.json]`.

First a model: clip, AdamW, a moving average and gradients set to 0, on the 148 tensors of GPT-2 small (124 million
parameters), against torch's sequence of foreach and fused kernels on arrays of its own. Then every wrapper on one
array, as a fraction of the memory limit for the bytes of the whole: what its passes move, and no formula. Contenders
take turns; figures are medians, a ratio is the median of the ratios of neighbours in time.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from benchmarks import facts, limits
from benchmarks.report import finish, markdown, setting
from benchmarks.step import figures
from fastopt.commands import bench
from fastopt.schema import Rule
from fastopt.traffic import moved, usual

GOAL = 1.4
WIDTH, LAYERS, TOKENS, PLACES = 768, 12, 50257, 1024
WRAPPED: dict[str, Callable[[Rule], Rule]] = {
    "adamw": lambda rule: rule,
    "clip_value": lambda rule: fo.clip_value(rule, 1.0),
    "clip_norm": lambda rule: fo.clip_norm(rule, 1.0),
    "clip_each_norm": lambda rule: fo.clip_each_norm(rule, 1.0),
    "normalize": fo.normalize,
    "l1": fo.l1,
    "l2": fo.l2,
    "l2_sp": fo.l2_sp,
    "proximal_l1": fo.proximal_l1,
    "decoupled_decay": fo.decoupled_decay,
    "grokfast": fo.grokfast,
    "cautious": fo.cautious,
    "lookahead": fo.lookahead,
    "ema": fo.ema,
    "swa": fo.swa,
    "polyak_average": fo.polyak_average,
    "noisy": fo.noisy,
    "langevin": lambda rule: fo.langevin(rule, temperature=1e-9),
    "ema(clip_norm)": lambda rule: fo.ema(fo.clip_norm(rule, 1.0)),
}


def gpt2(shrink: int = 1) -> list[tuple[int, ...]]:
    """The shapes of GPT-2 small (Radford et al. 2019), its head tied to the embedding."""
    d = WIDTH // shrink
    layer = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(TOKENS // shrink, d), (PLACES, d), *(layer * LAYERS), (d,), (d,)]


def torch_sequence(shapes: Sequence[tuple[int, ...]]) -> Callable[[], None]:
    """clip_grad_norm_, fused AdamW, a foreach lerp as AveragedModel has it, and zero_grad in place."""
    import torch

    leaves = [torch.nn.Parameter(torch.from_numpy(bench.buffer(int(np.prod(s)), 0.5).reshape(s))) for s in shapes]
    for leaf in leaves:
        leaf.grad = torch.from_numpy(bench.buffer(leaf.numel(), 1e-3).reshape(leaf.shape))
    averages = [leaf.detach().clone() for leaf in leaves]
    optimizer = torch.optim.AdamW(leaves, lr=1e-3, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(leaves, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(averages, [leaf.detach() for leaf in leaves], 1 - 0.999)
        optimizer.zero_grad(set_to_none=False)

    return step


def model(shrink: int, **timing: Any) -> dict[str, Any]:
    shapes = gpt2(shrink)
    p, g = ([bench.buffer(int(np.prod(s)), fill).reshape(s) for s in shapes] for fill in (0.5, 1e-3))
    rule = fo.ema(fo.clip_norm(fo.adamw, 1.0))
    optimizer = rule(p, lr=1e-3, zero_grads=True)
    n = sum(a.size for a in p)
    limit, _ = limits.streams(n, usual(rule).around(False, True, ""))
    contenders = {"fastopt": partial(optimizer.step, g), "torch": torch_sequence(shapes), "memory limit": limit}
    samples = bench.interleave(contenders, **timing)
    mine, size = samples["fastopt"], fo.traffic(rule, zero_grads=True).bytes
    return {
        "tensors": len(shapes),
        "elements": n,
        "bytes": size,
        "against torch": mine.times_faster_than(samples["torch"]),
        "of the limit": mine.times_faster_than(samples["memory limit"]),
        "contenders": figures(samples, n * size),
    }


def wrapper(name: str, n: int, **timing: Any) -> dict[str, Any]:
    rule = WRAPPED[name](fo.adamw)
    lowered = usual(rule)
    p, g = bench.buffer(n, 0.5), bench.buffer(n, 1e-3)
    limit, _ = limits.streams(n, lowered)
    samples = bench.interleave({"fastopt": partial(rule(p, lr=1e-3).step, g), "memory limit": limit}, **timing)
    size = moved(lowered).bytes
    fraction = samples["fastopt"].times_faster_than(samples["memory limit"])
    return {"wrapper": name, "bytes": size, "of the limit": fraction, "contenders": figures(samples, n * size)}


def run(quick: bool, repeat: int, budget: float) -> dict[str, Any]:
    others, timing = facts.Others(), {"repeat": repeat, "budget": budget, "warmup": 2}
    print("the model ...", file=sys.stderr)
    whole = model(16 if quick else 1, **timing)
    rows = []
    for name in WRAPPED:
        print(f"{name} ...", file=sys.stderr)
        rows.append(wrapper(name, 10_000 if quick else 32_000_000, **timing))
    return {"quick": quick, "machine": facts.machine() | {facts.OTHERS: others.share()}, "model": whole, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    m = result["model"]
    times = [
        (name, bench.duration(c["seconds"]), f"{c['gbps']:.1f}")
        for name, c in sorted(m["contenders"].items(), key=lambda x: x[1]["seconds"])
    ]
    met = "met" if m["against torch"] >= GOAL else "**not met**"
    plain = next(r for r in result["rows"] if r["wrapper"] == "adamw")["of the limit"]
    lines = []
    for r in result["rows"]:
        share = r["of the limit"] / plain
        lines.append(
            (
                r["wrapper"],
                str(r["bytes"]),
                f"{r['of the limit']:.3f}",
                f"{share:.3f}",
                "" if share >= 0.95 else "**no**",
            )
        )
    return (
        f"clip_norm, AdamW, ema and zero_grads on {m['tensors']} tensors, {m['elements']:,} float32: "
        f"{m['against torch']:.2f}x torch's sequence (goal {GOAL}x, {met}), {m['of the limit']:.3f} of the memory "
        f"limit for its {m['bytes']} bytes an element. {setting(result)}\n\n"
        + markdown(("", "time per step", "GB/s"), times)
        + "\nEvery wrapper of AdamW on 32,000,000 float32, as a fraction of the memory limit for its own bytes, and "
        "that fraction beside AdamW's own:\n\n"
        + markdown(("wrapper", "bytes an element", "of the limit", "beside adamw", ">= 0.95"), lines)
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="rounds (default: 15)")
    parser.add_argument("--budget", type=float, default=25.0, metavar="S", help="seconds for a row (default: 25)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results, and FILE.md with the table")
    args = parser.parse_args(words)
    result = run(args.quick, args.repeat, args.budget)
    finish(result, table(result), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
