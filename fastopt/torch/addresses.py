"""Where dense gradients are. Every check that a common step makes runs at the speed of C over all tensors: `map` of a
C function, no Python per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, call, is_, itemgetter
from types import NoneType
from typing import Any
from weakref import ref

import numpy as np
import torch

from fastopt.errors import ConfigError
from fastopt.torch import place
from fastopt.torch.part import Part

_form = attrgetter("shape", "dtype", "is_cpu", "layout")
pointer = torch.Tensor.data_ptr


class Addresses:
    """Of the gradients of `parts`, which are `places` among all parameters.

    `given` are always the gradients of all parameters, None where there is none.
    """

    _seen: list[Callable[[], Any]] | None = None  # weakly, the gradients of the last steps, if they were the same
    _flat: Sequence[torch.Tensor] | None = None  # those that addresses point to

    def __init__(self, parts: Sequence[Part], places: Sequence[int], given: Sequence[Any]):
        self._chosen: Callable[[Sequence[Any]], Sequence[Any]] = _chooser(places, len(given))
        grads = self._chosen(given)
        self.kinds = [g.dtype for g in grads]
        self._forms = list(map(_form, grads))
        self._strides = list(map(torch.Tensor.stride, grads))
        self._temporary: list[tuple[int, torch.Tensor]] = []  # which do not lie as their parameters do: copied first
        for k, (p, g) in enumerate(zip(parts, grads, strict=True)):
            if g.shape != p.tensor.shape:
                raise ConfigError(f"a gradient has shape {tuple(g.shape)}; expected {tuple(p.tensor.shape)}.")
            same = g.stride() == p.memory.stride() or (g.is_contiguous() and p.memory.is_contiguous())
            if not same or g.is_neg() or g.is_conj():
                self._temporary.append((k, torch.empty_like(p.memory, dtype=g.dtype, requires_grad=False)))

    def of(self, given: Sequence[Any]) -> Sequence[torch.Tensor]:
        """Those of its own parts."""
        return self._chosen(given)

    def aim(self, made: Any, given: Sequence[Any]) -> None:
        grads = self._chosen(given)
        self._at, self._ids = list(map(pointer, grads)), list(map(id, grads))
        addresses = np.array(self._at, np.uint64)
        for k, copy in self._temporary:
            addresses[k] = copy.data_ptr()
        place.point(made, addresses)
        self._seen = None

    def are(self, given: Sequence[Any], flat: Sequence[torch.Tensor]) -> bool:
        """Are these the gradients that the plan points to? `flat`: those that the optimizer itself has laid out."""
        if flat and all(map(is_, given, flat)):
            return self._flat is flat  # they are not replaced in place
        self._flat, seen = None, self._seen
        if seen is not None and all(map(is_, map(call, seen), given)):
            try:
                return list(map(pointer, self._chosen(given))) == self._at
            except TypeError:  # a gradient that died is None now, and so equal to a dead reference
                pass
        return False

    def take(self, made: Any, given: Sequence[Any], flat: Sequence[torch.Tensor]) -> bool:
        """Point the plan to new gradients; False if they are of other forms."""
        grads = self._chosen(given)
        if list(map(_form, grads)) != self._forms or any(map(torch.Tensor.is_neg, grads)):
            return False
        if list(map(torch.Tensor.stride, grads)) != self._strides or any(map(torch.Tensor.is_conj, grads)):
            return False
        settled = list(map(pointer, grads)) == self._at and list(map(id, grads)) == self._ids
        self.aim(made, given)
        if not self._temporary:
            if flat and all(map(is_, given, flat)):
                self._flat = flat
            elif settled:
                # weak, since gradients set to None must be free; made only once the same ones have come twice
                self._seen = [NoneType if g is None else ref(g) for g in given]
        return True

    def copy(self, given: Sequence[Any]) -> None:
        """Those that must be copied first."""
        if self._temporary:
            grads = self._chosen(given)
            for k, copy in self._temporary:
                copy.copy_(grads[k].detach())


def _chooser(places: Sequence[int], n: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    if len(places) == n:
        return lambda given: given
    return itemgetter(*places) if len(places) > 1 else lambda given: [given[k] for k in places]
