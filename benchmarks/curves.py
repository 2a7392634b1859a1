"""Does storage in fewer bits learn as well? `python -m benchmarks.curves [--quick] [--task NAME ...] [--docs]`.

Three tasks, the same start and the same order of examples for every way of storing: an MLP on handwritten digits; a
language model of characters, an MLP that sees the eight before, on prose of the standard library; and embeddings of its
words, with gradients of rows. Losses are those of the training set after an epoch, of the words a running mean. --docs
writes results/curves.json, the table in docs/memory.md and docs/img/curves.png.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

import fastopt as fo
from benchmarks.report import markdown
from fastopt import blocks
from fastopt.commands import corpus, picture, words
from fastopt.commands.models import Network, digits

ROOT = Path(__file__).parents[1]
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"memory": "16bit"},
    "8bit": {"memory": "8bit"},
    "16-bit split": {"master": "split"},  # parameters in bfloat16, the other half beside them; state in float32
    "bf16, nearest": {"memory": "16bit", "rounding": "nearest"},
}
GOAL = {"8bit": 0.5}  # per cent of float32's final loss; 0.2 for the others
CONTEXT, ALPHABET = 8, 64
Losses = Iterator[float]


def minibatches(
    network: Network, x: np.ndarray, y: np.ndarray, epochs: int, lr: float, seed: int, options: dict[str, Any]
) -> Losses:
    """The loss of all examples after each epoch of AdamW, whose lr falls to 0 as a cosine."""
    steps, size = len(x) // 64, 64
    params: dict[str, Any] = network.init(seed)
    if "master" in options:
        params = {n: p.astype(ml_dtypes.bfloat16) for n, p in params.items()}
    schedule = fo.schedules.cosine(peak=lr, total=epochs * steps)
    opt, rng = fo.adamw(params, lr=schedule, **options), np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))[: steps * size].reshape(steps, size)
        for batch in order:
            opt.step(network.loss_and_grad(_wide(params), x[batch], y[batch])[1])
        yield network.loss(_wide(params), x, y)


def _wide(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return {n: np.asarray(p, np.float32) for n, p in params.items()}


def of_digits(seed: int, epochs: int, options: dict[str, Any]) -> Losses:
    data = digits()
    return minibatches(Network((64, 256, 128, 10)), data.x, data.y, epochs, 1e-3, seed, options)


def of_characters(seed: int, epochs: int, options: dict[str, Any]) -> Losses:
    text = corpus.text(300_000)[-12_000:]
    codes = np.array([max(0, min(ord(c), 95) - 32) for c in text.upper()])
    seen = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT)[:-1]
    x = np.zeros((len(seen), CONTEXT, ALPHABET), np.float32)
    x[np.arange(len(seen))[:, None], np.arange(CONTEXT), seen] = 1
    network = Network((CONTEXT * ALPHABET, 128, ALPHABET))
    return minibatches(network, x.reshape(len(seen), -1), codes[CONTEXT:], epochs, 2e-3, seed, options)


def of_words(seed: int, epochs: int, options: dict[str, Any]) -> Losses:
    text, ends = corpus.standard_library(cap=2_000_000), dict[int, float]()

    def watch(state: words.State) -> None:
        ends[state.epoch] = state.loss

    rule = partial(Halves if "master" in options else fo.adagrad, **options)
    settings = words.Settings(epochs=epochs, seed=seed, dim=blocks.BLOCK)  # a row is a block
    words.train(text, settings, cast(Any, rule), watch)
    yield from ends.values()


class Halves:
    """Adagrad on tables in bfloat16; those of float32 that gradients are computed from follow them."""

    def __init__(self, tables: dict[str, np.ndarray], **options: Any):
        self._tables, self._halves = tables, {n: p.astype(ml_dtypes.bfloat16) for n, p in tables.items()}
        self._optimizer = fo.adagrad(self._halves, **options)

    def step(self, grads: dict[str, Any]) -> None:
        self._optimizer.step(grads)
        for name, table in self._tables.items():
            rows = np.unique(grads[name].indices)
            table[rows] = self._halves[name][rows]


TASKS: dict[str, tuple[Callable[[int, int, dict[str, Any]], Losses], int]] = {
    "digits": (of_digits, 20),
    "characters": (of_characters, 6),
    "words": (of_words, 5),
}


def run(tasks: Sequence[str], seeds: int, epochs: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in tasks:
        learn, usual = TASKS[task]
        for name, options in WAYS.items():
            print(f"{task}, {name} ...", file=sys.stderr)
            runs = [list(learn(seed, epochs or usual, options)) for seed in range(seeds)]
            if all(runs):
                found.setdefault(task, {})[name] = runs
    return {"seeds": seeds, "losses": found}


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = []
    for task, runs in result["losses"].items():
        base = np.mean([r[-1] for r in runs["float32"]])
        for name, of in runs.items():
            ends = np.array([r[-1] for r in of])
            off, goal = 100 * (ends.mean() / base - 1), GOAL.get(name, 0.2)
            met = "" if name == "float32" else ("yes" if off <= goal else "**no**")
            shown = f"{ends.mean():.4f}", f"{np.ptp(ends):.4f}", "" if name == "float32" else f"{off:+.2f} %"
            lines.append((f"{task}, {name}", *shown, "" if name == "float32" else f"<= {goal:g} %", met))
    head = ("", "final loss", "spread", "against float32", "goal", "met")
    return f"Means of {result['seeds']} seeds; spread is the largest less the smallest.\n\n{markdown(head, lines)}"


def draw(result: dict[str, Any]) -> Any:
    """Loss against epoch, a panel a task."""
    figure = picture.figure(4 * len(result["losses"]), 3.2)
    panels = figure.subplots(1, len(result["losses"]), squeeze=False)[0]
    for panel, (task, runs) in zip(panels, result["losses"].items(), strict=True):
        for name, of in runs.items():
            mean = np.mean(of, axis=0)
            panel.plot(range(1, 1 + len(mean)), mean, label=name, linestyle="-" if name == "float32" else "--")
        panel.set(title=task, xlabel="epoch", ylabel="training loss")
        panel.legend(frameon=False, fontsize=8)
    return figure


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--quick", action="store_true", help="one seed and one epoch: shows that it runs")
    parser.add_argument("--docs", action="store_true", help="store the results, and write them into the docs")
    args = parser.parse_args(given)
    result = run(args.task, 1 if args.quick else args.seeds, 1 if args.quick else None)
    print(table(result))
    if args.docs:
        (ROOT / "benchmarks/results/curves.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        picture.save(draw(result), ROOT / "docs/img/curves.png")
        page = ROOT / "docs/memory.md"
        marks = r"(<!-- curves:begin -->\n).*?(<!-- curves:end -->)"
        page.write_text(re.sub(marks, lambda m: m[1] + table(result) + m[2], page.read_text(), flags=re.S))
    return 0


if __name__ == "__main__":
    sys.exit(main())
