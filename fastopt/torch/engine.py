"""The compiled step of a torch optimizer: a plan over its tensors, and the question whether it still fits them.

`opt.state` stays the only state there is. A plan points into those tensors; a step checks that they, the parameters,
their gradients and the hyperparameters are what it was made for. If not, it is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import is_, itemgetter
from typing import Any, cast
from zlib import crc32

import torch

from fastopt import threads
from fastopt.errors import ConfigError
from fastopt.launch import Segment
from fastopt.torch import place, tensors, ways, where
from fastopt.torch.addresses import Addresses, pointer
from fastopt.torch.held import STEPS, Held, T
from fastopt.torch.kind import Kind, Rows
from fastopt.torch.part import part
from fastopt.torch.sparse import Sparse

_params = itemgetter("params")
_NOT_VALUES = ("params", "param_names")


class Engine:
    """Steps the parameters in one place that have a gradient. `others`: those that only torch's own class can step.

    Args:
        name: of the class, for errors.
        kind: of the class.
        groups: `opt.param_groups`.
        state: `opt.state`.
        given: the gradients of all parameters, in order, None where there is none.
        device: the number of the CUDA device whose parameters it steps.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        groups: Sequence[dict[str, Any]],
        state: Any,
        given: Sequence[Any],
        device: int = where.HOST,
    ):
        self._kind, self._groups, self._state = kind, groups, state
        self._all = list(chain.from_iterable(map(_params, groups)))
        self._of = [k for k, g in enumerate(groups) for _ in g["params"]]
        self._read = [_values(g) for g in groups]
        self._raw = [read(g) for read, g in zip(self._read, groups, strict=True)]
        self._in_tensors = _any_tensor(self._raw)
        self._habits = [ways.of_group(kind, g) for g in groups]

        self._none = [g is None for g in given]
        live = [k for k, none in enumerate(self._none) if not none and where.device(self._all[k]) == device]
        self._asked = Rows(kind, groups, [], []) if device != where.HOST else None
        found = {k: self._way(k, given[k]) for k in live}
        dense = [k for k in live if found[k] == ways.DENSE]
        mine = dense + [k for k in live if found[k] >= 0]  # those with rows last
        names = _names(groups)
        rows = self._rows = Rows(kind, groups, [self._of[k] for k in mine], [names[k] for k in mine])
        parts = [part(self._all[k], rows, self._of[k], found[k]) for k in mine]
        if tensors.overlapping([p.array for p in parts]):
            if kind.torch is None:
                raise ConfigError(f"{name}: two parameters share memory; give each tensor once, or a copy of it.")
            dense, mine, parts = [], [], []
        self._parts, self._places = parts, mine
        self.others = [self._all[k] for k in live if k not in set(mine)]
        self._looked_at = {k: way for k, way in found.items() if way != ways.DENSE}  # dense ones by `Addresses`, fast

        if parts:
            place.check(device)
        self._held = Held(state, kind, rows, parts, groups)
        self._params = [p.tensor for p in parts]
        self._pointers = list(map(pointer, self._params))
        self._copied = [p for p in parts if p.copied]
        self._addresses = Addresses(parts[: len(dense)], dense, given)
        by_rows = mine[len(dense) :]
        self._sparse = Sparse(parts[len(dense) :], by_rows, [names[k] for k in by_rows])
        self._plan = self._planned(given) if parts else None

    def _way(self, k: int, g: torch.Tensor) -> int:
        row, p = self._of[k], self._all[k]
        way = ways.of(self._kind, self._groups[row], self._habits[row], p, g)
        return ways.TORCH if self._asked and self._asked.lowered(row, p.dim()).matrices else way

    def _planned(self, given: Sequence[Any]) -> Any:
        keys = [crc32(b"%d" % k) for k in self._places]  # of random numbers: as those of a list of arrays
        segments = [Segment(p.array, p.row, p.lowered, p.state, k) for p, k in zip(self._parts, keys, strict=True)]
        kinds = [tensors.KINDS[dtype] for dtype in self._addresses.kinds]
        kinds += ["rd" if given[k].dtype == torch.float64 else "rf" for k in self._sparse.places]
        clock = self._held.clock
        missed = (clock[T] - clock[STEPS:]).tolist()
        made = place.build(self._parts[0].memory, self._rows, segments, tuple(kinds), clock, missed)
        self._addresses.aim(made, given)
        return made

    def _take(self, given: Sequence[Any], flat: Sequence[torch.Tensor]) -> bool:
        """New gradients; False if they are of other forms, or belong to other parameters."""
        if list(map(is_, given, repeat(None))) != self._none:
            return False
        if any(self._way(k, given[k]) != way for k, way in self._looked_at.items()):
            return False
        return self._plan is None or self._addresses.take(self._plan, given, flat)

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
        if list(map(pointer, self._params)) != self._pointers:
            return False
        if self._plan is not None and self._plan.epoch != threads.epoch:
            return False
        if self._held.written() or (state.touched and self._held.replaced()):
            return False
        raw = [read(g) for read, g in zip(self._read, groups, strict=True)]
        if self._in_tensors or raw != self._raw or _any_tensor(raw):
            habits = [ways.of_group(self._kind, g) for g in groups]
            if habits != self._habits or not self._rows.update(groups):
                return False
            self._raw, self._in_tensors = raw, _any_tensor(raw)
        return (not self._looked_at and self._addresses.are(given, flat)) or self._take(given, flat)

    def prepare(self, given: Sequence[Any]) -> None:
        """Look at the rows of sparse gradients. Raises `GradientError` where nothing has changed yet."""
        if self._plan is not None:
            self._sparse.aim(self._plan, given)

    def run(self, given: Sequence[Any], scaled: tuple[Any, torch.Tensor] | None = None) -> None:
        """One step of all parameters but `others`, with the gradients that `fits` or `__init__` saw.

        `scaled`: what a GradScaler left to this step on a device: its scale or None, and whether to skip it.
        """
        if self._plan is None:
            return
        if scaled:
            self._plan.place.scale(*scaled, self._addresses.of(given))
        for p in self._copied:
            p.enter()
        self._addresses.copy(given)
        self._plan.run(cast(Any, self._rows), self._held.clock, None)
        for p in self._copied:
            p.leave()
        torch.autograd.graph.increment_version(self._params)  # a graph that saved them must not go backward any more
        self._sparse.release(self._plan)
        if scaled:
            self._held.stepped(self._plan.place.settle())
        else:
            self._held.stepped()


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What errors call the parameters."""
    given = chain.from_iterable(g.get("param_names", repeat(None, len(g["params"]))) for g in groups)
    return [f"parameter {k}" if name is None else str(name) for k, name in enumerate(given)]


def _values(group: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """What schedulers and users may change in a group, for a comparison with the next step's."""
    keys = [k for k in group if k not in _NOT_VALUES]
    return itemgetter(*keys) if len(keys) > 1 else lambda g: tuple(g[k] for k in keys)


def _any_tensor(raw: Sequence[Sequence[Any]]) -> bool:
    """A tensor can change and still be the same object."""
    return torch.Tensor in map(type, chain.from_iterable(raw))
