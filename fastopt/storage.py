"""Which state is stored how: `state_dtype` and `rounding` of an optimizer, applied to the lowered rule of a parameter.

A rule knows nothing of it. The lowered rule gets a codec for some of its buffers, and the kernels print it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastopt import codecs
from fastopt.blocks import BLOCK
from fastopt.errors import ConfigError, hint, listing
from fastopt.lowered import Lowered
from fastopt.schema import Rule
from fastopt.targets import masters

_NAMES = {n: n for n in ("float32", "bfloat16", "float16", "q8")} | {"bf16": "bfloat16", "f16": "float16"}
PRESETS = {"8bit": "q8", "16bit": "bf16"}
ROUNDINGS = ("stochastic", "nearest")
SMALLEST = 4096  # elements: a smaller parameter keeps its state in full, which costs little and is often a bias


@dataclass(frozen=True)
class Storage:
    """How states are stored: `every` codec for all that have no own one in `named`; None: as the rule computes.

    `master`: how parameters in 16 bits are known better, see `targets.masters`; "": not at all. `by_rows`: can kernels
    of rules that walk along rows take state in 8 bits?
    """

    every: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    stochastic: bool = True
    master: str = ""
    by_rows: bool = True

    @property
    def plain(self) -> bool:
        return self.every is None and not self.named and not self.master

    def applied(self, lowered: Lowered, rule: Rule, param: Any) -> Lowered:
        """The lowered rule with the codecs of its states. Raises `ConfigError` for a state that must not have one."""
        own = codecs.of(param.dtype)
        if self.plain and not own.coded:
            return lowered
        stored, master = [], self.master if own.coded else ""
        if master == "split" and own.name != "bfloat16":
            raise ConfigError(f"master is 'split', which is for bfloat16; a parameter is {own}. Use 'kahan'.")
        for state in lowered.state:
            codec = self.named.get(state, None if rule.init.get(state) == "p" else self.every)
            if codec is None or state in dict(lowered.levels) or state in lowered.squares:
                continue
            if codec == "q8":
                columns = math.prod(param.shape[1:])
                torn = lowered.shaped and not (self.by_rows and columns % BLOCK == 0)
                if torn and state in self.named:
                    why = f"blocks of {BLOCK} do not divide rows of {columns}" if self.by_rows else "it runs on a GPU"
                    raise ConfigError(
                        f"state_dtype: `{state}` of `{rule.name}` cannot be 'q8', since the rule walks along rows and "
                        f"{why}; use 'bf16', by a fastopt.Group for those parameters alone."
                    )
                if torn or param.size < SMALLEST:
                    continue
            if codec != str(own.real):
                stored.append((state, codec))
        rounded = (*("p",) * (own.coded and not master), *(s for s, codec in stored if codec != "float32"))
        scales = {f"{s}_scale" for s, codec in stored if codec == "q8"} | ({"master"} if master else set())
        if clash := scales & {*lowered.buffers, *rule.state}:
            raise ConfigError(f"state_dtype: `{rule.name}` has a state `{min(clash)}` of its own; rename it.")
        if not stored and not own.coded:
            return lowered
        return replace(lowered, stored=tuple(stored), rounded=rounded if self.stochastic else (), master=master)


def read(
    states: Sequence[str],
    title: str,
    halves: bool,
    *,
    state_dtype: Any = None,
    rounding: Any = "stochastic",
    master: Any = None,
    memory: Any = None,
    otherwise: Storage = Storage(),
) -> Storage:
    """What the caller says, checked; what is not said is as in `otherwise`. Raises `ConfigError`.

    `states`: the names of those that `title` keeps; `halves`: are there parameters in 16 bits?
    """
    if memory is not None and memory not in PRESETS:
        raise ConfigError(f"memory is {memory!r}; expected None or one of {', '.join(map(repr, PRESETS))}.")
    if memory is not None and state_dtype is not None:
        raise ConfigError(f"memory={memory!r} chooses `state_dtype`, which is given, too; leave one of them out.")
    state_dtype = state_dtype if memory is None else PRESETS[memory]
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding is {rounding!r}; expected one of {', '.join(map(repr, ROUNDINGS))}.")
    if master is not None and master not in masters.KINDS:
        raise ConfigError(f"master is {master!r}; expected None or one of {', '.join(map(repr, masters.KINDS))}.")
    if master and not halves:
        raise ConfigError(f"master is {master!r}, which is for parameters in bfloat16 or float16; there are none.")
    every, named = (otherwise.every, otherwise.named) if state_dtype is None else (None, {})
    if isinstance(state_dtype, Mapping):
        if unknown := [s for s in state_dtype if s not in states]:
            has = f"its states are {listing(states)}" if states else "it keeps none"
            close = hint(str(unknown[0]), states)
            raise ConfigError(f"state_dtype: `{title}` has no state {unknown[0]!r}; {has}.{close}")
        named = {s: _codec(name, f"state_dtype[{s!r}]") for s, name in state_dtype.items()}
    elif state_dtype is not None:
        every = _codec(state_dtype, "state_dtype")
    return replace(
        otherwise, every=every, named=named, stochastic=rounding == "stochastic", master=master or otherwise.master
    )


def _codec(name: Any, where: str) -> str:
    given = name if isinstance(name, str) else getattr(name, "__name__", None) or str(getattr(name, "name", name))
    given = given.removeprefix("torch.")
    if given not in _NAMES:
        close = hint(given, _NAMES)
        raise ConfigError(f"{where} is {name!r}; expected one of {', '.join(map(repr, _NAMES))}.{close}")
    return codecs.of(_NAMES[given]).name
