"""A step: gradients read and checked, unscaled, looked at for NaN and infinity, and given to the rule's kernels."""

from __future__ import annotations

import math
from operator import is_
from typing import Any, NamedTuple, NoReturn

from fastopt import threads
from fastopt.averages import Averages
from fastopt.errors import ConfigError, NonFiniteError
from fastopt.scaling import LossScale
from fastopt.sharpness import PERTURBED, Perturbation
from fastopt.touched import BEHIND

_T, _DIRTY = 0, 1  # the clock: steps done, is one under way, then the steps of each parameter
POLICIES = ("ignore", "skip", "raise", "zero")


class Last(NamedTuple):
    """What `opt.last` says of the last step.

    Attributes:
        skipped: it did not happen, for a gradient was not finite.
        nonfinite: the path of the first parameter whose gradient was not finite; None if all were, or nobody looked.
        norm: the Euclidean norm of all gradients, unscaled and before clipping, where the rule takes one first
            (`clip_norm`, `clip_each_norm`, `clip_group_norm`), else None.
        norms: the same of each parameter, by path; on a GPU only where the rule takes them one by one.
    """

    skipped: bool = False
    nonfinite: str | None = None
    norm: float | None = None
    norms: dict[str, float] | None = None


class Stepping(Perturbation, Averages):
    """The part of an optimizer that takes steps."""

    names: tuple[str, ...]
    rule: Any
    _policy: str
    _watching: bool  # does every step look at its gradients first?
    _touched: dict[str, Any]
    _reading: str
    _plan: Any = None
    _offender: int = -1  # of the last step: the parameter whose gradient was not finite

    def step(self, grads: Any = None, *, scale: float | LossScale | None = None, stream: Any = None) -> None:
        """One step. `grads` has the structure of the parameters; packed parameters may leave it out.

        A gradient of None skips its parameter, that parameter's state and its own step count, as in PyTorch; a step
        without any gradient changes nothing. float64 gradients for float32 parameters, and the reverse, are converted
        in the kernel; other layouts and byte orders are copied first. After `accumulate` it takes the mean of what was
        accumulated; after `perturb` it starts from where the parameters were.

        scale: what the loss was multiplied by; the gradients are divided by it, in the same pass. A `LossScale` is told
        whether they were finite, and a step whose gradients were not is skipped, whatever `nonfinite` says.

        On a GPU the step is queued, behind what the library of the arrays has queued on its current stream, and nothing
        waits for it, but for a look at the gradients, which a `LossScale`, nonfinite="skip" and "raise" ask for.
        `stream` (of PyTorch, CuPy, Numba, cuda.core, or a handle) queues it there instead. Without such a look the step
        may be captured in a CUDA graph; see `prepare`. Other layouts are refused, not copied.

        Raises `GradientError` (structure, shape, dtype, shared memory), `ConfigError` (a schedule's value),
        `NonFiniteError` (with nonfinite="raise"), `ConcurrentUseError` or `TornStateError`; after any of them
        parameters and state are what they were. On a GPU, `DeviceError`, also for what failed there since the last
        step.
        """
        with self._alone():  # a C lock in a `with`: no interrupt comes between taking it and the block
            self._ready_for_gradients()
            if stream is not None:
                stream = self._place.stream(stream)
            factor, watch = (1.0, self._watching) if scale is None else self._unscaling(scale)
            if self._count:
                if grads is not None:
                    self._refuse_gradients()
                grads, share = self._mean()
                factor *= share
            moved = self._gradients.read(grads)
            ready = self._plan
            if moved or ready is None or ready.epoch != threads.epoch:
                ready = self._aim(ready, stream)
            if self._clock[_DIRTY]:
                self._put_back(stream)
            found = ready.run(self._settings, self._clock, stream, factor, watch)
            if found != self._offender:  # an attribute of an optimizer takes a while to set
                self._offender = found
            self._gradients.release(found >= 0)
            if self._count:
                self._begin_again()
            if watch:
                self._tell(scale)

    def _tell(self, scale: Any) -> None:
        """What follows from a look at the gradients."""
        found = self._offender >= 0
        if isinstance(scale, LossScale):
            scale.update(found)
        if found and self._policy == "raise":
            raise NonFiniteError(
                f"step {self._clock[_T] + 1} of `{self.rule.name}`: the gradient of `{self.names[self._offender]}` is "
                "not finite, the first of them. Nothing was changed; look at the loss, a smaller lr, or clip_norm."
            )

    def _unscaling(self, scale: Any) -> tuple[float, bool]:
        """What to multiply gradients by, and whether to look at them first. Raises `ConfigError`."""
        value = scale.value if isinstance(scale, LossScale) else scale
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"step: `scale` is {scale!r}; expected a finite number > 0, or a fastopt.LossScale.")
        return 1 / value, isinstance(scale, LossScale) or self._watching

    def prepare(self, *, stream: Any = None) -> None:
        """Bring the hyperparameters of the next step, schedules evaluated, to the CUDA graphs that hold a step.

        Call it before each replay if there are schedules, with the replay's `stream` if that is not the current one of
        the arrays' library. `set` reaches graphs by itself, but waits for the device; step counts and bias corrections
        are the device's own. Does nothing for parameters in host memory.
        """
        with self._alone():
            stream = None if stream is None else self._place.stream(stream)
            self._place.changed(self._settings, self._clock, stream, replay=True)

    def _aim(self, ready: Any, stream: int | None = None) -> Any:
        """The plan for the gradients just read, its address tables filled in."""
        gradients = self._gradients
        if ready is None or ready.kinds != gradients.kinds or ready.epoch != threads.epoch or ready.fixed(stream):
            given = self._settings, self._segments, gradients.kinds, self._clock
            ready = self._place.build(*given, self._touched, self._reading, stream)
            self._plan = None
            if self._reading in BEHIND:
                gradients.by_rows |= self._touched.keys()
        ready.aim(gradients)
        self._plan = ready
        gradients.settle()
        return ready

    def _ready_for_gradients(self) -> None:
        """Raise what keeps gradients from being taken in, before anything is changed."""
        if self._clock[_DIRTY] and self._clock[_DIRTY] != PERTURBED:
            self._torn()
        if self._leaves and not all(map(is_, self._list(self.params), self._leaves)):
            self._replaced()

    @property
    def last(self) -> Last:
        """Of the last step: was it skipped, which gradient was not finite, and the norm before clipping."""
        if self._offender >= 0:
            return Last(True, self.names[self._offender])
        norm, each = self._plan.norms() if self._plan is not None else (None, {})
        return Last(norm=norm, norms={self.names[k]: n for k, n in sorted(each.items())} or None)

    def _replaced(self) -> NoReturn:
        now = self._list(self.params)
        name = next(n for n, x, y in zip(self.names, now, self._leaves, strict=True) if x is not y)
        raise ConfigError(
            f"parameter `{name}` was replaced by another array, which this optimizer does not know. Write into the "
            "array instead, x[...] = new, or build a new optimizer."
        )
