"""State buffers: allocated once, aligned, owned by fastopt; and the dict that carries them from run to run."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt.errors import CheckpointError, ConfigError, listing
from fastopt.groups import Settings
from fastopt.lower import Lowered
from fastopt.params import ALIGN, zeros
from fastopt.plan import Segment
from fastopt.statements import Level

FORMAT = 1


def allocate(
    settings: Settings, owned: Sequence[Any], zeros: Callable[[int, np.dtype], Any] = zeros
) -> tuple[list[Segment], list[Any]]:
    """A segment per parameter, and the flat buffers their states are views of, one per state and dtype."""
    lowered = [settings.lowered(k, a) for k, a in enumerate(owned)]
    for k, (name, low, a) in enumerate(zip(settings.names, lowered, owned, strict=True)):
        if (low.matrices or low.shaped) and a.ndim != 2:
            raise ConfigError(
                f"parameter `{name}` of shape {a.shape} is no matrix, as `{settings.rule(k).name}` needs; give it a "
                f"group with another rule: groups=[fastopt.Group({name!r}, rule=fastopt.adamw)]."
            )
    states: list[dict[str, Any]] = [{} for _ in owned]
    flats = []
    for name in settings.states:
        kinds = [_kind(name, low, a) for low, a in zip(lowered, owned, strict=True)]
        for dtype in dict.fromkeys(kind[0] for kind in kinds if kind):
            live = [(k, kind[1]) for k, kind in enumerate(kinds) if kind and kind[0] == dtype]
            members = [(k, shape) for k, shape in live if not settings.frozen[settings.of[k]]]
            line = ALIGN // dtype.itemsize
            counts = [math.prod(shape) for _, shape in members]
            ends = np.cumsum([0, *(-(-n // line) * line for n in counts)])  # each starts on a cache line
            try:
                flat = zeros(int(ends[-1]), dtype)
            except MemoryError as error:
                size = int(ends[-1]) * dtype.itemsize
                raise MemoryError(f"no memory for state `{name}` of {settings.title}: {size:,} bytes.") from error
            flats.append(flat)
            for (k, shape), start, n in zip(members, ends, counts, strict=False):
                view = flat[start : start + n].reshape(shape)
                square = name in lowered[k].squares
                _start(np.einsum("ii->i", view) if square else view, settings, name, k, owned[k])
                states[k][name] = view
    keys = [zlib.crc32(name.encode()) for name in settings.names]  # of paths: their order does not matter
    rows = zip(owned, settings.of, lowered, states, keys, strict=True)
    return [Segment(*row) for row in rows], flats


def _kind(name: str, lowered: Lowered, param: Any) -> tuple[np.dtype, tuple[int, ...]] | None:
    """The dtype and the shape of a parameter's state; None if it has no such state."""
    if name not in lowered.state:
        return None
    wide = np.dtype(np.float64)
    match dict(lowered.levels).get(name):
        case Level.REDUCED:
            return wide, ()
        case Level.ROW:
            return wide, (param.shape[0], 1)
        case Level.COLUMN:
            return wide, (1, param.shape[1])
        case Level.MATRIX:
            return param.dtype, (param.shape[lowered.squares[name] == "columns"],) * 2
    return param.dtype, param.shape


def _start(view: Any, settings: Settings, name: str, k: int, param: Any) -> None:
    start = settings.rule(k).init.get(name, 0.0)
    if start == "p":
        view[...] = param
    elif isinstance(start, str):
        value = settings.value(settings.of[k], start)
        start = value(1) if callable(value) else value
    if not isinstance(start, str) and start:
        view[...] = start


def save(settings: Settings, segments: Sequence[Segment], clock: np.ndarray) -> dict:
    """Everything a run needs to go on, apart from the parameters: plain dicts, numbers and copies of arrays."""
    names = settings.names
    return {
        "format": FORMAT,
        "rule": settings.title,
        "t": int(clock[0]),
        "steps": {n: int(c) for n, c in zip(names, clock[2:], strict=True)},
        "state": {
            s: {n: segment.state[s].copy() for n, segment in zip(names, segments, strict=True) if s in segment.state}
            for s in settings.states
        },
        "hyper": settings.state_dict(),
    }


def load(
    saved: Any,
    settings: Settings,
    segments: Sequence[Segment],
    clock: np.ndarray,
    write: Callable[[np.ndarray], None],
) -> None:
    """Take over what `save` gave: all of it, or, with a `CheckpointError` that lists every difference, nothing."""
    problems: list[str] = []
    names, title = settings.names, settings.title
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        found = saved.get("format") if isinstance(saved, Mapping) else type(saved).__name__
        raise CheckpointError(f"not a state of format {FORMAT} (found {found!r}); expected what state_dict() returned.")
    if missing := [k for k in ("rule", "t", "steps", "state", "hyper") if k not in saved]:
        raise CheckpointError(f"the state has no {listing(missing)}; expected what state_dict() returned.")
    if saved["rule"] != title:
        raise CheckpointError(f"the state is of rule `{saved['rule']}`; this optimizer runs `{title}`.")
    t, steps = saved["t"], saved["steps"]
    if not _count(t) or not isinstance(steps, Mapping) or set(steps) != set(names):
        wrong = sorted(set(names) ^ set(steps)) if isinstance(steps, Mapping) else [steps]
        raise CheckpointError(f"`t` ({t!r}) or the parameters of `steps` do not fit; differing: {listing(wrong)}.")
    problems += [
        f"steps of `{n}`: {steps[n]!r}, expected 0..{t}" for n in names if not (_count(steps[n]) and steps[n] <= t)
    ]
    pairs = []
    states = saved["state"] if isinstance(saved["state"], Mapping) else {}
    for s in {**dict.fromkeys(settings.states), **dict.fromkeys(states)}:
        given = states.get(s, {})
        wanted = {n: seg.state[s] for n, seg in zip(names, segments, strict=True) if s in seg.state}
        for n in {**wanted, **given}:
            if n not in wanted or n not in given:
                problems.append(f"state `{s}` of `{n}`: {'not expected' if n in given else 'missing'}")
                continue
            a = given[n]
            if not isinstance(a, np.ndarray) or a.shape != wanted[n].shape or a.dtype != wanted[n].dtype:
                found = f"{a.dtype} {a.shape}" if isinstance(a, np.ndarray) else type(a).__name__
                problems.append(f"state `{s}` of `{n}`: {found}, expected {wanted[n].dtype} {wanted[n].shape}")
            else:
                pairs.append((wanted[n], a))
    problems += settings.compare(saved["hyper"])
    if problems:
        raise CheckpointError(f"the state does not fit this `{title}` optimizer: {'; '.join(problems)}.")
    settings.load_state_dict(saved["hyper"])
    clock[1] = 1  # torn until all is copied
    for target, a in pairs:
        target[...] = a
    clock[2:] = [steps[n] for n in names]
    clock[0] = t
    write(clock)  # to where kernels read it
    clock[1] = 0


def _count(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and 0 <= int(x) < 2**53  # exact in float64
