"""`LBFGS`: torch's class, the direction of whose steps comes from kernels that read the history twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch.optim.lbfgs import _strong_wolfe
from torch.optim.optimizer import _to_scalar

from fastopt.errors import ConfigError
from fastopt.targets.lbfgs import HISTORY, Tables, recursion
from fastopt.torch import tensors, where
from fastopt.torch.base import unhooked

_REAL = {torch.float32: "f4", torch.float64: "f8", torch.complex64: "f4", torch.complex128: "f8"}
_CURVED = 1e-10  # torch's: a pair whose product is not larger is left out


class History:
    """Pairs of changes, of parameters `s` and of gradients `y`, and all products of them that the recursion asks for.

    Args:
        s, y, ro: the lists in `opt.state`, oldest first: changed in place.
        size: the number of pairs to keep.
        like: a vector of this kind.
    """

    _with_g: tuple[np.ndarray, np.ndarray]  # of all s, and of all y

    def __init__(self, s: list[Any], y: list[Any], ro: list[Any], size: int, like: torch.Tensor):
        if not len(s) == len(y) == len(ro):
            raise ConfigError(f"LBFGS: the state has {len(s)} `old_stps`, {len(y)} `old_dirs` and {len(ro)} `ro`.")
        s[:], y[:] = _vectors(s, like, "old_stps"), _vectors(y, like, "old_dirs")
        self.s, self.y, self.ro, self.size = s, y, ro, size
        self._kind = like.shape, like.dtype
        self._sy = self._yy = np.zeros((0, 0))
        # each sum as it was when the pair was new: a run that is taken up again has the same bits
        for k in range(1, len(s) + 1):
            self._note(self._multiply(s[:k], y[:k], y[k - 1])[1])
        self._known = [*s, *y]

    def holds(self, s: Any, y: Any, size: int, like: torch.Tensor) -> bool:
        """Is it that of these lists, as it left them, and of vectors like this one?"""
        if s is not self.s or y is not self.y or size != self.size or self._kind != (like.shape, like.dtype):
            return False
        return len(s) + len(y) == len(self._known) and all(map(is_, chain(s, y), self._known))

    def follow(self, s: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> torch.Tensor | None:
        """Take the newest pair, and the gradient for `direction`; the scale of the first H that follows from it.

        None, and the pair is left out, where the curvature along it is not positive.
        """
        k = len(self.s)
        (sg, yg), (sy, yy) = ((x[: k + 1], x[k + 1 :]) for x in self._multiply([*self.s, s], [*self.y, y], y, g))
        if not sy[k] > _CURVED:
            self._with_g = sg[:k], yg[:k]
            return None
        first = 0
        while len(self.s) >= self.size:
            first += 1
            for vectors in (self.s, self.y, self.ro):
                vectors.pop(0)
            for products in (self._sy, self._yy):
                products[:k, :k] = products[1 : k + 1, 1 : k + 1]
        for vectors, x in ((self.s, s), (self.y, y), (self.ro, torch.tensor(1 / sy[k], dtype=g.dtype))):
            vectors.append(x)
        self._known, self._with_g = [*self.s, *self.y], (sg[first:], yg[first:])
        self._note(np.concatenate([sy[first:], yy[first:]]))
        return torch.tensor(sy[k] / yy[k], dtype=g.dtype)

    def direction(self, g: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """-H g of the gradient that `follow` took, by Nocedal & Wright 2006, Algorithm 7.4, and its product with g."""
        k, d = len(self.s), torch.empty_like(g)
        factors = recursion(self._sy[:k, :k], self._yy[:k, :k], *self._with_g, scale)
        self._tables.run("direct", _rows(self.s, self.y), -factors.astype(_REAL[g.dtype]), -scale, g.numpy(), d.numpy())
        return d, torch.tensor(self._tables.slope, dtype=g.dtype)

    def _multiply(self, s: Sequence[Any], y: Sequence[Any], newest: Any, g: Any = None) -> tuple[np.ndarray, ...]:
        """Of all s, then all y, the products with g and with the newest y."""
        g = newest if g is None else g
        if len(s) > len(self._sy):
            (n,), dtype, most = *self._kind, 2 * len(s)
            real = np.dtype(_REAL[dtype])
            self._tables = Tables(n, real, most, HISTORY, str(real))  # float64 lanes take twice the time
            self._sy, self._yy = (np.pad(x, (0, most - len(x))) for x in (self._sy, self._yy))
        self._tables.run("multiply", _rows(s, y), g.numpy(), newest.numpy())
        return self._tables.products(2 * len(s))

    def _note(self, with_y: np.ndarray) -> None:
        """The products of all s, then all y, with the last y."""
        k = len(with_y) // 2
        self._sy[:k, k - 1], self._yy[:k, k - 1], self._yy[k - 1, :k] = with_y[:k], with_y[k:], with_y[k:]


def _rows(s: Sequence[torch.Tensor], y: Sequence[torch.Tensor]) -> np.ndarray:
    return np.array([x.data_ptr() for x in chain(s, y)], np.uint64)


def _vectors(given: Sequence[Any], like: torch.Tensor, key: str) -> list[torch.Tensor]:
    """Those of a state, as kernels read them. Raises `ConfigError`."""
    if bad := [x for x in given if x.shape != like.shape]:
        raise ConfigError(
            f"LBFGS: state `{key}` has shape {tuple(bad[0].shape)}; expected {tuple(like.shape)}, all parameters in a "
            "row. Load a checkpoint of this model."
        )
    return [x.to(like).contiguous() for x in given]


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x.abs().max()


class LBFGS(torch.optim.LBFGS):
    """`torch.optim.LBFGS` with fastopt's direction, for parameters of one dtype in CPU memory; others as by torch."""

    _history: History | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._params, self._numel_cache, self._history = self.param_groups[0]["params"], None, None

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        """Up to `max_iter` steps of the method; `closure` evaluates the model, calls `backward`, returns the loss."""
        if len(self.param_groups) != 1 or not _alike(self._params):
            return unhooked(torch.optim.LBFGS.step)(self, closure)
        evaluate = torch.enable_grad()(closure)
        group = self.param_groups[0]
        lr, max_iter, search = _to_scalar(group["lr"]), group["max_iter"], group["line_search_fn"]
        state = self.state[self._params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)

        result = evaluate()
        loss, evaluations = float(result), 1
        state["func_evals"] += 1
        g = self._gather_flat_grad().detach()
        if _largest(g) <= group["tolerance_grad"]:
            return result
        t, scale, loss_before = map(state.get, ("t", "H_diag", "prev_loss"))
        d, before, history = self._taken_up(state, group["history_size"], g)
        self._history = None  # until all has gone well
        for n in range(1, max_iter + 1):
            state["n_iter"] += 1
            if history is None:
                history, scale = History([], [], [], group["history_size"], g), 1
                d, t = g.neg(), min(1.0, 1.0 / g.abs().sum()) * lr
                slope = g.dot(d)
            else:
                state.setdefault("al", [None] * group["history_size"])  # a place of torch's for numbers on the way
                found = history.follow(d.mul(t), g.sub(before), g)
                scale = scale if found is None else found
                (d, slope), t = history.direction(g, float(scale)), lr
            before = g.clone() if before is None else before.copy_(g)
            loss_before = loss
            if slope > -group["tolerance_change"]:
                break

            more = 0
            if search is None:
                self._add_grad(t, d)
                if n != max_iter:
                    loss, more = float(evaluate()), 1
                    g = self._gather_flat_grad().detach()
            elif search == "strong_wolfe":
                start, most = self._clone_param(), group["max_eval"] - evaluations
                there = partial(self._directional_evaluate, evaluate)
                loss, g, t, more = _strong_wolfe(there, start, t, d, loss, g, slope, max_ls=most)
                self._add_grad(t, d)
            else:
                raise RuntimeError("only 'strong_wolfe' is supported")
            evaluations += more
            state["func_evals"] += more
            if (
                evaluations >= group["max_eval"]
                or _largest(g) <= group["tolerance_grad"]
                or _largest(d) * abs(t) <= group["tolerance_change"]
                or abs(loss - loss_before) < group["tolerance_change"]
            ):
                break

        if history is not None:
            state.update(d=d, t=t, old_dirs=history.y, old_stps=history.s, ro=history.ro, H_diag=scale)
            state.update(prev_flat_grad=before, prev_loss=loss_before)
        self._history = history
        return result

    def _taken_up(self, state: dict[str, Any], size: int, g: torch.Tensor) -> tuple[Any, Any, History | None]:
        """Direction, gradient and history of earlier steps, or of a checkpoint."""
        d, before = state.get("d"), state.get("prev_flat_grad")
        if d is None or before is None:
            return None, None, None
        (d,), (before,) = _vectors([d], g, "d"), _vectors([before], g, "prev_flat_grad")
        mine, s, y = self._history, state["old_stps"], state["old_dirs"]
        if mine is None or not mine.holds(s, y, size, g):
            mine = History(s, y, state["ro"], size, g)
        return d, before, mine


def _alike(params: Sequence[torch.Tensor]) -> bool:
    """Do kernels know the vector that these make?"""
    return len({_REAL.get(p.dtype) for p in params}) == 1 and all(
        p.dtype in _REAL and where.device(p) == where.HOST and tensors.strided(p) for p in params
    )
