"""Measuring machinery: contenders interleaved in one process, plain-NumPy and torch peers of a rule, `fastopt bench`."""

import argparse
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np

from fastopt.errors import ConfigError, hint, listing

Step = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Seconds per call of one contender, one entry per round. Entry i of two samples of one run are neighbours in time."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def times_faster_than(self, other: "Sample") -> float:
        """Median over the rounds of other/self: neighbours share the machine's mood, so drift cancels."""
        return median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def interleave(
    contenders: Mapping[str, Step], *, repeat: int = 15, warmup: int = 3, visit: float = 5e-3, settle: float = 2e-3,
    budget: float = math.inf,
) -> dict[str, Sample]:
    """Time the contenders in turn, round after round, each round starting with the next one.

    repeat: rounds. warmup: untimed calls first, which also compile. visit: seconds timed per contender and round (at least
    one call; short calls are averaged over the visit). settle: seconds of untimed calls before, so that the contender
    finds its own data in the cache, and the spinning threads of its predecessor's OpenMP pool have gone to sleep.
    budget: no new round after this many seconds, but never fewer than 3 (or `repeat`) rounds.
    """
    names = list(contenders)
    calls: dict[str, int] = {}
    for name in names:
        for _ in range(warmup):
            contenders[name]()
        one, begin = math.inf, time.perf_counter()
        for _ in range(5):
            one = min(one, _timed(contenders[name], 1))
            if time.perf_counter() - begin > visit:
                break
        calls[name] = max(1, round(visit / one))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for r in range(repeat):
            if r >= 3 and time.perf_counter() - begin > budget:
                break
            k = r % len(names)
            for name in names[k:] + names[:k]:
                until = time.perf_counter() + settle
                contenders[name]()
                while time.perf_counter() < until:
                    contenders[name]()
                seconds[name].append(_timed(contenders[name], calls[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Sample(tuple(s)) for name, s in seconds.items()}


def _timed(call: Step, n: int) -> float:
    begin = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - begin) / n


def buffer(n: int, fill: float = 0.0, dtype: Any = "f4") -> np.ndarray:
    """(n,) array at a 64-byte boundary, every page touched."""
    size = n * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, "u1")
    begin = -raw.ctypes.data % 64
    out = raw[begin : begin + size].view(dtype)
    out.fill(fill)
    return out


def used_state(optimizer: Any) -> tuple[str, ...]:
    """Names of the state buffers this optimizer (over one array) really has."""
    return tuple(name for name in optimizer.state if optimizer.state[name] is not None)


def traffic(state: Iterable[str], itemsize: int = 4) -> int:
    """Bytes a fused step must move per element: read p, g and each state; write p and each state."""
    return (3 + 2 * len(tuple(state))) * itemsize


# --- plain NumPy -----------------------------------------------------------------------------------------------------


def hyper_of(rule: Any, **given: Any) -> dict[str, Any]:
    """The rule's defaults, overridden; a required one gets 1e-3."""
    return {name: 1e-3 if value is ... else value for name, value in rule.hyper.items()} | given


def numpy_naive(rule: Any, p: np.ndarray, g: np.ndarray, state: Sequence[str], **given: Any) -> Step:
    """The formula applied to whole arrays, as one writes it first: a temporary per operation."""
    h, t = hyper_of(rule, **given), 0
    now = [p, *(np.zeros_like(p) if name in state else np.zeros((), p.dtype) for name in rule.state)]

    def step() -> None:
        nonlocal t
        t += 1
        new = rule.formula(now[0], g, *now[1:], **h, **({"t": t} if rule.timed else {}))
        now[:] = new if isinstance(new, tuple) else (new,)

    return step


def numpy_out(rule: Any, p: np.ndarray, g: np.ndarray, **given: Any) -> Step | None:
    """Hand-written `out=` form: in place, one scratch array, no temporaries. None where nobody wrote one."""
    body = OUT.get(rule.name)
    if body is None:
        return None
    h, a, t = hyper_of(rule, **given), np.empty_like(p), 0
    state = [np.zeros_like(p) for _ in range(2)]

    def step() -> None:
        nonlocal t
        t += 1
        body(p, g, state, a, h, t)

    return step


def _adam(p: np.ndarray, g: np.ndarray, state: list[np.ndarray], a: np.ndarray, h: dict[str, Any], t: int) -> None:
    (m, v), lr, beta1, beta2 = state, h["lr"], h["beta1"], h["beta2"]
    if h["weight_decay"]:  # decoupled; the L2 form of `adam` is only raced at its default, 0
        p *= 1 - lr * h["weight_decay"]
    m *= beta1
    m += np.multiply(g, 1 - beta1, out=a)
    v *= beta2
    v += np.multiply(np.multiply(g, g, out=a), 1 - beta2, out=a)
    np.multiply(np.sqrt(v, out=a), 1 / math.sqrt(1 - beta2**t), out=a)
    np.divide(m, np.add(a, h["eps"], out=a), out=a)
    p -= np.multiply(a, lr / (1 - beta1**t), out=a)


def _sgd(p: np.ndarray, g: np.ndarray, state: list[np.ndarray], a: np.ndarray, h: dict[str, Any], t: int) -> None:
    b = state[0]
    if h["momentum"]:
        b *= h["momentum"]
        b += g
    p -= np.multiply(b if h["momentum"] else g, h["lr"], out=a)


def _adagrad(p: np.ndarray, g: np.ndarray, state: list[np.ndarray], a: np.ndarray, h: dict[str, Any], t: int) -> None:
    s = state[0]
    s += np.multiply(g, g, out=a)
    np.divide(g, np.add(np.sqrt(s, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"] / (1 + (t - 1) * h["lr_decay"]), out=a)


def _rmsprop(p: np.ndarray, g: np.ndarray, state: list[np.ndarray], a: np.ndarray, h: dict[str, Any], t: int) -> None:
    v = state[0]
    v *= h["alpha"]
    v += np.multiply(np.multiply(g, g, out=a), 1 - h["alpha"], out=a)
    np.divide(g, np.add(np.sqrt(v, out=a), h["eps"], out=a), out=a)
    p -= np.multiply(a, h["lr"], out=a)


def _lion(p: np.ndarray, g: np.ndarray, state: list[np.ndarray], a: np.ndarray, h: dict[str, Any], t: int) -> None:
    m, lr = state[0], h["lr"]
    np.sign(np.add(np.multiply(np.subtract(m, g, out=a), h["beta1"], out=a), g, out=a), out=a)
    if h["weight_decay"]:
        p *= 1 - lr * h["weight_decay"]
    p -= np.multiply(a, lr, out=a)
    m -= g
    m *= h["beta2"]
    m += g


OUT: dict[str, Callable[..., None]] = {
    "adam": _adam, "adamw": _adam, "sgd": _sgd, "adagrad": _adagrad, "rmsprop": _rmsprop, "lion": _lion,
}  # fmt: skip


# --- torch -----------------------------------------------------------------------------------------------------------

TORCH = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}


def torch_step(rule: Any, params: Sequence[np.ndarray], grads: Sequence[np.ndarray], kind: str, **given: Any) -> Step | None:
    """torch's optimizer of that name over the same memory; kind: "fused" or "foreach". None where torch has none."""
    try:
        import torch

        leaves = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = torch.from_numpy(g)
        return getattr(torch.optim, TORCH[rule.name])(leaves, **{kind: True}, **given).step
    except (ImportError, KeyError, TypeError, RuntimeError):  # no torch; no such rule; no such kind on the CPU
        return None


# --- fastopt bench ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """One size of a sweep: samples by contender, "fastopt" first; bytes: what a fused step of that size must move."""

    elements: int
    bytes: int
    samples: dict[str, Sample]


def race(rule: Any, n: int, *, extra: Mapping[str, Callable[..., Step | None]] | None = None, **timing: Any) -> Race:
    """fastopt against its peers on one float32 array of n elements; extra: name -> (rule, [p], [g]) -> step or None."""
    p, g = buffer(n, 0.5), buffer(n, 1e-3)
    optimizer = rule(p, **hyper_of(rule))
    state = used_state(optimizer)
    made: dict[str, Step | None] = {
        "fastopt": partial(optimizer.step, g),
        "torch fused": torch_step(rule, [p], [g], "fused"),
        "torch foreach": torch_step(rule, [p], [g], "foreach"),
        "NumPy out=": numpy_out(rule, p, g),
        "NumPy naive": numpy_naive(rule, p, g, state),
    } | {name: make(rule, [p], [g]) for name, make in (extra or {}).items()}
    samples = interleave({name: step for name, step in made.items() if step}, **timing)
    return Race(n, n * traffic(state), samples)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", default="adamw", help="a rule of the catalogue (default: adamw)")
    parser.add_argument("--sizes", nargs="+", default=["1e3", "1e4", "1e5", "1e6", "1e7", "1e8"], metavar="N",
                        help="numbers of float32 elements (default: 1e3 ... 1e8)")  # fmt: skip
    parser.add_argument("--plot", metavar="FILE.png", help="write a picture too")


def main(args: argparse.Namespace | Sequence[str] | None = None) -> int:
    """`fastopt bench`: takes the parsed arguments of `add_arguments`, or a list of words, or sys.argv. Returns 0."""
    if not isinstance(args, argparse.Namespace):
        parser = argparse.ArgumentParser(prog="fastopt bench", description="steps/s and GB/s against NumPy and torch")
        add_arguments(parser)
        args = parser.parse_args(args)
    from fastopt.rules import CATALOGUE

    if args.rule not in CATALOGUE:
        raise ConfigError(f"no rule `{args.rule}`; expected one of {listing(CATALOGUE)}.{hint(args.rule, CATALOGUE)}")
    sizes = [_size(word) for word in args.sizes]
    races = []
    for n in sizes:
        if 4 * n * 24 > _free_memory():  # the most any rule of the catalogue and its peers hold at once, temporaries included
            print(f"{n:,} elements: left out, needs about {n * 96 / 1e9:.1f} GB of free memory.", file=sys.stderr)
            continue
        print(f"{args.rule}, {n:,} elements ...", file=sys.stderr)
        races.append(race(CATALOGUE[args.rule], n, warmup=1 if n >= 10**7 else 3, budget=8.0))
    show(args.rule, races)
    if args.plot:
        plot(args.rule, races, args.plot)
    return 0


def _size(word: str) -> int:
    try:
        n = float(word)
    except ValueError:
        n = math.nan
    if not (1 <= n <= 2**40 and n == int(n)):
        raise ConfigError(f"--sizes: {word!r} is no number of elements; expected whole numbers >= 1, such as 1e6.")
    return int(n)


def _free_memory() -> float:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS: unknown
        return math.inf


def show(rule: str, races: Sequence[Race]) -> None:
    """Print a table; GB/s counts the bytes a fused step must move, whatever the contender really moves."""
    head = ("elements", "", "time per step", "steps/s", "GB/s", "fastopt is")
    rows = []
    for r in races:
        for name, s in r.samples.items():
            times = r.samples["fastopt"].times_faster_than(s)
            rows.append((f"{r.elements:,}" if name == "fastopt" else "", name, duration(s.median), f"{1 / s.median:,.0f}",
                         f"{r.bytes / s.median / 1e9:.2f}", "" if name == "fastopt" else f"{times:.2f}x"))  # fmt: skip
    table(f"{rule}, float32: medians, contenders interleaved", head, rows)


def duration(seconds: float) -> str:
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if seconds >= u), (1e-6, "us"))
    return f"{seconds / unit:.3g} {name}" if seconds < 999 * unit else f"{seconds / unit:.0f} {name}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A rich table where rich is installed, else columns of text."""
    rows = list(rows)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        print(title, *("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in (head, *rows)), sep="\n")
        return
    drawn = Table(title=title)
    for i, name in enumerate(head):
        drawn.add_column(name, justify="left" if i == 1 else "right")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def plot(rule: str, races: Sequence[Race], file: str) -> None:
    """Two panels over the number of elements: GB/s, and time per step as a multiple of fastopt's."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib: python -m pip install 'fastopt[demo]'.") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(name for r in races for name in r.samples):
        have = [r for r in races if name in r.samples]
        x = [r.elements for r in have]
        left.loglog(x, [r.bytes / r.samples[name].median / 1e9 for r in have], "o-", label=name)
        right.loglog(x, [r.samples["fastopt"].times_faster_than(r.samples[name]) for r in have], "o-", label=name)
    left.set(xlabel="float32 elements", ylabel="GB/s a fused step must move", title=f"{rule}: throughput")
    right.set(xlabel="float32 elements", ylabel="time per step / fastopt's", title=f"{rule}: fastopt is so many times faster")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
