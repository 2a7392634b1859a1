"""The half of a torch class that says how its states are stored: `state_dtype=` and its like, as keys of a group."""

from __future__ import annotations

import inspect
from itertools import chain
from typing import Any, ClassVar

import torch

from fastopt.errors import ConfigError
from fastopt.memory import Memory, tally
from fastopt.torch import stored
from fastopt.torch.kind import Kind


class Storing(torch.optim.Optimizer):
    """Abstract."""

    kind: ClassVar[Kind]
    __signature__: inspect.Signature

    def __init_subclass__(cls, **given: Any):
        super().__init_subclass__(**given)
        if "kind" in vars(cls) and cls.kind.torch is not None:
            cls.__signature__ = stored.signature(inspect.signature(cls.kind.torch))

    def __init__(
        self,
        params: Any,
        *args: Any,
        state_dtype: Any = None,
        rounding: str | None = None,
        master: str | None = None,
        memory: str | None = None,
        **given: Any,
    ):
        said = zip(stored.ARGUMENTS, (state_dtype, rounding, master, memory), strict=True)
        options = self._options({n: x for n, x in said if x is not None})
        super().__init__(params, *args, **given)
        self.defaults.update(options)
        for group in self.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        if master is not None:
            self._options(options, halves=any(p.dtype in stored.HALVES for p in self._everyone()))

    def _options(self, given: dict[str, Any], *, halves: bool = True) -> dict[str, Any]:
        return stored.options(given, self.kind.state.values(), type(self).__name__, halves)

    def _everyone(self) -> list[torch.Tensor]:
        return list(chain.from_iterable(g["params"] for g in self.param_groups))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            param_group.update(self._options(param_group))
            param_group.pop("memory", None)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; but how states are stored stays as it is here: the next step converts those of a checkpoint."""
        own = [{n: g[n] for n in stored.OPTIONS if n in g} for g in self.param_groups]
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        for group, mine in zip(self.param_groups, own, strict=True):
            for name in stored.OPTIONS:
                group.pop(name, None)
            group.update(mine)
            as_torch = self.kind.torch is not None and not _says(group)
            for p, k in zip(group["params"], saved, strict=False):
                if k in state_dict["state"]:
                    stored.keep_bits(dict.__getitem__(self.state, p), state_dict["state"][k], as_torch)

    def memory(self) -> Memory:
        """What parameters and states take, in bytes and as what they are stored. Printed, it is a table."""
        return tally(stored.parts(self._everyone(), self.state))

    def _as_torch(self, params: list[torch.Tensor]) -> None:
        """Make their states what torch's own code reads; raises `ConfigError` where a group asks for others."""
        chosen = set(map(id, params))
        for group in self.param_groups:
            odd = next((p for p in group["params"] if id(p) in chosen), None)
            if odd is not None and _says(group):
                raise ConfigError(
                    f"{type(self).__name__}: a parameter of shape {tuple(odd.shape)} and dtype {odd.dtype} is one that "
                    f"torch's own code must step, which knows no {', '.join(stored.OPTIONS)}; give it a group without: "
                    f"{{'params': [...], {', '.join(f'{n!r}: None' for n in stored.OPTIONS)}}}."
                )
        for p in params:
            stored.decode(dict.get(self.state, p, {}))


def _says(group: dict[str, Any]) -> bool:
    return any(group.get(n) is not None for n in stored.OPTIONS)
