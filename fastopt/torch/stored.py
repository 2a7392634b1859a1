"""`state_dtype=` and its like in torch classes: keys of a group, and states of 8 bits in `opt.state[p]`.

A state in 16 bits is a tensor under its own key. One in 8 bits is two, codes and scales, under keys that torch does not
know: its own class must not take codes for numbers when it loads such a checkpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from fastopt import blocks, codecs, memory, storage
from fastopt.errors import ConfigError
from fastopt.storage import Storage
from fastopt.targets import masters
from fastopt.torch import tensors, where

OPTIONS = ("state_dtype", "rounding", "master")  # keys of a group; with none of them states are as torch's
ARGUMENTS = (*OPTIONS, "memory")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALVES = (torch.bfloat16, torch.float16)
MASTER = "master"
_CODES, _SCALES = "_q8", "_scale"


# -------------------------------------------------------------------- options
def signature(own: inspect.Signature) -> inspect.Signature:
    """The same, and our arguments after all others."""
    ours = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in ARGUMENTS]
    return own.replace(parameters=[*own.parameters.values(), *ours])


def options(given: Mapping[str, Any], keys: Iterable[str], title: str, halves: bool = True) -> dict[str, Any]:
    """What a group, or a constructor, says of storage, checked, as a group keeps it. Raises `ConfigError`.

    `keys`: those of states in `opt.state[p]`; `halves`: are there parameters in 16 bits?
    """
    found = _read(given, keys, title, halves)
    told = {n: given[n] for n in OPTIONS if n in given}
    if given.get("state_dtype") is not None or given.get("memory") is not None:
        told["state_dtype"] = found.every or dict(found.named)
    return told


def of(group: Mapping[str, Any], keys: Mapping[str, str], title: str) -> Storage | None:
    """The storage that a group asks for; None: as torch's. `keys`: rule state -> key of `opt.state[p]`."""
    if all(group.get(n) is None for n in OPTIONS):
        return None
    found, names = _read(group, keys.values(), title), {key: name for name, key in keys.items()}
    return replace(found, named={names[key]: codec for key, codec in found.named.items()})


def _read(given: Mapping[str, Any], keys: Iterable[str], title: str, halves: bool = True) -> Storage:
    said = {n: given[n] for n in ARGUMENTS if given.get(n) is not None}
    return storage.read(tuple(keys), title, halves, **said)


# -------------------------------------------------------------------- states in `opt.state[p]`
def begun(held: Mapping[str, Any], key: str) -> bool:
    """Is there a state under this key, however it is stored?"""
    return held.get(key) is not None or held.get(key + _CODES) is not None


def numbers(held: dict[str, Any], key: str) -> torch.Tensor | None:
    """The state under `key`, decoded if it is in 8 bits."""
    codes, scales = _pair(held, key)
    if codes is None:
        return held.get(key)
    if not _fit(codes, scales, codes):
        raise ConfigError(
            f"state `{key}{_CODES}` is no dense uint8 tensor that has a float32 number per {blocks.BLOCK} elements in "
            f"`{key}{_SCALES}`; load the checkpoint again."
        )
    here = where.host(codes)
    found = torch.empty_like(here, dtype=torch.float32)
    _array(found)[...] = blocks.decode(_array(here), where.host(scales).numpy())
    return torch.empty_like(codes, dtype=torch.float32).copy_(found)


def _pair(held: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    return held.get(key + _CODES), held.get(key + _SCALES)


def put(held: dict[str, Any], key: str, value: torch.Tensor | None) -> None:
    """Keep a state as numbers."""
    held[key] = value
    held.pop(key + _CODES, None)
    held.pop(key + _SCALES, None)


def in_blocks(held: dict[str, Any], key: str, like: torch.Tensor, start: Any, what: str) -> tuple[Any, Any]:
    """Codes and scales of the state under `key`, for memory like the float32 tensor `like`; encoded if it was not.

    `start`: what a new state begins with, such a tensor; None for zeros.
    """
    codes, scales = _pair(held, key)
    if not _fit(codes, scales, like):
        value: Any = numbers(held, key)
        value = start if value is None else tensors.adopt(value, like, what)
        codes = torch.zeros_like(like, dtype=torch.uint8)
        scales = like.new_zeros(_blocks(like), dtype=torch.float32)
        if value is not None:
            pair = where.host(codes), where.host(scales)
            blocks.write(_array(pair[0]), pair[1].numpy(), _array(where.host(value)))
            codes.copy_(pair[0])
            scales.copy_(pair[1])
        held.pop(key, None)
        held[key + _CODES], held[key + _SCALES] = codes, scales
    return _array(codes), _array(scales)


def _fit(codes: Any, scales: Any, like: torch.Tensor) -> bool:
    return (
        isinstance(codes, torch.Tensor)
        and isinstance(scales, torch.Tensor)
        and (codes.dtype, codes.shape, codes.stride()) == (torch.uint8, like.shape, like.stride())
        and where.device(codes) == where.device(scales) == where.device(like)
        and (scales.dtype, scales.shape) == (torch.float32, (_blocks(like),))
        and all(map(tensors.strided, (codes, scales)))
        and scales.is_contiguous()
        and tensors.view(codes, shaped=False) is not None
    )


def _blocks(x: torch.Tensor) -> int:
    return -(-x.numel() // blocks.BLOCK)


def _array(x: torch.Tensor) -> Any:
    found = tensors.view(x, shaped=False)
    assert found is not None
    return found


def master(held: dict[str, Any], how: str, memory: torch.Tensor, what: str) -> Any:
    """What is known of a 16-bit parameter, which lies in `memory`, beyond its 16 bits."""
    own, value = codecs.of(tensors.KINDS[memory.dtype]), held.get(MASTER)
    dtype = getattr(torch, masters.dtype(how, own))
    if value is None:
        value = memory.float() if how == "float32" else torch.zeros_like(memory, dtype=dtype)
    elif value.dtype != dtype:
        raise ConfigError(f"{what} is {value.dtype}; master={how!r} keeps {dtype}. Give the `master` it was made with.")
    held[MASTER] = tensors.adopt(value, torch.empty_like(memory, dtype=dtype), what)
    return _array(held[MASTER])


# -------------------------------------------------------------------- checkpoints, and what is held
def keep_bits(held: dict[str, Any], saved: Mapping[str, Any], as_torch: bool) -> None:
    """`held` is what torch made of `saved`, all in the parameter's dtype: codes and scales are again what they were.

    And so is everything else, unless `as_torch`: the next step turns it into what it needs.
    """
    blocked = {k for k in saved if _scales(k) in saved}
    exact = blocked | set(map(_scales, blocked)) if as_torch else saved
    for key in exact:
        if isinstance(saved[key], torch.Tensor) and held[key].dtype != saved[key].dtype:
            held[key] = saved[key].to(held[key].device, copy=True)


def decode(held: dict[str, Any]) -> None:
    """For torch's own step: all that is in 8 bits."""
    for codes in [k for k in held if _scales(k) in held]:
        key = codes.removesuffix(_CODES)
        put(held, key, numbers(held, key))


def parts(params: Sequence[torch.Tensor], state: dict[Any, Any]) -> Iterator[memory.Part]:
    """What parameters and `opt.state` hold, for a table."""
    for p in params:
        yield _part(memory.PARAMETERS, p)
    held = [dict.get(state, p, {}) for p in params]
    for key in dict.fromkeys(chain.from_iterable(held)):
        for mine in held:
            scales = mine.get(_scales(key))
            if scales is not None:
                name, _, elements, size = _part(key, mine[key])
                yield memory.Part(name.removesuffix(_CODES), "q8", elements, size + scales.nbytes)
            elif isinstance(mine.get(key), torch.Tensor) and key != "step" and key not in map(_scales, mine):
                yield _part(key, mine[key])


def _part(name: str, x: torch.Tensor) -> memory.Part:
    return memory.Part(name, str(x.dtype).removeprefix("torch."), x.numel(), x.nbytes)


def _scales(key: Any) -> Any:
    """The key of the scales if `key` is that of codes, else None."""
    return f"{key.removesuffix(_CODES)}{_SCALES}" if isinstance(key, str) and key.endswith(_CODES) else None
