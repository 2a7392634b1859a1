"""L-BFGS for `fastopt.minimize`: the whole data at every step, lengths from a line search, no learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import codecs
from fastopt import params as arrays
from fastopt.callbacks import finite, whole
from fastopt.errors import ConfigError, GradientError, listing
from fastopt.linesearch import Trial, strong_wolfe
from fastopt.pack import Packed
from fastopt.process import Process, _Stop
from fastopt.schema import Hyper
from fastopt.targets import lbfgs as target


@dataclass(frozen=True)
class lbfgs:
    """L-BFGS, `minimize(loss_and_grad, params, rule=lbfgs(), steps=...)`. Liu & Nocedal 1989.

    In the form of Nocedal & Wright 2006, Algorithms 7.4 and 7.5, with step lengths that satisfy the strong Wolfe
    conditions, Algorithms 3.5 and 3.6. All parameters are one vector, of one dtype. A step is one line search: one or
    two evaluations of the loss most of the time. Of parameters in 16 bits that vector is float32, and they are what it
    is to the nearest: their loss has steps, at the height of which a run ends.

    Args:
        history: pairs of differences of parameters and of gradients that make the picture of the curvature. They take
            2 * history numbers per parameter.
        gtol: stop with the reason "converged" when no element of the gradient is larger; 0 never does.
        ftol: stop so, too, when a step lowers the loss by less than this times max(|loss|, 1); 0 at a standstill only.
        c1, c2: of the Wolfe conditions, 0 < c1 < c2 < 1.
        max_evaluations: of a line search.
    """

    history: int = 10
    gtol: float = 1e-5
    ftol: float = 1e7 * 2.0**-52  # scipy's
    c1: float = 1e-4
    c2: float = 0.9
    max_evaluations: int = 20

    name = "lbfgs"

    def __post_init__(self) -> None:
        whole("lbfgs", "history", self.history, 1)
        whole("lbfgs", "max_evaluations", self.max_evaluations, 1)
        for name in ("gtol", "ftol", "c1", "c2"):
            finite("lbfgs", name, getattr(self, name), 0.0)
        if not 0 < self.c1 < self.c2 < 1:
            raise ConfigError(f"lbfgs: `c1` is {self.c1!r} and `c2` is {self.c2!r}; expected 0 < c1 < c2 < 1.")

    @property
    def schema(self) -> dict[str, Hyper]:
        return {}

    def __call__(self, params: Any, *, groups: Iterable[Any] = (), **hyper: Any) -> Search:
        if tuple(groups):
            raise ConfigError("lbfgs: all parameters make one vector, without `groups`; leave frozen ones out of it.")
        if hyper.get("device", "auto") not in ("auto", "cpu"):
            raise ConfigError(f"lbfgs: device is {hyper['device']!r}; expected 'auto' or 'cpu'.")
        return Search(self, params)


class Search:
    """The vectors of a run, and what happens in a step. Takes the place of an `Optimizer` in `Run` and `Result`.

    Attributes:
        t: steps done. evaluations: of the loss, so far. loss, length: after the last step, and its length.
        largest: the largest |element| of the gradient.
    """

    torn = False  # whatever happens in a step, the parameters end where some step ended

    def __init__(self, rule: lbfgs, params: Any):
        tree, leaves = arrays.survey(params)
        names = tree.names()
        owned = [arrays.parameter(x, n) for x, n in zip(leaves, names, strict=True)]
        arrays.check_overlap([arrays.span(a) for a in owned], names)
        if len({a.dtype for a in owned}) > 1:
            raise ConfigError(
                f"lbfgs: {listing(names)} are of two dtypes; give them one: fastopt.pack(params, dtype=...)."
            )
        self.rule, self.params, self.names, self._tree, self._owned = rule, params, names, tree, owned
        self._packed = params if isinstance(params, Packed) and params.has_grads else None
        self._flat = [params.flat] if self._packed is not None else [a.reshape(-1) for a in owned]
        n, dtype = sum(a.size for a in self._flat), codecs.of(owned[0].dtype).real
        m = rule.history
        self.t, self.evaluations, self.loss, self.length, self.largest = 0, 0, math.nan, math.nan, math.nan
        self._x, self._g, self._trial_g, self._d = (arrays.zeros(n, dtype) for _ in range(4))
        alone = len(self._flat) == 1 and owned[0].dtype == dtype
        self._trial = self._flat[0] if alone else arrays.zeros(n, dtype)
        self._basis = arrays.zeros(2 * m * n, dtype).reshape(2 * m, n)  # s in the first m rows, y in the others
        self._pairs: list[int] = []  # their places, the oldest first
        self._sy, self._yy = np.zeros((m, m)), np.zeros((m, m))
        self._tables = target.Tables(n, dtype, m)
        self._run = self._tables.run

    def hyper(self, pattern: str | None = None) -> dict[str, float]:
        """`lr`: the length of the last step."""
        return {"lr": self.length}

    @property
    def num_parameters(self) -> int:
        return self._x.size

    # ---------------------------------------------------------------- the parameters and the gradient, as vectors
    def _place(self, x: np.ndarray) -> None:
        """Write a vector into the parameters; too large a number for float16 becomes infinite, as does the loss."""
        start = 0
        for a in self._flat:
            if a is not x:
                with np.errstate(over="ignore"):
                    a[...] = x[start : start + a.size]
            start += a.size

    def _observe(self, grads: Any) -> float:
        """The gradient into `_trial_g`; its product with the direction."""
        self.evaluations += 1
        if self._packed is not None and (grads is None or grads is self._packed.grads):
            source = codecs.widened(self._packed.grads.flat)
        else:
            source, start = self._trial_g, 0
            leaves = self._tree.leaves(grads)
            for leaf, like, name in zip(leaves, self._owned, self.names, strict=True):
                if leaf is None:
                    raise GradientError(f"gradient of `{name}` is None; lbfgs needs all of them.")
                g = arrays.gradient(leaf, like, name)
                if len(leaves) == 1 and g.dtype == self._x.dtype:
                    source = g.reshape(-1)
                else:
                    self._trial_g[start : start + like.size] = codecs.widened(g).reshape(-1)
                start += like.size
        self._run("observe", source, self._d, self._trial_g)
        self._trial_largest = float(self._tables.partials[0, 1].max(initial=0.0))
        return self._tables.slope

    def begin(self, loss: float, grads: Any) -> None:
        """The loss and the gradient where the parameters are."""
        start = 0
        for a in self._flat:
            self._x[start : start + a.size] = codecs.widened(a)
            start += a.size
        self._observe(grads)
        self._accept(loss)

    def _accept(self, loss: float) -> None:
        self.loss, self.largest = loss, self._trial_largest
        self._g, self._trial_g = self._trial_g, self._g

    # ---------------------------------------------------------------- a step
    def step(self, evaluate: Callable[[], tuple[float, Any]]) -> bool:
        """Move along the direction of the history; False, and no move, if no length will do, not even downhill.

        `evaluate()` gives loss and gradients at the parameters as they are. An exception, from there or Ctrl-C, leaves
        the parameters where the step began.
        """
        try:
            while True:
                slope = self._direct()
                if not slope < 0:
                    if not self._pairs or not math.isfinite(slope):
                        return False
                    self._pairs = []  # rounding has spoilt the picture
                    continue
                if self._search(evaluate, slope):
                    self.t += 1
                    return True
                self._place(self._x)
                if not self._pairs:
                    return False
                self._pairs = []
        except BaseException:
            self._place(self._x)
            raise

    def _search(self, evaluate: Callable[[], tuple[float, Any]], slope: float) -> bool:
        rule, at = self.rule, math.nan

        def tried(length: float) -> Trial:
            nonlocal at
            at = float(self._x.dtype.type(length))
            self._run("move", self._x, self._d, at, self._trial)
            self._place(self._trial)
            loss, grads = evaluate()
            if not math.isfinite(loss):
                self.evaluations += 1
                return Trial(at, math.inf, math.nan)
            return Trial(at, loss, self._observe(grads))

        # without a history the direction has the length of the gradient, which means nothing
        first = 1.0 if self._pairs else min(1.0, 1 / math.sqrt(-slope))
        rounding = float(np.finfo(self._x.dtype).eps)
        found = strong_wolfe(
            tried,
            Trial(0.0, self.loss, slope),
            first,
            c1=rule.c1,
            c2=rule.c2,
            most=rule.max_evaluations,
            rounding=rounding,
        )
        if found is None:
            return False
        if found.length != at:
            found = tried(found.length)
        self.length = found.length
        self._remember(rounding)
        self._accept(found.loss)
        return True

    def _remember(self, rounding: float) -> None:
        """The pair of the step just taken, in the place of the oldest; its products with all others."""
        m = self.rule.history
        place = self._pairs.pop(0) if len(self._pairs) == m else next(k for k in range(m) if k not in self._pairs)
        pairs = [*self._pairs, place]
        k = len(pairs)
        self._run("remember", self._rows(pairs), self._trial, self._x, self._trial_g, self._g)
        with_g, with_y = self._tables.products(2 * k)
        self._with_g = with_g[:k], with_g[k:]  # s g and y g, in the order of the pairs
        self._sy[pairs, place], self._yy[pairs, place] = with_y[:k], with_y[k:]
        self._yy[place, pairs] = with_y[k:]
        if self._sy[place, place] > rounding * self._yy[place, place] > 0:
            self._pairs = pairs
        else:  # no positive curvature along the step: it would spoil the picture
            self._with_g = with_g[: k - 1], with_g[k : 2 * k - 1]

    def _rows(self, pairs: list[int]) -> np.ndarray:
        """Addresses of all s, then all y."""
        rows = np.array([*pairs, *(p + self.rule.history for p in pairs)], np.uint64)
        return rows * np.uint64(self._basis.strides[0]) + np.uint64(self._basis.ctypes.data)

    def _direct(self) -> float:
        """The direction -H g by Algorithm 7.4 on products; its slope."""
        p, factors, scale = self._pairs, np.zeros(0), 1.0
        if p:
            sy, yy = self._sy[np.ix_(p, p)], self._yy[np.ix_(p, p)]
            scale = sy[-1, -1] / yy[-1, -1]
            factors = target.recursion(sy, yy, *self._with_g, scale)
        self._run("direct", self._rows(p), -factors.astype(self._x.dtype), -scale, self._g, self._d)
        return self._tables.slope

    def __repr__(self) -> str:
        return f"<{self.rule!r} of {self.num_parameters:,} elements, t={self.t}>"


class Descent(Process):
    """A run whose steps are line searches."""

    def full(self, batch: Any) -> None:
        run, search = self.run, self.search
        self.keep = self.validation is not None or any(self.events.values())
        self.evaluate(batch)
        search.begin(run.loss, run.grads)
        run.measured()
        self.tell("on_start")
        if search.largest <= search.rule.gtol:
            self.converged(f"the largest element of the gradient is {search.largest:.3g}")
        while self.more():
            before = run.loss
            self.advance(batch)
            self.tell("on_step")
            self.close(search.length)
            if search.largest <= search.rule.gtol:
                self.converged(f"the largest element of the gradient is {search.largest:.3g}")
            if before - run.loss <= search.rule.ftol * max(abs(before), abs(run.loss), 1.0):
                self.converged(f"the last step lowered the loss by {before - run.loss:.3g}")

    @property
    def search(self) -> Search:
        found: Any = self.run.optimizer
        return found

    def converged(self, why: str) -> None:
        if self.search.rule.gtol or self.search.rule.ftol:
            raise _Stop("converged", f"converged after {self.run.step} steps: {why}")

    def advance(self, batch: Any) -> None:
        run, search = self.run, self.search

        def evaluate() -> tuple[float, Any]:
            try:
                self.evaluate(batch)
            except _Stop:  # too long a step: the line search takes a shorter one
                pass
            return run.loss, run.grads

        try:
            moved = search.step(evaluate)
        except BaseException:
            run.loss = search.loss
            raise
        if not moved:
            run.loss = search.loss
            raise _Stop(
                "line search",
                f"no step along the gradient lowers the loss {search.loss:.6g} after step {run.step}: it is at its "
                "rounding errors, or loss and gradient do not belong together (scipy.optimize.check_grad tells)",
            )
        run.step += 1
