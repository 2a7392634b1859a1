"""The compiled step of a torch optimizer: a plan over its tensors, and the question whether it still fits them.

`opt.state` stays the only state there is. A plan points into those tensors; a step checks that they, the parameters,
their gradients and the hyperparameters are what it was made for. If not, it is made again. Every check that a common
step makes runs at the speed of C over all tensors: `map` of a C function, no Python per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, call, is_, itemgetter
from types import NoneType
from typing import Any, cast
from weakref import ref
from zlib import crc32

import numpy as np
import torch

from fastopt import plan, threads
from fastopt.errors import ConfigError
from fastopt.launch import Segment
from fastopt.torch import tensors
from fastopt.torch.kind import Kind, Rows
from fastopt.torch.part import adopt, part, start

_params = itemgetter("params")
_form = attrgetter("shape", "dtype", "is_cpu", "layout")
_pointer = torch.Tensor.data_ptr
_T, _STEPS = 0, 2  # of the clock: steps done, is one under way, then the steps of each parameter
_NOT_VALUES = ("params", "param_names")


class Engine:
    """Steps the parameters that have a gradient. `others` are those that only torch's own class can step.

    Args:
        name: of the class, for errors.
        kind: of the class.
        groups: `opt.param_groups`.
        state: `opt.state`.
        given: the gradients of all parameters, in order, None where there is none.
    """

    def __init__(self, name: str, kind: Kind, groups: Sequence[dict[str, Any]], state: Any, given: Sequence[Any]):
        self._groups, self._state = groups, state
        self._all = list(chain.from_iterable(map(_params, groups)))
        of = [k for k, g in enumerate(groups) for _ in g["params"]]
        self._read = [_values(g) for g in groups]
        self._raw = [read(g) for read, g in zip(self._read, groups, strict=True)]
        self._in_tensors = _any_tensor(self._raw)

        self._none = [g is None for g in given]
        self._by_torch = list(map(_by_torch, groups))
        live = [k for k, none in enumerate(self._none) if not none]
        mine = [k for k in live if not self._by_torch[of[k]] and _known(self._all[k], given[k])]
        mine = [k for k in mine if not (kind.real and self._all[k].is_complex() and kind.torch)]
        rows = self._rows = Rows(kind, groups, [of[k] for k in mine])
        parts = [part(self._all[k], rows, of[k]) for k in mine]
        if tensors.overlapping([p.array for p in parts]):
            if kind.torch is None:
                raise ConfigError(f"{name}: two parameters share memory; give each tensor once, or a copy of it.")
            mine, parts = [], []
        self._parts = parts
        chosen = set(mine)
        self._foreign = [k for k in live if k not in chosen]
        self._foreign_known = [_known(self._all[k], given[k]) for k in self._foreign]
        self.others = [self._all[k] for k in self._foreign]
        self._live: Callable[[Sequence[Any]], Sequence[Any]] = _chooser(mine, len(given))

        self._adopt_states(kind)
        self._params = [p.tensor for p in parts]
        self._pointers = list(map(_pointer, self._params))
        self._copied = [p for p in parts if p.copied]
        self._plan = self._planned(self._live(given)) if parts else None

    def _adopt_states(self, kind: Kind) -> None:
        state = self._state
        began = []
        held: list[dict[str, Any]] = []
        for p in self._parts:
            mine = dict.get(state, p.tensor)
            fresh = {} if mine is None else mine
            began.append(all(fresh.get(kind.key(s)) is not None for s in p.lowered.state))
            if kind.counted:
                fresh.setdefault("step", None)
            adopt(p, kind, self._rows, fresh)
            if fresh and mine is None:
                dict.__setitem__(state, p.tensor, fresh)
            held.append(fresh)
        self._watched: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._numbers: list[tuple[np.ndarray, np.ndarray]] = []
        steps = [0 if mine["step"] is None else int(mine["step"]) for mine in held] if kind.counted else []
        if kind.counted:
            self._counts = [array for array, _ in self._share(held, "step", steps)]
        for name in dict.fromkeys(n for p in self._parts for n in p.narrow):
            having = [p for p in self._parts if name in p.narrow]
            dicts = [h for p, h in zip(self._parts, held, strict=True) if name in p.narrow]
            key = kind.key(name)
            values = [
                start(p, self._rows, name) if h[key] is None else float(h[key])
                for p, h in zip(having, dicts, strict=True)
            ]
            for narrow, members in self._share(dicts, key, values):
                wide = narrow.astype(np.float64)
                for i, k in enumerate(members):
                    having[k].state[name] = wide[i, ...]
                self._numbers.append((narrow, wide))
        self._bytes = [w.tobytes() for w in self._watched]
        steps = steps or [int(b) for b in began]
        self._clock = np.array([max(steps, default=0), 0, *steps], np.int64)
        self._dicts, self._held = list(dict.values(state)), held
        self._owned = [x for mine in held for x in mine.values()]
        self._owned_at = [x.data_ptr() for x in self._owned if isinstance(x, torch.Tensor)]

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

    _seen: list[Callable[[], Any]] | None = None  # weakly, the gradients of the last steps, if they were the same
    _flat: Sequence[torch.Tensor] | None = None  # those that addresses point to

    # ---------------------------------------------------------------- gradients
    def _planned(self, grads: Sequence[torch.Tensor]) -> plan.Plan:
        self._look(grads)
        segments = [Segment(p.array, p.row, p.lowered, p.state, crc32(b"%d" % k)) for k, p in enumerate(self._parts)]
        kinds = tuple(tensors.KINDS[g.dtype] for g in grads)
        missed = (self._clock[_T] - self._clock[_STEPS:]).tolist()
        made = plan.build(cast(Any, self._rows), segments, kinds, missed, {}, "lazy")
        self._aim(made, grads)
        return made

    def _look(self, grads: Sequence[torch.Tensor]) -> None:
        """Which gradients lie as their parameters do, and which must be copied first?"""
        self._forms = list(map(_form, grads))
        self._strides = list(map(torch.Tensor.stride, grads))
        self._temporary: list[tuple[int, torch.Tensor]] = []
        for k, (p, g) in enumerate(zip(self._parts, grads, strict=True)):
            if g.shape != p.tensor.shape:
                raise ConfigError(f"a gradient has shape {tuple(g.shape)}; expected {tuple(p.tensor.shape)}.")
            same = g.stride() == p.memory.stride() or (g.is_contiguous() and p.memory.is_contiguous())
            if not same or g.is_neg() or g.is_conj():
                self._temporary.append((k, torch.empty_like(p.memory, dtype=g.dtype, requires_grad=False)))

    def _aim(self, made: plan.Plan, grads: Sequence[torch.Tensor]) -> None:
        self._at = list(map(_pointer, grads))
        addresses = np.array(self._at, np.uint64)
        for k, copy in self._temporary:
            addresses[k] = copy.data_ptr()
        for launch in made.launches:
            launch.addresses[:, 1] = addresses
        self._seen = None
        self._ids = list(map(id, grads))

    def _take(self, given: Sequence[Any]) -> bool:
        """New gradients; False if they are of other forms, or belong to other parameters."""
        if list(map(is_, given, repeat(None))) != self._none:
            return False
        if self._foreign and [_known(self._all[k], given[k]) for k in self._foreign] != self._foreign_known:
            return False
        if self._plan is None:
            return True
        grads = self._live(given)
        at = list(map(_pointer, grads))
        settled = at == self._at and list(map(id, grads)) == self._ids
        if list(map(_form, grads)) != self._forms or any(map(torch.Tensor.is_neg, grads)):
            return False
        if list(map(torch.Tensor.stride, grads)) != self._strides or any(map(torch.Tensor.is_conj, grads)):
            return False
        self._aim(self._plan, grads)
        if settled and not self._temporary:
            # weak, since gradients set to None must be free; made only once the same ones have come twice
            self._seen = [NoneType if g is None else ref(g) for g in given]
        return True

    # ---------------------------------------------------------------- does it fit?
    def fits(
        self,
        groups: Sequence[dict[str, Any]],
        state: Any,
        params: Sequence[torch.Tensor],
        given: Sequence[Any],
        flat: Sequence[torch.Tensor],
    ) -> bool:
        """Can `run` be called? Takes over new values of hyperparameters and new addresses of gradients.

        `flat`: the gradients that the optimizer itself has laid out, if it has; those are not replaced in place.
        """
        if state is not self._state or groups is not self._groups or len(groups) != len(self._read):
            return False
        if len(params) != len(self._all) or not all(map(is_, params, self._all)):
            return False
        if list(map(_pointer, self._params)) != self._pointers:
            return False
        if self._plan is not None and self._plan.epoch != threads.epoch:
            return False
        if any(w.tobytes() != seen for w, seen in zip(self._watched, self._bytes, strict=True)):
            return False  # somebody wrote into a `step`
        if state.touched and not self._owns():
            return False
        raw = [read(g) for read, g in zip(self._read, groups, strict=True)]
        if self._in_tensors or raw != self._raw or _any_tensor(raw):
            if list(map(_by_torch, groups)) != self._by_torch or not self._rows.update(groups):
                return False
            self._raw, self._in_tensors = raw, _any_tensor(raw)
        if flat and all(map(is_, given, flat)):
            if self._flat is flat:
                return True
            self._flat = flat if self._take(given) and not self._temporary else None
            return self._flat is flat
        self._flat, seen = None, self._seen
        if seen is not None and all(map(is_, map(call, seen), given)):
            try:
                if list(map(_pointer, self._live(given))) == self._at:
                    return True
            except TypeError:  # a gradient that died is None now, and so equal to a dead reference
                pass
        return self._take(given)

    def _owns(self) -> bool:
        """Are the states those that the plan points into?"""
        dicts = list(dict.values(self._state))
        if len(dicts) != len(self._dicts) or not all(map(is_, dicts, self._dicts)):
            return False
        owned = list(chain.from_iterable(map(dict.values, self._held)))
        if len(owned) != len(self._owned) or not all(map(is_, owned, self._owned)):
            return False
        return [x.data_ptr() for x in owned if isinstance(x, torch.Tensor)] == self._owned_at

    # ---------------------------------------------------------------- the step
    def run(self, given: Sequence[Any]) -> None:
        """One step of all parameters but `others`, with the gradients that `fits` or `__init__` saw."""
        if self._plan is None:
            return
        if self._copied or self._temporary:
            grads = self._live(given)
            for p in self._copied:
                p.enter()
            for k, copy in self._temporary:
                copy.copy_(grads[k].detach())
        self._plan.run(cast(Any, self._rows), self._clock)
        for p in self._copied:
            p.leave()
        torch.autograd.graph.increment_version(self._params)  # a graph that saved them must not go backward any more
        for counts in self._counts:
            counts += 1
        for narrow, wide in self._numbers:
            narrow[:] = wide
            wide[:] = narrow  # what a checkpoint holds is what the next step reads
        self._bytes = [w.tobytes() for w in self._watched]


def _known(p: torch.Tensor, g: torch.Tensor) -> bool:
    """Can kernels take the pair?"""
    return tensors.ordinary(p) and g.layout is torch.strided and g.device.type == "cpu" and g.dtype in tensors.KINDS


def _by_torch(group: Mapping[str, Any]) -> bool:
    """Does the group ask for what only torch's own step does, or refuses?"""
    return bool(group.get("differentiable") or group.get("capturable"))


def _values(group: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """What schedulers and users may change in a group, for a comparison with the next step's."""
    keys = [k for k in group if k not in _NOT_VALUES]
    return itemgetter(*keys) if len(keys) > 1 else lambda g: tuple(g[k] for k in keys)


def _any_tensor(raw: Sequence[Sequence[Any]]) -> bool:
    """A tensor can change and still be the same object."""
    return torch.Tensor in map(type, chain.from_iterable(raw))


def _chooser(mine: Sequence[int], n: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if len(mine) == n:
        return lambda given: given
    return itemgetter(*mine) if len(mine) > 1 else lambda given: [given[k] for k in mine]
