"""`opt.state` as kernels update it: the tensors that parts point into, step counts, and numbers kept in less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch

from fastopt.torch import tensors, where
from fastopt.torch.kind import Kind, Rows
from fastopt.torch.part import Part, adopt, start
from fastopt.torch.stored import begun

T, STEPS = 0, 2  # of the clock: steps done, is one under way, then the steps of each parameter


class Held:
    """The states of `parts`, all in one place, in `state`, which is `opt.state`: those that are missing start.

    `groups` are `opt.param_groups`; they say of which parameters `step` is on a CUDA device, too.

    Attributes:
        clock: int64, as kernels read it; of parameters on a CUDA device a copy.
    """

    def __init__(self, state: Any, kind: Kind, rows: Rows, parts: Sequence[Part], groups: Sequence[Mapping[str, Any]]):
        self._state = state
        counted = kind.counted or any(p.lowered.rounded for p in parts)  # chance is another at every step
        began = []
        held: list[dict[str, Any]] = []
        for p in parts:
            mine = dict.get(state, p.tensor)
            fresh = {} if mine is None else mine
            began.append(all(begun(fresh, kind.key(s)) for s in p.lowered.state))
            if counted:
                fresh.setdefault("step", None)
            adopt(p, kind, rows, fresh)
            if fresh and mine is None:
                dict.__setitem__(state, p.tensor, fresh)
            held.append(fresh)
        self._watched: list[np.ndarray] = []  # what others may write into
        self._away: list[torch.Tensor] = []  # on a device
        self._counts: list[Any] = []  # arrays, on a device tensors
        self._numbers: list[tuple[Any, Any]] = []  # as torch keeps them, as kernels do
        devices = [None if where.device(p.memory) == where.HOST else p.memory for p in parts]
        self._plain = held if kind.plain else []  # whose `step` is an int, not a tensor
        steps = [0 if kind.counted else int(b) for b in began]
        if counted:
            given = [n if mine["step"] is None else mine["step"] for n, mine in zip(steps, held, strict=True)]
            steps = [int(n) for n in _read(given)]
        for mine, n in zip(self._plain, steps, strict=False):
            mine["step"] = n
        if counted and not kind.plain:
            there = [d if kind.beside(groups[p.row]) else None for d, p in zip(devices, parts, strict=True)]
            self._counts = [_array(numbers) for numbers, _ in self._share(held, "step", steps, there)]
        for name in dict.fromkeys(n for p in parts for n in p.narrow):
            having = [p for p in parts if name in p.narrow]
            dicts = [h for p, h in zip(parts, held, strict=True) if name in p.narrow]
            key = kind.key(name)
            values = _read(
                [start(p, rows, name) if h[key] is None else h[key] for p, h in zip(having, dicts, strict=True)]
            )
            there = [d for d, p in zip(devices, parts, strict=True) if name in p.narrow]
            for narrow, members in self._share(dicts, key, values, there):
                wide = narrow.double()
                for i, k in enumerate(members):
                    having[k].state[name] = tensors.view(wide[i], shaped=True)
                self._numbers.append((_array(narrow), _array(wide)))
        for narrow, wide in chain.from_iterable(p.rounded for p in parts):
            self._watch(narrow)
            self._numbers.append((_array(narrow), _array(wide)))
        self.clock = np.array([max(steps, default=0), 0, *steps], np.int64)
        self._dicts, self._held = list(dict.values(state)), held
        self._owned = self._found()
        self._owned_at = [x.data_ptr() for x in self._owned if isinstance(x, torch.Tensor)]
        self._note()

    def _share(
        self, held: Sequence[dict[str, Any]], key: str, values: Sequence[float], there: Sequence[torch.Tensor | None]
    ) -> list[tuple[torch.Tensor, list[int]]]:
        """Make the numbers under `key` views of one tensor a dtype, so that a step writes them all at once.

        `there`: what they are to lie beside on a device; None: on the host.
        """
        usual = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        types = [x.dtype if isinstance(x := mine[key], torch.Tensor) else usual for mine in held]
        kinds = [(dtype, near is None) for dtype, near in zip(types, there, strict=True)]
        found = []
        for kind in dict.fromkeys(kinds):
            members = [k for k, other in enumerate(kinds) if other == kind]
            numbers = torch.tensor([values[k] for k in members], dtype=kind[0], device="cpu")
            near = there[members[0]]
            if near is None:
                pieces = [torch.from_numpy(numbers.numpy()[i, ...]) for i in range(len(members))]
            else:
                numbers = near.detach().new_empty(len(members), dtype=kind[0]).copy_(numbers)
                pieces = [numbers[i] for i in range(len(members))]
            for k, piece in zip(members, pieces, strict=True):
                held[k][key] = piece
            self._watch(numbers)
            found.append((numbers, members))
        return found

    def _watch(self, x: torch.Tensor) -> None:
        if where.device(x) == where.HOST:
            self._watched.append(x.numpy())
        else:
            self._away.append(x)

    def written(self) -> bool:
        """Has somebody written into a `step` or a number?"""
        if any(w.tobytes() != seen for w, seen in zip(self._watched, self._bytes, strict=True)):
            return True
        if self._away and [x._version for x in self._away] != self._versions:
            return True
        return bool(self._plain) and [mine.get("step") for mine in self._plain] != self._ints

    def replaced(self) -> bool:
        """Are the states others than those that the plan points into?"""
        dicts = list(dict.values(self._state))
        if len(dicts) != len(self._dicts) or not all(map(is_, dicts, self._dicts)):
            return True
        owned = self._found()
        if len(owned) != len(self._owned) or not all(map(is_, owned, self._owned)):
            return True
        return [x.data_ptr() for x in owned if isinstance(x, torch.Tensor)] != self._owned_at

    def stepped(self, went: Any = 1) -> None:
        """After a step of the kernels: what they do not write themselves. `went`: 0 on the device if it was skipped."""
        for counts in self._counts:
            counts += went
        for mine in self._plain:
            mine["step"] += 1
        for narrow, wide in self._numbers:
            narrow[...] = wide
            wide[...] = narrow  # what a checkpoint holds is what the next step reads
        self._note()

    def _note(self) -> None:
        self._bytes = [w.tobytes() for w in self._watched]
        self._ints = [mine["step"] for mine in self._plain]
        self._versions = [x._version for x in self._away]

    def _found(self) -> list[Any]:
        owned = chain.from_iterable(map(dict.values, self._held))
        return [x for x in owned if type(x) is not int] if self._plain else list(owned)


def _read(values: Sequence[Any]) -> list[float]:
    """Numbers, or tensors that hold one; None is 0. Who has to wait for a device waits once."""
    away = [k for k, x in enumerate(values) if isinstance(x, torch.Tensor) and where.device(x) != where.HOST]
    numbers = torch.stack([values[k].detach().double() for k in away]).tolist() if away else []
    read = dict(zip(away, numbers, strict=True))
    return [read[k] if k in read else float(x or 0) for k, x in enumerate(values)]


def _array(x: torch.Tensor) -> Any:
    """Numbers to compute with: on the host as NumPy does, which takes less time."""
    return x.numpy() if where.device(x) == where.HOST else x
