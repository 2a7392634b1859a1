"""`opt.eval()` and `opt.train()` of the classes whose rule keeps an average: parameters turned into it, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch

from fastopt import plan
from fastopt.errors import ConfigError
from fastopt.launch import Segment
from fastopt.torch import stored, tensors
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
        rows = Rows(self.kind, groups, [of[k] for k in moved], [str(k) for k in moved])
        parts = [part(params[k], rows, of[k], DENSE) for k in moved]
        held = Held(self.state, self.kind, rows, parts)
        clock = held.clock.copy()
        clock[T] = max(int(clock[T]) - 1, 0)  # of the step that has been done last
        seen = [rows.stored(rows.seen(p.row, p.tensor.dim()), p.row, p.tensor, p.array) for p in parts]
        segments = [
            Segment(p.array, p.row, replace(low, rounded=()), p.state, 0) for p, low in zip(parts, seen, strict=True)
        ]
        kinds = tuple(tensors.KINDS[p.memory.dtype] for p in parts)
        missed = (clock[T] + 1 - clock[STEPS:]).tolist()
        ready = plan.build(cast(Any, rows), segments, kinds, missed) if parts else None
        masters = [m for p in parts if (m := dict.get(self.state, p.tensor, {}).get(stored.MASTER)) is not None]
        self._aside = [(x, x.detach().clone()) for x in (*(p.tensor for p in parts), *masters)]
        try:
            for p in parts:
                if p.copied:
                    p.enter()
            if ready is not None:
                ready.run(cast(Any, rows), clock)
            for p in parts:
                if p.copied:
                    p.leave()
        except BaseException:
            self.train()
            raise
        torch.autograd.graph.increment_version([p.tensor for p in parts])

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
