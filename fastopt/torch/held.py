"""`opt.state` as kernels update it: the tensors that parts point into, step counts, and numbers kept in less."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch

from fastopt.torch.kind import Kind, Rows
from fastopt.torch.part import Part, adopt, start
from fastopt.torch.stored import begun

T, STEPS = 0, 2  # of the clock: steps done, is one under way, then the steps of each parameter


class Held:
    """The states of `parts` in `state`, which is `opt.state`: those that are missing start.

    Attributes:
        clock: int64, as kernels read it.
    """

    def __init__(self, state: Any, kind: Kind, rows: Rows, parts: Sequence[Part]):
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
        self._counts: list[np.ndarray] = []
        self._numbers: list[tuple[np.ndarray, np.ndarray]] = []  # as torch keeps them, as kernels do
        self._plain = held if kind.plain else []  # whose `step` is an int, not a tensor
        steps = [0 if kind.counted else int(b) for b in began]
        if counted:
            steps = [n if mine["step"] is None else int(mine["step"]) for n, mine in zip(steps, held, strict=True)]
        for mine, n in zip(self._plain, steps, strict=False):
            mine["step"] = n
        if counted and not kind.plain:
            self._counts = [array for array, _ in self._share(held, "step", steps)]
        for name in dict.fromkeys(n for p in parts for n in p.narrow):
            having = [p for p in parts if name in p.narrow]
            dicts = [h for p, h in zip(parts, held, strict=True) if name in p.narrow]
            key = kind.key(name)
            values = [
                start(p, rows, name) if h[key] is None else float(h[key]) for p, h in zip(having, dicts, strict=True)
            ]
            for narrow, members in self._share(dicts, key, values):
                wide = narrow.astype(np.float64)
                for i, k in enumerate(members):
                    having[k].state[name] = wide[i, ...]
                self._numbers.append((narrow, wide))
        for pair in chain.from_iterable(p.rounded for p in parts):
            self._watched.append(pair[0])
            self._numbers.append(pair)
        self.clock = np.array([max(steps, default=0), 0, *steps], np.int64)
        self._dicts, self._held = list(dict.values(state)), held
        self._owned = self._found()
        self._owned_at = [x.data_ptr() for x in self._owned if isinstance(x, torch.Tensor)]
        self._note()

    def _share(
        self, held: Sequence[dict[str, Any]], key: str, values: Sequence[float]
    ) -> list[tuple[np.ndarray, list[int]]]:
        """Make the numbers under `key` views of one array a dtype, so that a step writes them all at once."""
        usual = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        types = [x.dtype if isinstance(x := mine[key], torch.Tensor) else usual for mine in held]
        found = []
        for dtype in dict.fromkeys(types):
            members = [k for k, d in enumerate(types) if d == dtype]
            array = torch.tensor([values[k] for k in members], dtype=dtype).numpy()
            for i, k in enumerate(members):
                held[k][key] = torch.from_numpy(array[i, ...])
            self._watched.append(array)
            found.append((array, members))
        return found

    def written(self) -> bool:
        """Has somebody written into a `step` or a number?"""
        if any(w.tobytes() != seen for w, seen in zip(self._watched, self._bytes, strict=True)):
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

    def stepped(self) -> None:
        """After a step of the kernels: what they do not write themselves."""
        for counts in self._counts:
            counts += 1
        for mine in self._plain:
            mine["step"] += 1
        for narrow, wide in self._numbers:
            narrow[...] = wide
            wide[...] = narrow  # what a checkpoint holds is what the next step reads
        self._note()

    def _note(self) -> None:
        self._bytes = [w.tobytes() for w in self._watched]
        self._ints = [mine["step"] for mine in self._plain]

    def _found(self) -> list[Any]:
        owned = chain.from_iterable(map(dict.values, self._held))
        return [x for x in owned if type(x) is not int] if self._plain else list(owned)
