"""The pictures of `fastopt train`, `fastopt bench` and docs/benchmarks.md: one style, and errors before the work."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastopt.errors import ConfigError
from fastopt.progress import need

LIMIT = "memory limit"  # no contender: a line to compare with


def check(path: str) -> None:
    """Raise `ConfigError` now rather than after the work: no matplotlib, or nowhere to write `path`."""
    need("matplotlib", "matplotlib", "--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError(f"--plot: the folder {folder} does not exist.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--plot: the folder {folder} cannot be written to.")
    suffix, valid = Path(path).suffix.lstrip(".").lower(), FigureCanvasAgg.get_supported_filetypes()
    if suffix not in valid:
        raise ConfigError(f"--plot: {path} ends in {suffix!r}; expected one of {', '.join(sorted(valid))}.")


def figure(width: float, height: float) -> Any:
    # without pyplot: no window, no global state
    return need("matplotlib.figure", "matplotlib", "--plot").Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot: cannot write {path}: {error}") from error


def sweep(title: str, races: Sequence[tuple[int, Mapping[str, tuple[float, float]]]]) -> Any:
    """Two panels over the number of elements, from (elements, contender -> (GB/s, time as a multiple of fastopt's))."""
    drawn = figure(11, 4.2)
    left, right = drawn.subplots(1, 2)
    for name in dict.fromkeys(name for _, points in races for name in points):
        have = [(n, *points[name]) for n, points in races if name in points]
        sizes, rates, times = zip(*have, strict=True)
        left.loglog(sizes, rates, label=name, **_style(name))
        right.loglog(sizes, times, label=name, **_style(name))
    left.set(ylabel="GB/s a fused step must move", title=f"{title}: throughput")
    right.set(ylabel="time per step / fastopt's", title=f"{title}: how many times slower")
    for axis in (left, right):
        axis.set_xlabel("float32 elements")
        _ticks(axis, [n for n, _ in races])
        plain_numbers(axis)
        axis.grid(alpha=0.3)
    left.legend(fontsize="small")
    return drawn


def _style(name: str) -> dict[str, Any]:
    if name == LIMIT:
        return {"color": "gray", "linestyle": "--", "marker": "_"}
    return {"marker": "o", **({"linewidth": 2.5, "zorder": 3} if name == "fastopt" else {})}


def _ticks(axis: Any, sizes: Sequence[int]) -> None:
    """Label sizes that were measured, as many as have room: none collide."""
    ticker = need("matplotlib.ticker", "matplotlib", "--plot")
    span, shown = math.log(max(sizes) / min(sizes)), []
    for n in sorted(set(sizes)):
        if not shown or math.log(n / shown[-1]) > span / 9:
            shown.append(n)
    axis.xaxis.set_major_locator(ticker.FixedLocator(shown))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda n, _: _short(n)))
    axis.xaxis.set_minor_locator(ticker.NullLocator())


def plain_numbers(axis: Any) -> None:
    """Few, plain numbers at the side of a logarithmic axis."""
    ticker = need("matplotlib.ticker", "matplotlib", "--plot")
    low, high = axis.get_ylim()
    few = ticker.MaxNLocator(6) if high < 4 * low else ticker.LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5))
    axis.yaxis.set_major_locator(few)
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_locator(ticker.NullLocator())


def _short(n: float) -> str:
    """1000 -> "1k", 32_000_000 -> "32M"."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.4g}{letter}"
    return f"{n:g}"
