"""`opt.perturb(grads)`: sharpness-aware minimisation. The gradient is taken where the loss rises most nearby."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from fastopt.accumulate import Accumulation
from fastopt.errors import ConfigError
from fastopt.math import abs, norm
from fastopt.rule import rule
from fastopt.schema import NonNegative

PERTURBED = 4  # a value of the clock's dirty flag; those of averages.py are 2 and 3
_T, _DIRTY = 0, 1


# Parameters that are perturbed are, to these two rules, parameters like any other; w keeps what they were.
@rule(name="perturb")
def _up(p, g, w, *, rho: NonNegative, eta: NonNegative = 0.01, adaptive=False, t):
    s = abs(p) + eta if adaptive else 1
    u = s * g
    w = p if t > 0 else w  # always p; but a state that is never read would not be kept
    return p + rho * s * u / (norm(u, "all") + 1e-12), w


@rule(name="unperturb")
def _back(p, g):
    return g


class Perturbation(Accumulation):
    """The part of an optimizer that perturbs parameters and puts them back."""

    _clock: Any
    _upward: Any = None  # the optimizer of `_up`, made when it is needed first
    _downward: Any = None

    if TYPE_CHECKING:

        def _alone(self) -> threading.Lock: ...

    def perturb(self, grads: Any = None, *, rho: float = 0.05, adaptive: bool = False, stream: Any = None) -> None:
        """Move the parameters by `rho` along the gradient; the next `step()` starts from where they were.

        Sharpness-aware minimisation, Foret et al. 2020, arXiv:2010.01412, Algorithm 1: `opt.perturb(grads)`, then the
        gradient there, then `opt.step(grads)`. `adaptive`: ASAM, Kwon et al. 2021, arXiv:2102.11600, Algorithm 1, where
        an element moves the further the larger it is (eta is 0.01; its rho is about ten times as large). The norm is
        that of all gradients together. Takes one buffer as large as the parameters.

        Until the step everything but `accumulate`, `set` and `unperturb()` raises `ConfigError`. Raises what `step`
        raises; then nothing is changed.
        """
        with self._alone():
            self._ready_for_gradients()
            if self._clock[_DIRTY]:
                raise ConfigError(
                    "the parameters are perturbed already; call opt.step(grads) or opt.unperturb() first."
                )
            if grads is None:
                grads = self._gradients.packed
            up: Any = self._upward
            if up is None or up.hyper()["adaptive"] != adaptive:
                up = self._upward = self._beside(_up, self.params, rho=rho, adaptive=adaptive)
            up.set(rho=rho)
            self._clock[_DIRTY] = 1  # an interrupt here leaves parameters in between
            before = up._clock[_T]
            try:
                up.step(grads, stream=stream)
            except BaseException:  # of an interrupt nobody knows whether it came before or after
                self._clock[_DIRTY] = PERTURBED if up._clock[_T] > before and not up.torn else up.torn
                raise
            self._clock[_DIRTY] = PERTURBED

    def unperturb(self) -> None:
        """Put back what `perturb` moved, bit for bit. Without a `perturb` before it does nothing."""
        with self._alone():
            if self._clock[_DIRTY] == PERTURBED:
                self._put_back()

    def _put_back(self, stream: Any = None) -> None:
        if self._downward is None:
            self._downward = self._beside(_back, self.params)
        moved = self._upward._gradients.kinds
        saved = zip(self._list(self._upward.state["w"]), moved, strict=True)
        self._downward.step(self._tree.build(iter([w if on else None for w, on in saved])), stream=stream)
        self._clock[_DIRTY] = 0
