"""A torch optimizer whose step is fastopt's: mixed into torch's own class, or into one made for a rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import wraps
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any, cast

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks as _all_after
from torch.optim.optimizer import _global_optimizer_pre_hooks as _all_before

from fastopt.errors import ConfigError
from fastopt.torch import tensors, ways
from fastopt.torch.engine import Engine
from fastopt.torch.several import Several, engine, left
from fastopt.torch.storing import Storing

_profiled: Any = vars(torch.autograd)["_profiler_enabled"]
_params = itemgetter("params")
_grad = attrgetter("grad")


class States(defaultdict):
    """`opt.state`: torch's defaultdict, which remembers whether somebody has ever looked into it.

    Who has may replace what he found there, so from then on each step looks, too. `dict`'s own methods do not count.
    """

    touched = False

    def __init__(self, *args: Any):
        super().__init__(dict, *args)

    def __reduce__(self) -> Any:
        return defaultdict, (dict, dict(dict.items(self)))


def _touching(name: str) -> Any:
    method = getattr(defaultdict, name)

    def touch(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.touched = True
        return method(self, *args, **kwargs)

    touch.__name__ = name
    return touch


for _name in ("__getitem__", "__setitem__", "__delitem__", "__iter__", "__ior__", "get", "items", "values"):
    setattr(States, _name, _touching(_name))
for _name in ("pop", "popitem", "setdefault", "update", "clear", "copy"):
    setattr(States, _name, _touching(_name))


def _hooked(step: Any) -> Any:
    """`step` with hooks and profile, as torch wraps every step; without either, at no cost worth mentioning."""
    whole = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if own or _all_before or _all_after or _profiled():
            return whole(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    wrapper.hooked = True  # type: ignore[attr-defined]  # which tells torch to wrap it no further
    return wrapper


def unhooked(step: Any) -> Any:
    """A step as it was before torch wrapped it."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__
    return step


class Fast(Storing):
    """What all classes here share. Abstract."""

    _engine: Engine | Several | None = None
    _flat: Sequence[torch.Tensor] = ()  # per parameter its gradient, once `use_flat_grads` was called
    _buffers: Sequence[torch.Tensor] = ()  # the memory of those

    def _own_state(self) -> None:
        self.state = States(self.state)
        self._engine = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own_state()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        tensors.check_device(self.param_groups[-1]["params"], type(self).__name__)
        if self._flat:
            self.use_flat_grads()

    def use_flat_grads(self) -> None:
        """Keep all gradients in one buffer per dtype and device, of which every `p.grad` is a view from now on.

        `backward` adds into them, `zero_grad` fills the buffers with zeros whatever `set_to_none` says, and a step
        need not look for addresses. A parameter that a loss does not reach then has a gradient of 0, not None: it is
        stepped, and decays. Raises `ConfigError`, and changes nothing, if a parameter is none that kernels can step.
        """
        params = list(chain.from_iterable(map(_params, self.param_groups)))
        for p in params:
            if not tensors.ordinary(p) or (p.grad is not None and p.grad.layout is not torch.strided):
                raise ConfigError(
                    f"use_flat_grads: a parameter of shape {tuple(p.shape)} and dtype {p.dtype} on `{p.device}` cannot "
                    "have its gradient in a buffer; expected dense tensors in CPU or CUDA memory, of real or complex "
                    "numbers."
                )
        flat, self._buffers = tensors.flat_like(params)
        for p, g in zip(params, flat, strict=True):
            if p.grad is not None:
                g.copy_(p.grad.detach())
            p.grad = g
        self._flat, self._engine = flat, None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; after `use_flat_grads`, gradients become 0 and stay where they are."""
        if not self._flat:
            return super().zero_grad(set_to_none)
        for buffer in self._buffers:
            buffer.zero_()
        params = list(chain.from_iterable(map(_params, self.param_groups)))
        if not all(map(is_, map(_grad, params), self._flat)):
            for p, g in zip(params, self._flat, strict=True):
                p.grad = g

    def state_dict(self) -> dict[str, Any]:
        before = getattr(self.state, "touched", True)
        saved = super().state_dict()
        if not before and not self._optimizer_state_dict_pre_hooks and not self._optimizer_state_dict_post_hooks:
            # nobody but us has looked; the tensors are the live ones, as torch's are
            saved["state"] = {k: dict(v) if isinstance(v, dict) else v for k, v in saved["state"].items()}
            cast(States, self.state).touched = False
        return saved

    @_hooked
    def step(self, closure: Any = None) -> Any:
        """One step, of all parameters that have a gradient; a closure is called first and gives the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        params = list(chain.from_iterable(map(_params, groups)))
        given, scaled = list(map(_grad, params)), None
        if hasattr(self, "found_inf"):
            found = vars(self)["found_inf"]
            if found is not None and left(self.kind, groups, params, given):
                scaled = vars(self).get("grad_scale"), found
            else:
                given = self._unscaled(given)
                if given is None:
                    return loss
        mine = self._engine
        if mine is None or not mine.fits(groups, self.state, params, given, self._flat):
            self._engine = None  # whatever fails from here on, the next step looks again
            if type(self.state) is not States:
                self._own_state()
            mine = engine(type(self).__name__, self.kind, groups, self.state, params, given)
        mine.prepare(given)
        if mine.others:
            self._by_torch(mine.others, unscaled=not scaled)
        mine.run(given, scaled)
        self._engine = mine
        return loss

    def _unscaled(self, given: list[Any]) -> list[Any] | None:
        """What `GradScaler` leaves to optimizers that say they support it: gradients to step by; None: skip the step.

        Those in 16 bits are unscaled in 32: that they would be too small in 16 is what they were scaled for.
        """
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found_inf is not None and float(found_inf):
            return None
        if scale is None:
            return given
        found, factor = list(given), 1.0 / float(scale)
        with torch.no_grad():
            for k, g in enumerate(given):
                if g is not None and g.dtype in (torch.float16, torch.bfloat16):
                    found[k] = g.float().mul_(factor)
                    g.copy_(found[k])
                elif g is not None:
                    g.mul_(factor)
        return found

    def _by_torch(self, params: list[torch.Tensor], unscaled: bool) -> None:
        """Let torch's own class step `params` alone. `unscaled`: what a GradScaler left to the step is done."""
        if self.kind.torch is None:
            raise ways.refusal(type(self).__name__, params)
        step = unhooked(self.kind.torch.step)  # hooks and profile are those of our step
        self._as_torch(params)
        chosen = set(map(id, params))
        kept = [g["params"] for g in self.param_groups]
        scaled = {n: vars(self).pop(n) for n in ("grad_scale", "found_inf") if n in vars(self) and unscaled}
        try:
            for g in self.param_groups:
                g["params"] = [p for p in g["params"] if id(p) in chosen]
            step(self)
        finally:
            vars(self).update(scaled)
            for g, everyone in zip(self.param_groups, kept, strict=True):
                g["params"] = everyone
