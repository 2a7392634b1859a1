"""Which torch class is which rule. A further class is an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import fastopt as fo
from fastopt.schema import Rule
from fastopt.torch.kind import Kind

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_ADAM = {**MOMENTS, "vmax": "max_exp_avg_sq"}


def _always(rule: Rule) -> Any:
    return lambda group: rule


def _adam(group: Mapping[str, Any]) -> Rule:
    return fo.adamw if group.get("decoupled_weight_decay") else fo.adam


def _part(key: str, k: int) -> Any:
    return lambda group: group[key][k]


def _eps1(group: Mapping[str, Any]) -> float:
    given = group["eps"][0]
    return torch.finfo(group["params"][0].dtype).eps if given is None else given


KINDS: dict[str, Kind] = {
    "SGD": Kind(
        _always(fo.sgd),
        {"b": "momentum_buffer"},
        counted=False,
        # with momentum torch's buffer is sparse, too, and moves rows that the gradient does not touch
        sparse=lambda group: not (group["momentum"] or group["weight_decay"] or group.get("fused")),
        torch=torch.optim.SGD,
    ),
    "Adagrad": Kind(
        _always(fo.adagrad),
        {"s": "sum"},
        sparse=lambda group: not (group["weight_decay"] or group.get("fused")),
        torch=torch.optim.Adagrad,
    ),
    "SparseAdam": Kind(
        _always(fo.keras.adam),  # whose eps stands where SparseAdam's does
        MOMENTS,
        plain=True,
        dense=False,
        sparse=lambda group: True,
        values={"weight_decay": lambda group: 0.0, "amsgrad": lambda group: False},
        torch=torch.optim.SparseAdam,
    ),
    "Adafactor": Kind(
        _always(fo.adafactor),
        {"r": "row_var", "c": "col_var", "v": "variance"},
        # of larger arrays torch factors the last two axes; eps1 of None depends on the dtype
        takes=lambda group, p: (
            p.dim() <= 2
            and p.dtype in (torch.float32, torch.float64)
            and (group["eps"][0] is not None or p.dtype == group["params"][0].dtype)
        ),
        torch=torch.optim.Adafactor,
        values={"eps1": _eps1, "eps2": _part("eps", 1)},
    ),
    "RMSprop": Kind(
        _always(fo.rmsprop),
        {"v": "square_avg", "b": "momentum_buffer", "ga": "grad_avg"},
        torch=torch.optim.RMSprop,
    ),
    "Adam": Kind(_adam, _ADAM, torch=torch.optim.Adam),
    "AdamW": Kind(_always(fo.adamw), _ADAM, torch=torch.optim.AdamW),
    "NAdam": Kind(_always(fo.nadam), {"product": "mu_product", **MOMENTS}, torch=torch.optim.NAdam),
    "RAdam": Kind(_always(fo.radam), MOMENTS, torch=torch.optim.RAdam),
    "Adamax": Kind(_always(fo.adamax), {"m": "exp_avg", "u": "exp_inf"}, torch=torch.optim.Adamax),
    "Adadelta": Kind(_always(fo.adadelta), {"v": "square_avg", "a": "acc_delta"}, torch=torch.optim.Adadelta),
    "Rprop": Kind(
        _always(fo.rprop),
        {"prev": "prev", "delta": "step_size"},
        torch=torch.optim.Rprop,
        values={
            "eta_minus": _part("etas", 0),
            "eta_plus": _part("etas", 1),
            "delta_min": _part("step_sizes", 0),
            "delta_max": _part("step_sizes", 1),
        },
    ),
    "ASGD": Kind(
        _always(fo.asgd), {"eta": "eta", "mu": "mu", "ax": "ax"}, beside=lambda group: True, torch=torch.optim.ASGD
    ),
    "Muon": Kind(
        _always(fo.muon),
        {"B": "momentum_buffer"},
        counted=False,
        takes=lambda group, p: not p.is_complex(),
        torch=torch.optim.Muon,
        values={
            **{n: _part("ns_coefficients", k) for k, n in enumerate("abc")},
            "match_rms_adamw": lambda group: group["adjust_lr_fn"] == "match_rms_adamw",
        },
    ),
}
