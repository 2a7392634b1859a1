"""`fastopt.torch.AdamW` against `torch.optim.AdamW(fused=True)`: python -m benchmarks.torch_classes.

The whole `step()`, hooks and checks included.

Stable: gradients stay where they are (flat: in the buffer of `use_flat_grads`). Moving: every step finds other tensors.
The contenders take turns in one process, in shuffled order; a figure is the median of the ratios of neighbours.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

import fastopt.torch

GOALS = {"stable, flat": 8.0, "moving": 1.5}
MADE: dict[str, Callable] = {
    "torch fused": lambda p: torch.optim.AdamW(p, fused=True),
    "fastopt": lambda p: fastopt.torch.AdamW(p),
}


def parameters(count: int, size: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]


def gradients(params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [torch.randn_like(p) for p in params]


class Contender:
    def __init__(self, make: Callable, count: int, size: int, kind: str):
        self.params = parameters(count, size)
        self.opt = make(self.params)
        self.sets = [gradients(self.params) for _ in range(2 if kind == "moving" else 1)]
        self.t = 0
        self.give()
        if kind == "stable, flat" and hasattr(self.opt, "use_flat_grads"):
            self.opt.use_flat_grads()
            self.sets = []
        for _ in range(5):
            self.step()

    def give(self) -> None:
        self.t += 1
        for p, g in zip(self.params, self.sets[self.t % len(self.sets)], strict=True):
            p.grad = g

    def step(self) -> float:
        """Seconds of a step; gradients are assigned outside it."""
        if len(self.sets) > 1:
            self.give()
        start = time.perf_counter()
        self.opt.step()
        return time.perf_counter() - start


def measure(count: int, size: int, kind: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Per contender, the median time of a step in each round."""
    contenders = {name: Contender(make, count, size, kind) for name, make in MADE.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            found[name].append(statistics.median(contenders[name].step() for _ in range(steps)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=148)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, help="of torch; its own choice unless given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(
        f"AdamW, {options.count} x {options.size:,} float32, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for kind in ("stable", "stable, flat", "moving"):
        found = measure(options.count, options.size, kind, options.rounds, options.steps)
        times = ", ".join(f"{name} {1e6 * statistics.median(x):.0f} us" for name, x in found.items())
        pairs = zip(found["torch fused"], found["fastopt"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        goal = f" (goal {GOALS[kind]:g}x)" if kind in GOALS else ""
        print(f"{kind:13} {ratio:5.2f}x torch fused{goal}: {times}")


if __name__ == "__main__":
    main()
