"""An engine for every place where an optimizer's parameters are: the host, each CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastopt.torch import where
from fastopt.torch.engine import Engine
from fastopt.torch.kind import Kind


class Several:
    """Engines as one. `others`: the parameters that only torch's own class can step."""

    def __init__(self, engines: Sequence[Engine]):
        self._engines = engines
        self.others = [p for e in engines for p in e.others]

    def fits(self, *asked: Any) -> bool:
        return all([e.fits(*asked) for e in self._engines])  # each takes over what is new

    def prepare(self, given: Sequence[Any]) -> None:
        for e in self._engines:
            e.prepare(given)

    def run(self, given: Sequence[Any], scaled: Any = None) -> None:
        for e in self._engines:
            e.run(given, scaled)


def engine(
    name: str, kind: Kind, groups: Sequence[dict[str, Any]], state: Any, params: Sequence[Any], given: Sequence[Any]
) -> Engine | Several:
    """What steps `params`, all those of `groups`, by `given`, their gradients."""
    places = sorted({where.device(p) for p, g in zip(params, given, strict=True) if g is not None})
    if len(places) > 1:
        return Several([Engine(name, kind, groups, state, given, place) for place in places])
    return Engine(name, kind, groups, state, given, *places)


def left(kind: Kind, groups: Sequence[dict[str, Any]], params: Sequence[Any], given: Sequence[Any]) -> bool:
    """Can what a GradScaler leaves to a step stay on devices, so that the host need not wait to know it?

    Then `step` has to be there, too: the host does not know whether it counts.
    """
    live = [p for p, g in zip(params, given, strict=True) if g is not None]
    away = bool(live) and all(where.device(p) != where.HOST for p in live)
    return away and kind.torch is not None and all(g.get("fused") for g in groups)
