"""What an optimizer holds, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from fastopt import codecs
from fastopt.launch import Segment

PARAMETERS = "parameters"


class Part(NamedTuple):
    """Arrays of one kind that are stored alike."""

    name: str  # PARAMETERS, or a state
    codec: str
    elements: int
    bytes: int  # with the scales of 8-bit blocks


@dataclass(frozen=True)
class Memory:
    """What an optimizer holds; printed, it is a table.

    Attributes:
        parts: the parameters, which are yours, and the states, by name and codec.
        elements: of the parameters.
        state_bytes: of all states; `state_bytes / elements` is what a parameter costs.
    """

    parts: tuple[Part, ...]
    elements: int
    state_bytes: int

    def __str__(self) -> str:
        lines = [("", "stored as", "elements", "bytes", "per parameter")]
        n = max(1, self.elements)
        for part in self.parts:
            lines.append((part.name, part.codec, f"{part.elements:,}", f"{part.bytes:,}", f"{part.bytes / n:.3f}"))
        lines.append(("all state", "", "", f"{self.state_bytes:,}", f"{self.state_bytes / n:.3f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(x.ljust(w) if k < 2 else x.rjust(w) for k, (x, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        )


def of(segments: Sequence[Segment], states: Sequence[str]) -> Memory:
    """Of the segments of an optimizer, whose states are called so."""
    return tally(chain(map(_parameter, segments), (p for s in states for p in _held(segments, s))))


def tally(parts: Iterable[Part]) -> Memory:
    """The table of `parts`, those that are called and stored alike as one."""
    found: dict[tuple[str, str], list[int]] = {}
    for name, codec, elements, size in parts:
        counts = found.setdefault((name, codec), [0, 0])
        counts[0] += elements
        counts[1] += size
    rows = tuple(Part(*key, *counts) for key, counts in found.items())
    elements = sum(p.elements for p in rows if p.name == PARAMETERS)
    return Memory(rows, elements, sum(p.bytes for p in rows if p.name != PARAMETERS))


def _parameter(segment: Segment) -> Part:
    a = segment.array
    return Part(PARAMETERS, codecs.of(a.dtype).name, a.size, a.nbytes)


def _held(segments: Sequence[Segment], state: str) -> Iterator[Part]:
    for segment in segments:
        a, low = segment.state.get(state), segment.lowered
        if a is not None and state not in low.scales:
            scales = segment.state.get(f"{state}_scale") if state in low.scales.values() else None
            size = a.nbytes + (0 if scales is None else scales.nbytes)
            yield Part(state, dict(low.stored).get(state, str(a.dtype)), a.size, size)
