"""Which state is stored how: `state_dtype` and `rounding` of an optimizer, applied to the lowered rule of a parameter.

A rule knows nothing of it. The lowered rule gets a codec for some of its buffers, and the kernels print it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastopt import codecs
from fastopt.errors import ConfigError, hint, listing
from fastopt.lowered import Lowered
from fastopt.schema import Rule

_NAMES = {n: n for n in ("float32", "bfloat16", "float16", "q8")} | {"bf16": "bfloat16", "f16": "float16"}
ROUNDINGS = ("stochastic", "nearest")
SMALLEST = 4096  # elements: a smaller parameter keeps its state in full, which costs little and is often a bias


@dataclass(frozen=True)
class Storage:
    """How states are stored: `every` codec for all that have no own one in `named`; None: as the parameter."""

    every: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    stochastic: bool = True

    @property
    def plain(self) -> bool:
        return self.every is None and not self.named

    def applied(self, lowered: Lowered, rule: Rule, param: Any) -> Lowered:
        """The lowered rule with the codecs of its states. Raises `ConfigError` for a state that must not have one."""
        if self.plain:
            return lowered
        stored = []
        for state in lowered.state:
            codec = self.named.get(state, None if rule.init.get(state) == "p" else self.every)
            if codec is None or state in dict(lowered.levels) or state in lowered.squares:
                continue
            if codec == "q8":
                if lowered.shaped and state in self.named:
                    raise ConfigError(
                        f"state_dtype: `{state}` of `{rule.name}` cannot be 'q8', since the rule walks along rows; "
                        "use 'bf16'."
                    )
                if lowered.shaped or param.size < SMALLEST:
                    continue
            if codec != str(param.dtype):
                stored.append((state, codec))
        rounded = tuple(s for s, codec in stored if codec != "float32") if self.stochastic else ()
        scales = {f"{s}_scale" for s, codec in stored if codec == "q8"}
        if clash := scales & {*lowered.buffers, *rule.state}:
            raise ConfigError(f"state_dtype: `{rule.name}` has a state `{min(clash)}` of its own; rename it.")
        return replace(lowered, stored=tuple(stored), rounded=rounded) if stored else lowered


def read(state_dtype: Any, rounding: Any, rules: Sequence[Rule]) -> Storage:
    """What the caller says, checked. Raises `ConfigError`."""
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding is {rounding!r}; expected one of {', '.join(map(repr, ROUNDINGS))}.")
    if state_dtype is None:
        return Storage(stochastic=rounding == "stochastic")
    known = tuple(dict.fromkeys(s for rule in rules for s in rule.state))
    if not isinstance(state_dtype, Mapping):
        return Storage(_codec(state_dtype, "state_dtype"), stochastic=rounding == "stochastic")
    if unknown := [s for s in state_dtype if s not in known]:
        has = listing(known) if known else "none"
        title = " + ".join(dict.fromkeys(rule.name for rule in rules))
        close = hint(str(unknown[0]), known)
        raise ConfigError(f"state_dtype: `{title}` has no state {unknown[0]!r}; its states are {has}.{close}")
    named = {s: _codec(name, f"state_dtype[{s!r}]") for s, name in state_dtype.items()}
    return Storage(named=named, stochastic=rounding == "stochastic")


def _codec(name: Any, where: str) -> str:
    given = name if isinstance(name, str) else getattr(name, "__name__", None) or str(getattr(name, "name", name))
    given = given.removeprefix("torch.")
    if given not in _NAMES:
        close = hint(given, _NAMES)
        raise ConfigError(f"{where} is {name!r}; expected one of {', '.join(map(repr, _NAMES))}.{close}")
    return codecs.of(_NAMES[given]).name
