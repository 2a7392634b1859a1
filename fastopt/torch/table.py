"""Which torch class is which rule. A further class is an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import fastopt as fo
from fastopt.schema import Rule
from fastopt.torch.kind import Kind

_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}


def _always(rule: Rule) -> Any:
    return lambda group: rule


def _adam(group: Mapping[str, Any]) -> Rule:
    return fo.adamw if group.get("decoupled_weight_decay") else fo.adam


KINDS: dict[str, Kind] = {
    "SGD": Kind(_always(fo.sgd), {"b": "momentum_buffer"}, counted=False, torch=torch.optim.SGD),
    "Adagrad": Kind(_always(fo.adagrad), {"s": "sum"}, torch=torch.optim.Adagrad),
    "RMSprop": Kind(
        _always(fo.rmsprop),
        {"v": "square_avg", "b": "momentum_buffer", "ga": "grad_avg"},
        torch=torch.optim.RMSprop,
    ),
    "Adam": Kind(_adam, _MOMENTS, torch=torch.optim.Adam),
    "AdamW": Kind(_always(fo.adamw), _MOMENTS, torch=torch.optim.AdamW),
}
