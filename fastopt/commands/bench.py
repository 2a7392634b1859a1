"""Measuring: contenders interleaved in one process; `fastopt bench`."""

import argparse
import importlib.util
import math
import os
import random
import sys
import time
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np

from fastopt.commands import picture, rule_named
from fastopt.commands.peers import Step, numpy_naive, numpy_out, torch_step
from fastopt.errors import ConfigError
from fastopt.lower import of_matrices
from fastopt.progress import need
from fastopt.schema import Rule
from fastopt.traffic import moved, usual


@dataclass(frozen=True)
class Sample:
    """Seconds per call of one contender, one per round; equal rounds of two samples are neighbours in time."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = quantiles(self.seconds * 2, n=4, method="inclusive")  # twice: one round alone will do, too
        return low, high

    def times_faster_than(self, other: "Sample") -> float:
        """Median over the rounds of other/self: neighbours share the machine's mood, so drift cancels."""
        return median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(contenders: Mapping[str, Step], *, repeat: int = 15, warmup: int = 3, visit: float = 5e-3,
               pause: float = 4e-3, settle: float = 1e-3, budget: float = math.inf) -> dict[str, Sample]:  # fmt: skip
    """Time the contenders in turn, round after round, each round in a shuffled order (the same in every run).

    repeat: rounds; budget: no new one after so many seconds, but 3 in any case. warmup: untimed calls first, which also
    compile. visit: seconds timed per contender and round, at least one call. Before each, its predecessor's OpenMP
    threads are given `pause` seconds to stop spinning (GNU's do for 3.5 ms), and it runs untimed for `settle` seconds,
    at least once, to find its own data in the cache.
    """
    names, calls = list(contenders), {}
    for name in names:
        for _ in range(warmup):
            contenders[name]()
        calls[name] = max(1, round(visit / min(timeit.repeat(contenders[name], number=1, repeat=3))))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shuffle, begin = random.Random(0), time.perf_counter()
    for r in range(repeat):
        if r >= 3 and time.perf_counter() - begin > budget:
            break
        # a rotation would give everyone the same predecessor each time, and what that one did to caches and free pages
        for name in shuffle.sample(names, len(names)):
            time.sleep(pause)
            warm = time.perf_counter() + settle
            contenders[name]()
            while time.perf_counter() < warm:
                contenders[name]()
            seconds[name].append(timeit.timeit(contenders[name], number=calls[name]) / calls[name])  # without gc
    return {name: Sample(tuple(s)) for name, s in seconds.items()}


def buffer(n: int, fill: float = 0.0, dtype: Any = "f4") -> np.ndarray:
    """(n,) array at a 64-byte boundary, every page touched."""
    raw = np.empty(n * np.dtype(dtype).itemsize + 64, "u1")
    out = raw[-raw.ctypes.data % 64 :][: raw.size - 64].view(dtype)
    out.fill(fill)
    return out


def used_state(optimizer: Any) -> tuple[str, ...]:
    """Names of the state buffers that this optimizer, of one array, really has."""
    return tuple(name for name in optimizer.state if optimizer.state[name] is not None)


def shape_for(rule: Rule, n: int) -> tuple[int, ...]:
    """(n,); where a rule takes matrices alone, the one nearest to a square."""
    lowered = usual(rule)
    if not (lowered.shaped or lowered.matrices):
        return (n,)
    rows = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
    return rows, n // rows


@dataclass(frozen=True)
class Race:
    """One size of a sweep: samples by contender, "fastopt" first; bytes: what a fused step of that size must move."""

    elements: int
    bytes: int
    samples: dict[str, Sample]


def race(rule: Rule, n: int, extra: Mapping[str, Callable[..., Any]] | None = None, **timing: Any) -> Race:
    """fastopt and its peers on one float32 array of n elements; extra: name -> (rule, [p], [g]) -> step or None."""
    shape = shape_for(rule, n)
    p, g = buffer(n, 0.5).reshape(shape), buffer(n, 1e-3).reshape(shape)
    optimizer = rule(p)
    state = used_state(optimizer)
    made = {f"torch {kind}": torch_step(rule, [p], [g], kind) for kind in ("fused", "foreach")}
    made |= {name: make(rule, [p], [g]) for name, make in (extra or {}).items()}
    made |= {"NumPy out=": numpy_out(rule, p, g, state), "NumPy naive": numpy_naive(rule, p, g, state)}
    made = {"fastopt": partial(optimizer.step, g)} | {name: step for name, step in made.items() if step}
    return Race(n, n * moved(usual(rule)).bytes, interleave(made, **timing))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", default="adamw", help="a rule of the catalogue (default: adamw)")
    parser.add_argument("--sizes", nargs="+", default=[f"1e{k}" for k in range(3, 9)], metavar="N", help="elements")
    parser.add_argument("--plot", metavar="FILE.png", help="write a picture, too")


def main(args: argparse.Namespace | Sequence[str] | None = None) -> int:
    """`fastopt bench`. Takes what `add_arguments` parsed, or words (None: those of the command line). Returns 0."""
    if not isinstance(args, argparse.Namespace):
        parser = argparse.ArgumentParser(prog="fastopt bench", description="steps/s and GB/s against NumPy and torch")
        add_arguments(parser)
        args = parser.parse_args(args)
    rule, sizes, races = rule_named(args.rule), [_size(word) for word in args.sizes], []
    if of_matrices(rule):
        raise ConfigError(f"`{args.rule}` is for matrices, and this command measures vectors.")
    need("rich.table", "rich", "fastopt bench")
    if args.plot:
        picture.check(args.plot)
    with suppress(AttributeError, OSError):  # Windows
        if os.getloadavg()[0] > (os.cpu_count() or 1) / 4:
            print("This machine is busy: expect slow, scattered figures, the parallel ones above all.", file=sys.stderr)
    for n in sizes:
        if 96 * n > _free_memory():  # 24 float32 arrays: all contenders' states and NumPy's temporaries
            print(f"{n:,} elements left out: they need {96e-9 * n:.1f} GB of free memory.", file=sys.stderr)
            continue
        print(f"{args.rule}, {n:,} elements ...", file=sys.stderr)
        races.append(race(rule, n, warmup=1 if n >= 10**7 else 3, budget=8.0))
    if not races:
        raise ConfigError(f"--sizes: {', '.join(args.sizes)}: none fits into the free memory; give smaller ones.")
    head, rows = ("elements", "", "time per step", "steps/s", "GB/s", "fastopt is"), []
    for r in races:
        for name, s in r.samples.items():
            times = f"{r.samples['fastopt'].times_faster_than(s):.2f}x" if name != "fastopt" else ""
            rate, size = f"{r.bytes / s.median / 1e9:.2f}", "" if times else f"{r.elements:,}"
            rows.append((size, name, duration(s.median), f"{1 / s.median:,.0f}", rate, times))
    table(f"{args.rule}, float32: medians. GB/s counts the bytes a fused step must move", head, rows)
    for line in left_out(rule, races):
        print(line)
    if args.plot:
        curves = [(r.elements, _points(r)) for r in races]
        picture.save(picture.sweep(args.rule, curves), args.plot)
        print(f"picture: {args.plot}")
    return 0


def left_out(rule: Rule, races: Iterable[Race]) -> list[str]:
    """What took no part, and why."""
    ran = {name for r in races for name in r.samples}
    lines = []
    if missing := [name for name in ("torch fused", "torch foreach") if name not in ran]:
        here = importlib.util.find_spec("torch") is not None
        why = f"torch has none for {rule.name}" if here else "torch is not installed; pip install torch"
        lines.append(f"left out: {' and '.join(missing)} ({why})")
    if "NumPy out=" not in ran:
        lines.append(f"left out: NumPy out= (none is written for {rule.name})")
    return lines


def _points(r: Race) -> dict[str, tuple[float, float]]:
    """Contender -> (GB/s, time as a multiple of fastopt's)."""
    mine = r.samples["fastopt"]
    return {name: (r.bytes / s.median / 1e9, mine.times_faster_than(s)) for name, s in r.samples.items()}


def _size(word: str) -> int:
    with suppress(ValueError):
        if 1 <= float(word) <= 2**40 and float(word) == int(float(word)):
            return int(float(word))
    raise ConfigError(f"--sizes: {word!r} is no number of elements; expected whole numbers >= 1, such as 1e6.")


def _free_memory() -> float:
    with suppress(AttributeError, ValueError, OSError):  # Windows, macOS: unknown
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def duration(seconds: float) -> str:
    """Three digits, in the unit that needs no exponent."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 9.995e-4 else f"{seconds * 1e6:.3g} us"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column without a heading holds names, the others figures."""
    rich = need("rich.table", "rich", "a table")
    drawn = rich.Table(*(rich.Column(h, justify="right" if h else "left") for h in head), title=title)
    for row in rows:
        drawn.add_row(*row)
    need("rich.console", "rich", "a table").Console().print(drawn)
