"""The same rule in torch, stepped beside fastopt on copies of the same arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class TorchTwin:
    """The same rule in torch on copies of the same arrays: a parameter group for each, the single-tensor code."""

    NAMES = {"sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}  # noqa: RUF012

    def __init__(self, rule: str, arrays: list[np.ndarray], hypers: list[dict[str, Any]], maximize: bool = False):
        import torch

        torch.set_num_threads(1)
        self.torch, self.rule = torch, rule
        self.tensors = [torch.tensor(a) for a in arrays]
        groups = [{"params": [x], **self._group(h)} for x, h in zip(self.tensors, hypers, strict=True)]
        make = _torch_lion() if rule == "lion" else getattr(torch.optim, self.NAMES[rule])
        options = {} if rule == "lion" else {"foreach": False}
        if rule == "adagrad":  # torch reads this one from its constructor alone
            options["initial_accumulator_value"] = hypers[0]["initial_accumulator_value"]
        self.opt = make(groups, maximize=maximize, **options)

    @staticmethod
    def _group(hyper: Mapping[str, Any]) -> dict[str, Any]:
        hyper = dict(hyper)
        if "beta1" in hyper:
            hyper["betas"] = (hyper.pop("beta1"), hyper.pop("beta2"))
        return hyper

    def step(self, grads: list[np.ndarray | None], hypers: list[dict[str, Any]]) -> None:
        for x, g, group, hyper in zip(self.tensors, grads, self.opt.param_groups, hypers, strict=True):
            x.grad = None if g is None else self.torch.tensor(g)
            group.update(self._group(hyper))
        self.opt.step()

    @property
    def p(self) -> np.ndarray:
        return np.concatenate([x.numpy().ravel() for x in self.tensors])


def _torch_lion() -> Any:
    """Lion (torch has none): decay, then the sign of the interpolated momentum, the order of timm."""
    import torch

    class Lion(torch.optim.Optimizer):
        def __init__(self, groups, maximize):
            super().__init__(groups, {"maximize": maximize})

        @torch.no_grad()
        def step(self):  # pyright: ignore
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    g = -p.grad if group["maximize"] else p.grad
                    m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(torch.sign(beta1 * m + (1 - beta1) * g), alpha=-group["lr"])
                    m.mul_(beta2).add_(g, alpha=1 - beta2)

    return Lion
