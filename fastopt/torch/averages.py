"""`opt.eval()` and `opt.train()` of the classes whose rule keeps an average: parameters turned into it, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np
import torch

from fastopt.errors import ConfigError
from fastopt.launch import Segment
from fastopt.torch import place, stored, tensors, where
from fastopt.torch.base import Fast
from fastopt.torch.held import STEPS, Held, T
from fastopt.torch.kind import DENSE, Rows
from fastopt.torch.part import part


class Averages(Fast):
    """Abstract. While parameters are averages, those of training lie aside; `train` puts back the same bits."""

    _aside: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def eval(self) -> None:
        """Turn the parameters, in place, into what the rule shows: an average. Again is the same as once.

        Until `train()`, which puts those of training back, steps and state dicts raise `ConfigError`, and what is
        written into the parameters is lost afterwards. Parameters that have not moved yet stay as they are.
        """
        if self._aside is not None:
            return
        self._engine = None  # states are taken over anew
        groups = self.param_groups
        of = [k for k, g in enumerate(groups) for _ in g["params"]]
        params = list(chain.from_iterable(g["params"] for g in groups))
        moved = [k for k, p in enumerate(params) if int(dict.get(self.state, p, {}).get("step") or 0)]
        places = [where.device(params[k]) for k in moved]
        shown = [
            self._shown([(params[k], of[k]) for k, other in zip(moved, places, strict=True) if other == device])
            for device in dict.fromkeys(places)
        ]
        masters = [m for k in moved if (m := dict.get(self.state, params[k], {}).get(stored.MASTER)) is not None]
        self._aside = [(x, x.detach().clone()) for x in (*(params[k] for k in moved), *masters)]
        try:
            for show in shown:
                show()
        except BaseException:
            self.train()
            raise
        torch.autograd.graph.increment_version([params[k] for k in moved])

    def _shown(self, members: Sequence[tuple[torch.Tensor, int]]) -> Callable[[], None]:
        """What turns parameters, each with its group, all in one place, into averages: compiled, and not begun."""
        rows = Rows(self.kind, self.param_groups, [row for _, row in members], [str(k) for k in range(len(members))])
        parts = [part(p, rows, row, DENSE) for p, row in members]
        held = Held(self.state, self.kind, rows, parts, self.param_groups)
        clock = held.clock.copy()
        clock[T] = max(int(clock[T]) - 1, 0)  # of the step that has been done last
        seen = [rows.stored(rows.seen(p.row, p.tensor.dim()), p.row, p.tensor, p.array) for p in parts]
        segments = [
            Segment(p.array, p.row, replace(low, rounded=()), p.state, 0) for p, low in zip(parts, seen, strict=True)
        ]
        kinds = tuple(tensors.KINDS[p.memory.dtype] for p in parts)
        missed = (clock[T] + 1 - clock[STEPS:]).tolist()
        ready = place.build(parts[0].memory, rows, segments, kinds, clock, missed)
        place.point(ready, np.zeros(len(parts), np.uint64))  # a view reads no gradient

        def show() -> None:
            for p in parts:
                if p.copied:
                    p.enter()
            ready.run(cast(Any, rows), clock, None)
            for p in parts:
                if p.copied:
                    p.leave()

        return show

    def train(self) -> None:
        """Put the parameters of training back, see `eval`. Without an `eval` before it does nothing."""
        for p, kept in self._aside or ():
            p.detach().copy_(kept)
        self._aside = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`with opt.averaged():` is `eval()`, and `train()` at its end; inside of `eval()` it changes nothing."""
        shown = self._aside is not None
        self.eval()
        try:
            yield
        finally:
            if not shown:
                self.train()

    def step(self, closure: Any = None) -> Any:
        self._training()
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # by `Fast`, whose step it is

    def state_dict(self) -> dict[str, Any]:
        self._training()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training()
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        self._training()
        return super().__getstate__()

    def _training(self) -> None:
        if self._aside is not None:
            raise ConfigError(
                "the parameters are averages now, since opt.eval(). Call opt.train() first: it puts those of training "
                "back."
            )
