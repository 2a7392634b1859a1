"""The gradients of a step: listed, checked against the parameters, and reduced to addresses a kernel can read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char
from itertools import repeat
from operator import call, is_
from types import NoneType
from typing import Any
from weakref import ref

import numpy as np

from fastopt import codecs, rows, touched
from fastopt.errors import DeviceError, GradientError
from fastopt.params import Tree, foreign, gradient, overlap

_from_buffer: Any = c_char.from_buffer
_PACKED: tuple[Callable[[], Any], ...] = (NoneType,)


class Gradients:
    """Reads what `step` is given. Training loops often give the same arrays again: then nothing is done per array.

    Attributes:
        kinds: per parameter the character of the gradient's dtype (see `codecs.of`), behind an "r" if one of rows,
            "" where it has none or is frozen. Text, since NumPy holds None and float64 for equal.
        rows: by name, the gradients of rows of this step.
        by_rows: names of the parameters that take every gradient as one of rows.
        addresses: uint64, per parameter; valid for this step.
        zeroed: does the step set them to 0?
    """

    def __init__(
        self,
        tree: Tree,
        names: Sequence[str],
        params: Sequence[Any],
        frozen: Sequence[bool],
        owned: Sequence[Any],
        packed: Any,
    ):
        self._tree, self._names, self._params = tree, names, params
        self._frozen = [k for k, f in enumerate(frozen) if f]
        self._list = tree.reader()
        self._packed = packed
        spans = sorted(self._span(a) for a in owned if a.size)
        self._starts, self._ends = [s for s, _ in spans], [e for _, e in spans]
        self._seen: tuple[Callable[[], Any], ...] = ()  # weak: the caller's gradients are not kept alive
        self._found: tuple[Callable[[], Any], ...] = ()
        self._held: Sequence[Any] = ()  # what a kernel is about to read, and perhaps nobody else keeps alive
        self.kinds: tuple[str, ...] = ()
        self.rows: dict[str, rows.Rows] = {}
        self.by_rows: set[str] = set()
        self.zeroed = False
        self.addresses = np.zeros(len(names), np.uint64)

    def _span(self, array: Any) -> tuple[int, int]:
        """First byte, and the one after the last."""
        return _address(array), _address(array) + array.nbytes

    def read(self, grads: Any) -> bool:
        """Take in the gradients of a step; False if they are, array for array, those that `settle` saw last."""
        if grads is None or grads is self._packed:
            if self._seen is _PACKED:
                return False
            leaves, packed = self._tree.leaves(self.packed), True
        else:
            leaves, packed = self._list(grads), False
        if self._frozen:
            leaves = list(leaves)
            for k in self._frozen:
                leaves[k] = None
        if not packed and self._seen and self._seen is not _PACKED and self._are_the_same(leaves):
            return False
        self._resolve(leaves)
        if packed:
            self._found = _PACKED
        return True

    @property
    def packed(self) -> Any:
        """The gradients beside packed parameters. Raises `GradientError` if there are none."""
        if self._packed is None:
            raise GradientError("step() needs gradients: step(grads), or parameters packed by fastopt.pack.")
        return self._packed

    def release(self, zero: bool = False) -> None:
        """The step is done; `zero`: it was skipped, so that no kernel set to 0 what it should."""
        if zero and self.zeroed:
            seen = self._seen
            leaves = (
                self._tree.leaves(self._packed) if seen is _PACKED else self._held[0] if self._held else map(call, seen)
            )
            for name, leaf in zip(self._names, leaves, strict=True):
                if leaf is not None and not rows.is_sparse(leaf):
                    foreign(leaf, name)[...] = 0
        self._held = ()
        self.rows.clear()

    def _are_the_same(self, leaves: Sequence[Any]) -> bool:
        # the reference to an array that has died gives None, too: so the Nones are counted
        same = all(map(is_, map(call, self._seen), leaves))
        return same and sum(map(is_, leaves, repeat(None))) == self.kinds.count("")

    def settle(self) -> None:
        """The addresses are where kernels read them: the same arrays need not be looked at again."""
        self._seen = self._found

    def _resolve(self, leaves: Sequence[Any]) -> None:
        self._seen = ()  # whatever fails from here on, the next step looks again
        self.rows = {}
        kinds: list[str] = []
        addresses: list[int] = []
        found: list[Callable[[], Any]] = []
        copies: list[np.ndarray] = []
        for name, like, leaf in zip(self._names, self._params, leaves, strict=True):
            if leaf is None:
                kinds.append("")
                addresses.append(0)
                found.append(NoneType)
                continue
            if rows.is_sparse(leaf) or name in self.by_rows:
                given = self._rows(leaf, like, name)
                kinds.append(f"r{given.values.dtype.char}")
                addresses.append(self._apart(given.values, name))
                copies.append(given.values)
                self.rows[name] = given
                continue
            g = leaf if _readable(leaf, like) else gradient(leaf, like, name)
            if g is not leaf:
                copies.append(g)
            address = self._apart(g, name)
            kinds.append(g.dtype.char)
            addresses.append(address)
            found.append(ref(g))
        if self.zeroed:
            self._check_zeroed(leaves)
        self.kinds = tuple(kinds)
        self.addresses = np.array(addresses, np.uint64)
        self._held = [leaves, copies]
        self._found = () if copies else tuple(found)

    def _check_zeroed(self, leaves: Sequence[Any]) -> None:
        """Raise `GradientError` for gradients that the step cannot set to 0 where they are."""
        found = []
        for name, leaf in zip(self._names, leaves, strict=True):
            if leaf is None or name in self.rows:
                continue
            g = foreign(leaf, name)
            there = g is leaf or np.may_share_memory(g, foreign(leaf, name))
            if not (there and isinstance(g, np.ndarray) and g.flags.carray and g.dtype.isnative):
                raise GradientError(
                    f"gradient of `{name}` cannot be set to 0 by the step: it is read-only or not C-contiguous. Pass a "
                    "writable copy, or leave out zero_grads."
                )
            found.append((*self._span(g), name))
        if shared := overlap(found):
            raise GradientError(
                f"gradients of `{shared[0]}` and `{shared[1]}` share memory, and zero_grads sets it to 0 before both "
                "are read; copy one."
            )

    def _apart(self, g: np.ndarray, name: str) -> int:
        """The address of a gradient that shares no memory with parameters and state. Raises `GradientError`."""
        address = _address(g)
        # owned spans are disjoint: the last that starts before the gradient ends is the one that may reach into it
        k = bisect_left(self._starts, address + g.nbytes) - 1
        if k >= 0 and self._ends[k] > address and g.size:
            raise GradientError(
                f"gradient of `{name}` shares memory with a parameter or state, which the step overwrites; copy it."
            )
        return address

    def _rows(self, leaf: Any, like: np.ndarray, name: str) -> rows.Rows:
        if not rows.is_sparse(leaf):  # a parameter whose rows are counted takes a whole gradient as all of its rows
            return rows.Rows(np.arange(len(like)), codecs.widened(gradient(leaf, like, name)))
        given = rows.of(leaf, like, name)
        if not isinstance(given.values, np.ndarray):
            raise DeviceError(
                f"gradient of `{name}`: its rows are a {type(given.values).__name__} on a GPU; the parameter is in "
                "host memory."
            )
        touched.check(given, like, name)
        return given


def _readable(g: Any, like: np.ndarray) -> bool:
    """Can a kernel read it as it is? True for the common case at the least cost; `gradient` looks closer."""
    # `carray`: C-contiguous, aligned and writable, in one look
    return type(g) is np.ndarray and g.dtype is like.dtype and g.shape == like.shape and g.flags.carray


def _address(a: np.ndarray) -> int:
    try:
        return addressof(_from_buffer(a))  # 0.15 us; a.ctypes.data takes 0.8
    except (TypeError, ValueError, BufferError):  # read-only, or empty
        return a.__array_interface__["data"][0]
