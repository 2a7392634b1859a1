"""One parameter of a torch optimizer as a kernel meets it: its memory, its states, its layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastopt import codecs
from fastopt import state as allocation
from fastopt.blocks import BLOCK
from fastopt.errors import ConfigError
from fastopt.lowered import Lowered
from fastopt.statements import Level
from fastopt.torch import stored, tensors
from fastopt.torch.kind import DENSE, Kind, Rows


@dataclass(eq=False)
class Part:
    """`memory` is the parameter itself, or a copy without gaps that is written back after each step."""

    tensor: torch.Tensor
    row: int
    lowered: Lowered
    memory: torch.Tensor
    array: Any  # ndarray, or DeviceArray
    state: dict[str, Any] = field(default_factory=dict)
    narrow: list[str] = field(default_factory=list)  # single numbers that torch keeps in less than float64
    rounded: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # those of rows and columns: both

    @property
    def copied(self) -> bool:
        return self.memory is not self.tensor

    def enter(self) -> None:
        self.memory.copy_(self.tensor.detach())

    def leave(self) -> None:
        self.tensor.detach().copy_(self.memory)


def part(p: torch.Tensor, rows: Rows, row: int, way: int) -> Part:
    lowered = rows.lowered(row, p.dim())
    if way != DENSE:
        return _of_rows(p, lowered, rows, row, way)
    shaped = bool(lowered.sided)
    if shaped and (p.dim() != 2 or p.is_complex()):
        raise ConfigError(
            f"a parameter of shape {tuple(p.shape)} and dtype {p.dtype} is no real matrix, as "
            f"`{rows.rules[row].name}` needs; give it to another optimizer, such as fastopt.torch.AdamW."
        )
    memory, array = p, tensors.view(p, shaped=shaped)
    if array is None:
        memory = p.detach().new_empty(p.shape)
        array = tensors.view(memory, shaped=shaped)
    assert array is not None
    return Part(p, row, rows.stored(lowered, row, p, array), memory, array)


def _of_rows(p: torch.Tensor, lowered: Lowered, rows: Rows, row: int, axes: int) -> Part:
    if lowered.matrices or any(q.totals for q in lowered.passes):
        raise ConfigError(
            f"a parameter of shape {tuple(p.shape)} has a sparse gradient, but each step of `{rows.rules[row].name}` "
            "looks at whole parameters; make it dense (torch.nn.Embedding(..., sparse=False)), or give the parameter "
            "to another optimizer, such as fastopt.torch.SparseAdam."
        )
    array = tensors.view(p, shaped=True)
    assert array is not None
    array = array.reshape((math.prod(p.shape[:axes]), math.prod(p.shape[axes:])))  # a row for each place that has one
    lowered = rows.stored(lowered, row, p, array)
    if lowered.scales and array.shape[1] % BLOCK:
        raise ConfigError(
            f"a parameter of shape {tuple(p.shape)} has a sparse gradient, and rows of {array.shape[1]} numbers would "
            f"share the blocks of {BLOCK} that are its state in 8 bits; keep that in 16 bits, by a group of its own: "
            "{'params': [...], 'state_dtype': torch.bfloat16}."
        )
    return Part(p, row, lowered, p, array)


def adopt(mine: Part, kind: Kind, rows: Rows, held: dict[str, Any]) -> None:
    """Point `mine.state` into the tensors of `held`, which is `opt.state[p]`; those that are missing start."""
    if kind.torch is not None:
        mine.narrow = [s for s, level in mine.lowered.levels if level is Level.REDUCED]
    order = [s for s in kind.state if s in mine.lowered.state]
    for name in order + [s for s in mine.lowered.state if s not in order]:
        key = kind.key(name)
        if name in mine.narrow:
            held.setdefault(key, None)
            continue
        what = f"state `{key}` of a parameter of shape {tuple(mine.tensor.shape)}"
        like = wide = _like(mine, name)
        if name in mine.lowered.scales.values():
            first = None if stored.begun(held, key) or not start(mine, rows, name) else _begin(mine, rows, name, like)
            mine.state[name], mine.state[f"{name}_scale"] = stored.in_blocks(held, key, like, first, what)
            continue
        if kind.torch is not None and dict(mine.lowered.levels).get(name) in (Level.ROW, Level.COLUMN):
            like = like.to(mine.memory.dtype)
        value = stored.numbers(held, key)
        value = _begin(mine, rows, name, like) if value is None else tensors.adopt(value, like, what)
        stored.put(held, key, value)
        kept = value.detach()
        if kept.dtype != wide.dtype:
            mine.rounded.append((kept, wide.copy_(kept)))
            kept = wide
        mine.state[name] = tensors.view(kept, shaped=mine.memory.is_contiguous())
        assert mine.state[name] is not None
    if how := mine.lowered.master:
        what = f"state `{stored.MASTER}` of a parameter of shape {tuple(mine.tensor.shape)}"
        mine.state[stored.MASTER] = stored.master(held, how, mine.memory.detach(), what)
    elif stored.MASTER not in kind.state.values():
        held.pop(stored.MASTER, None)  # of a checkpoint


def _like(mine: Part, name: str) -> torch.Tensor:
    """A tensor of the state's shape, dtype and layout; its numbers do not matter."""
    found = allocation._kind(name, mine.lowered, mine.array)
    assert found is not None
    dtype, shape = found
    if shape == mine.array.shape and name not in dict(mine.lowered.levels):
        memory, codec = mine.memory.detach(), dict(mine.lowered.stored).get(name)
        narrow = codec or codecs.of(mine.array.dtype).coded
        wanted = stored.DTYPES.get(codec or "", torch.float32) if narrow else memory.dtype
        return memory if wanted == memory.dtype else torch.empty_like(memory, dtype=wanted)
    return mine.memory.detach().new_empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)


def start(mine: Part, rows: Rows, name: str) -> Any:
    """The number a state starts at, or "p"."""
    value = rows.rules[mine.row].init.get(name, 0.0)
    return rows.value(mine.row, value) if isinstance(value, str) and value != "p" else value


def _begin(mine: Part, rows: Rows, name: str, like: torch.Tensor) -> torch.Tensor:
    value = start(mine, rows, name)
    if value == "p":
        return torch.empty_like(like).copy_(mine.tensor.detach())
    made = torch.zeros_like(like, memory_format=torch.preserve_format)
    if value:
        target = torch.view_as_real(made) if made.is_complex() else made
        (target.diagonal() if name in mine.lowered.squares else target).fill_(value)
    return made
