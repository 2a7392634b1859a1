"""Does state in fewer bits learn as well? `python -m benchmarks.curves [--epochs N] [--seeds N] [--out FILE.json]`.

An MLP on handwritten digits, AdamW, the same start and the same order of examples for every way of storing. The loss is
that of the training set after each epoch; spread is the largest less the smallest of the seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from benchmarks.report import markdown
from fastopt.commands.models import Dataset, Network, digits

SIZES = (64, 256, 128, 10)
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"memory": "16bit"},
    "8bit": {"memory": "8bit"},
    "bf16, nearest": {"memory": "16bit", "rounding": "nearest"},
    "8bit, nearest": {"memory": "8bit", "rounding": "nearest"},
}


def learn(data: Dataset, seed: int, epochs: int, options: dict[str, Any]) -> dict[str, Any]:
    network = Network(SIZES)
    params = network.init(seed)
    result = fo.minimize(
        network.loss_and_grad, params, data=(data.x, data.y), rule=fo.adamw, lr=1e-3, batch_size=64, epochs=epochs,
        seed=seed, callbacks=[losses := _Losses(network, data)], **options,
    )  # fmt: skip
    del result
    return {"loss": losses.found, "accuracy": network.accuracy(params, data.x_test, data.y_test)}


class _Losses:
    def __init__(self, network: Network, data: Dataset):
        self.network, self.data = network, data
        self.found: list[float] = []

    def on_epoch(self, run: Any) -> None:
        self.found.append(self.network.loss(run.params, self.data.x, self.data.y))


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = []
    for name, runs in result["runs"].items():
        ends = np.array([r["loss"] for r in runs])
        places = sorted({0, len(ends[0]) // 4, len(ends[0]) // 2, len(ends[0]) - 1})
        shown = [f"{ends[:, k].mean():.4f}" for k in places]
        accuracy = np.mean([r["accuracy"] for r in runs])
        lines.append((name, *shown, f"{np.ptp(ends[:, -1]):.4f}", f"{100 * accuracy:.2f} %"))
    head = ("", *(f"loss, epoch {k + 1}" for k in places), "spread", "accuracy, held out")
    return f"An MLP {SIZES} on digits, {len(runs)} seeds.\n\n{markdown(head, lines)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="store the results, and FILE.md with the table")
    args = parser.parse_args(words)
    data = digits()
    runs = {n: [learn(data, seed, args.epochs, options) for seed in range(args.seeds)] for n, options in WAYS.items()}
    result = {"sizes": SIZES, "epochs": args.epochs, "runs": runs}
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
