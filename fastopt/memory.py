"""What an optimizer holds, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastopt import codecs
from fastopt.launch import Segment


class Part(NamedTuple):
    """Arrays of one kind that are stored alike."""

    name: str  # "parameters", or a state
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
    found: dict[tuple[str, str], list[int]] = {}

    def add(name: str, codec: str, elements: int, size: int) -> None:
        counts = found.setdefault((name, codec), [0, 0])
        counts[0] += elements
        counts[1] += size

    for segment in segments:
        add("parameters", codecs.of(segment.array.dtype).name, segment.array.size, segment.array.nbytes)
    for state in states:
        for segment in segments:
            a: Any = segment.state.get(state)
            low = segment.lowered
            if a is not None and state not in low.scales:
                scales = segment.state.get(f"{state}_scale") if state in low.scales.values() else None
                size = a.nbytes + (0 if scales is None else scales.nbytes)
                add(state, dict(low.stored).get(state, str(a.dtype)), a.size, size)
    parts = tuple(Part(*key, *counts) for key, counts in found.items())
    elements = sum(segment.array.size for segment in segments)
    return Memory(parts, elements, sum(p.bytes for p in parts if p.name != "parameters"))
