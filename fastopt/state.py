"""State buffers: allocated once, aligned, owned by fastopt; and the dict that carries them from run to run."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt.blocks import BLOCK
from fastopt.errors import CheckpointError, ConfigError, listing
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.lowered import Lowered
from fastopt.params import ALIGN, zeros
from fastopt.statements import Level
from fastopt.targets import masters

FORMAT = 1
ROW_STEPS = "row_steps"  # int64 (n_rows,): the steps of each row, where rows count their own


def allocate(
    settings: Settings, owned: Sequence[Any], zeros: Callable[[int, np.dtype], Any] = zeros
) -> tuple[list[Segment], list[Any]]:
    """A segment per parameter, and the flat buffers their states are views of, one per state and dtype."""
    lowered = [settings.lowered(k, a) for k, a in enumerate(owned)]
    for k, (name, low, a) in enumerate(zip(settings.names, lowered, owned, strict=True)):
        if low.sided and a.ndim != 2:
            raise ConfigError(
                f"parameter `{name}` of shape {a.shape} is no matrix, as `{settings.rule(k).name}` needs; give it a "
                f"group with another rule: groups=[fastopt.Group({name!r}, rule=fastopt.adamw)]."
            )
    states: list[dict[str, Any]] = [{} for _ in owned]
    flats, coded = [], []
    more = [s for low in lowered for s in (*low.scales, "master") if s != "master" or low.master]
    for name in dict.fromkeys([*settings.states, *more]):
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
                states[k][name] = view
                if name in dict(lowered[k].stored):
                    coded += [(k, name)] if name in settings.rule(k).init else []
                else:
                    _start(np.einsum("ii->i", view) if square else view, settings, name, k, owned[k])
    for k, name in coded:
        start = np.zeros(owned[k].shape, codecs.of(owned[k].dtype).real)
        _start(start, settings, name, k, owned[k])
        codecs.write(states[k], name, start)
    # of paths, since their order does not matter
    keys = [zlib.crc32(name.encode(errors="surrogatepass")) for name in settings.names]
    rows = zip(owned, settings.of, lowered, states, keys, strict=True)
    return [Segment(*row) for row in rows], flats


def _kind(name: str, lowered: Lowered, param: Any) -> tuple[np.dtype, tuple[int, ...]] | None:
    """The dtype and the shape of a parameter's state; None if it has no such state."""
    own = codecs.of(param.dtype)
    if name == "master" and lowered.master:
        return codecs.array_dtype(masters.dtype(lowered.master, own)), param.shape
    if name not in lowered.state and name not in lowered.scales:
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
            return own.real, (param.shape[lowered.squares[name] == "columns"],) * 2
    if name in lowered.scales:
        return np.dtype(np.float32), (-(-param.size // BLOCK),)
    codec = dict(lowered.stored).get(name)
    return codecs.array_dtype(codec) if codec else own.real, param.shape


def _start(view: Any, settings: Settings, name: str, k: int, param: Any) -> None:
    start = settings.rule(k).init.get(name, 0.0)
    if name == "master":
        start = "p" if view.dtype == np.float32 else 0.0
    if start == "p":
        view[...] = codecs.widened(param)
    elif isinstance(start, str):
        value = settings.value(settings.of[k], start)
        start = value(1) if callable(value) else value
    if not isinstance(start, str) and start:
        view[...] = start


def names_of(settings: Settings, segments: Sequence[Segment]) -> tuple[str, ...]:
    """The states there are, the rules' own first."""
    return tuple(dict.fromkeys([*settings.states, *(s for segment in segments for s in segment.state)]))


def save(settings: Settings, segments: Sequence[Segment], clock: np.ndarray, *, params: bool = False) -> dict:
    """Everything a run needs to go on: plain dicts, numbers and copies of arrays. The parameters only if asked for."""
    names = settings.names
    copies = {"params": {n: s.array.copy() for n, s in zip(names, segments, strict=True)}} if params else {}
    return {
        "format": FORMAT,
        "rule": settings.title,
        "t": int(clock[0]),
        "steps": {n: int(c) for n, c in zip(names, clock[2:], strict=True)},
        "state": {
            s: {n: segment.state[s].copy() for n, segment in zip(names, segments, strict=True) if s in segment.state}
            for s in names_of(settings, segments)
        },
        "hyper": settings.state_dict(),
        **copies,
    }


def load(
    saved: Any,
    settings: Settings,
    segments: Sequence[Segment],
    clock: np.ndarray,
    write: Callable[[np.ndarray], None],
) -> None:
    """Take over what `save` gave: all of it, or, with a `CheckpointError` that lists every difference, nothing."""
    problems, pairs = differences(saved, settings, segments)
    if problems:
        raise CheckpointError(f"the state does not fit this `{settings.title}` optimizer: {'; '.join(problems)}.")
    torn, clock[1] = int(clock[1]), 1  # until all is copied
    try:
        settings.load_state_dict(saved["hyper"])
    except Exception:  # by a schedule that does not like its state; an interrupt leaves it torn
        clock[1] = torn
        raise
    for target, a in pairs:
        target[...] = a
    clock[2:] = [saved["steps"][n] for n in settings.names]
    clock[0] = saved["t"]
    write(clock)  # to where kernels read it
    clock[1] = 0


def differences(
    saved: Any, settings: Settings, segments: Sequence[Segment]
) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    """What keeps `saved` from being loaded here; and (array to write, its new content). Changes nothing.

    Raises `CheckpointError` for what is no such state at all.
    """
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        found = saved.get("format") if isinstance(saved, Mapping) else type(saved).__name__
        raise CheckpointError(f"not a state of format {FORMAT} (found {found!r}); expected what state_dict() returned.")
    if missing := [k for k in ("rule", "t", "steps", "state", "hyper") if k not in saved]:
        raise CheckpointError(f"the state has no {listing(missing)}; expected what state_dict() returned.")
    if unknown := saved.keys() - {"format", "rule", "t", "steps", "state", "hyper", "params", "accumulated"}:
        raise CheckpointError(f"the state has {listing(sorted(map(str, unknown)))}, which this optimizer has not.")
    names, title = settings.names, settings.title
    problems, pairs = [], []
    if sorted(str(saved["rule"]).split(" + ")) != sorted(title.split(" + ")):  # groups may come in another order
        problems.append(f"the state is of rule `{saved['rule']}`; this optimizer runs `{title}`")
    t, steps = saved["t"], saved["steps"]
    if not _count(t) or not isinstance(steps, Mapping) or set(steps) != set(names):
        wrong = sorted(map(str, set(names) ^ set(steps))) if isinstance(steps, Mapping) else [steps]
        problems.append(f"`t` ({t!r}) or the parameters of `steps` do not fit; differing: {listing(wrong, 99)}")
    else:
        problems += [
            f"steps of `{n}`: {steps[n]!r}, expected 0..{t}" for n in names if not (_count(steps[n]) and steps[n] <= t)
        ]
    states = _table(saved["state"])
    wanted = {f"state `{s}` of": {} for s in {**dict.fromkeys(names_of(settings, segments)), **dict.fromkeys(states)}}
    given = {f"state `{s}` of": _table(states.get(s)) for s in states}
    for n, segment in zip(names, segments, strict=True):
        for s, a in segment.state.items():
            wanted[f"state `{s}` of"][n] = a
    if "params" in saved:
        wanted["parameter"] = {n: s.array for n, s in zip(names, segments, strict=True)}
        given["parameter"] = _table(saved["params"])
    for kind, targets in wanted.items():
        for n in {**targets, **(found := given.get(kind, {}))}:
            if n not in targets or n not in found:
                problems.append(f"{kind} `{n}`: {'not expected' if n in found else 'missing'}")
                continue
            a, target = found[n], targets[n]
            if not isinstance(a, np.ndarray) or a.shape != target.shape or not codecs.alike(a.dtype, target.dtype):
                what = f"{a.dtype} {a.shape}" if isinstance(a, np.ndarray) else type(a).__name__
                problems.append(f"{kind} `{n}`: {what}, expected {target.dtype} {target.shape}")
            elif kind == f"state `{ROW_STEPS}` of" and _count(t) and a.size and not 0 <= a.min() <= a.max() <= t:
                problems.append(f"{kind} `{n}`: {a.min()} to {a.max()}, expected 0..{t}")
            else:
                pairs.append((target, a if a.dtype == target.dtype else a.view(target.dtype)))
    problems += _of_sums(saved.get("accumulated"), names, segments)
    return problems + settings.compare(saved["hyper"]), pairs


def _of_sums(saved: Any, names: Sequence[str], segments: Sequence[Segment]) -> list[str]:
    """What keeps accumulated gradients, see accumulate.py, from being loaded here."""
    if saved is None:
        return []
    parts = ("count", "steps", "sums")
    if set(_table(saved)) != {*parts} or not all(isinstance(saved[k], Mapping) for k in ("steps", "sums")):
        return [f"accumulated gradients: expected a dict of {', '.join(parts)}"]
    count, steps, sums = (saved[k] for k in parts)
    if set(steps) != set(names) or not all(_count(k) and k <= count for k in (count, *steps.values())):
        return ["accumulated gradients: their counts do not fit the parameters"]
    problems = []
    for n, segment in zip(names, segments, strict=True):
        a, shape, real = sums.get(n), segment.array.shape, codecs.of(segment.array.dtype).real
        if (a is not None) != bool(steps[n]):
            problems.append(f"accumulated gradient `{n}`: {'missing' if a is None else 'not expected'}")
        elif a is not None and (not isinstance(a, np.ndarray) or (a.shape, a.dtype) != (shape, real)):
            problems.append(f"accumulated gradient `{n}`: expected {real} {shape}")
    return problems + [f"accumulated gradient `{n}`: not expected" for n in sums if n not in names]


def _table(x: Any) -> Mapping[Any, Any]:
    return x if isinstance(x, Mapping) else {}


def _count(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and 0 <= int(x) < 2**53  # exact in float64
