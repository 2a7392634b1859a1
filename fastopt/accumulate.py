"""`opt.accumulate(grads)`: gradients of several batches, summed in the parameters' dtype until `opt.step()`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from glob import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import codecs, rows
from fastopt.errors import GradientError
from fastopt.group import Group
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.rule import rule

_T, _STEPS = 0, 2  # where the clock counts steps, and those of each parameter


# The sums are the parameters of an optimizer of this rule, so that everything a step takes is taken here, too: dtypes,
# layouts, None, threads, CUDA. A parameter's first gradient of a round overwrites what the last round left.
@rule(name="accumulate")
def _sum(p, g, *, t):
    return (p if t > 1 else 0) + g


class Accumulation:
    """The part of an optimizer that sums gradients."""

    params: Any
    names: tuple[str, ...]
    _place: Any
    _settings: Settings
    _segments: list[Segment]
    _gradients: Any
    _sums: Any = None  # the optimizer of the sums, made when it is needed first
    _count: int = 0  # gradients that are summed now

    if TYPE_CHECKING:

        def _alone(self) -> threading.Lock: ...
        def _ready_for_gradients(self) -> None: ...

        _list: Callable[[Any], Sequence[Any]]

    @property
    def accumulated(self) -> int:
        """How many gradients `step()` would take the mean of."""
        return self._count

    def accumulate(self, grads: Any = None, *, stream: Any = None) -> None:
        """Add gradients, such as those of a part of a batch, to the sum whose mean the next `step()` takes.

        `grads` is what `step` takes, but no gradient of rows. The sum is float64 if the parameters are, float32 else,
        also of 16-bit gradients; it takes a buffer of the parameters' shape. The mean is over the calls: a parameter
        that had None in some of them has a smaller sum. With `zero_grads` the gradients are 0 afterwards. Checkpoints
        hold the sum.

        Raises what `step` raises; then nothing is added.
        """
        with self._alone():
            self._ready_for_gradients()
            if grads is None:
                grads = self._gradients.packed
            if any(map(rows.is_sparse, self._list(grads))):
                raise GradientError(
                    "accumulate() takes whole gradients: a sum of gradients of rows is one of many rows. Concatenate "
                    "their indices and values, and give them to step()."
                )
            sums = self._sum()
            before = sums._clock[_T]
            try:
                sums.step(grads, stream=stream)
            except BaseException:  # an interrupt may come when it has been added
                self._count += int(sums._clock[_T] > before)
                raise
            self._count += 1

    def _sum(self) -> Any:
        """The optimizer of the sums."""
        if self._sums is None:
            reals = [codecs.of(s.array.dtype).real for s in self._segments]
            pairs = zip(self._segments, reals, strict=True)
            arrays = [self._place.zeros(s.array.size, real).reshape(s.array.shape) for s, real in pairs]
            self._sums = self._beside(_sum, self._tree.build(iter(arrays)), zero_grads=self._gradients.zeroed)
        return self._sums

    def _beside(self, made: Any, params: Any, **options: Any) -> Any:
        """An optimizer of another rule, of the same structure: for parameters that are not frozen."""
        frozen = [n for n, row in zip(self.names, self._settings.of, strict=True) if self._settings.frozen[row]]
        groups = [Group(escape(n), frozen=True) for n in frozen]
        return type(self)(made, params, groups=groups, **options)  # type: ignore[call-arg]

    _tree: Any

    def _mean(self) -> tuple[Any, float]:
        """The sums, None where there was no gradient, and what to multiply them by."""
        sums = self._sums
        live = sums._place.read(sums._clock)[_STEPS:] > 0
        arrays = [a if on else None for a, on in zip(self._list(sums.params), live, strict=True)]
        return self._tree.build(iter(arrays)), 1 / self._count

    def _begin_again(self) -> None:
        """The next gradient is the first of its round."""
        if self._count:
            sums, self._count = self._sums, 0
            sums._clock[...] = 0
            sums._place.write(sums._clock)
            sums._plan = None  # it knows the steps that parameters have missed

    # ---------------------------------------------------------------- checkpoints
    def _saved_sums(self) -> dict[str, Any]:
        """What `state_dict` adds; nothing between two rounds."""
        if not self._count:
            return {}
        sums = self._sums
        steps = sums._place.read(sums._clock)[_STEPS:].tolist()
        arrays = dict(zip(self.names, self._list(sums.params), strict=True))
        return {
            "accumulated": {
                "count": self._count,
                "steps": dict(zip(self.names, steps, strict=True)),
                "sums": {n: np.array(arrays[n]) for n, k in zip(self.names, steps, strict=True) if k},
            }
        }

    def _take_sums(self, saved: Any) -> None:
        """Take over what `_saved_sums` gave, which has been compared."""
        self._begin_again()
        if not saved:
            return
        sums = self._sum()
        for n, target in zip(self.names, self._list(sums.params), strict=True):
            if n in saved["sums"]:
                target[...] = saved["sums"][n]
        sums._clock[0] = saved["count"]
        sums._clock[_STEPS:] = [saved["steps"][n] for n in self.names]
        sums._place.write(sums._clock)
        self._count = saved["count"]

    def _refuse_gradients(self) -> None:
        raise GradientError(
            f"{self._count} gradients are accumulated; step() without any takes their mean. Give these to "
            "accumulate(), too."
        )
