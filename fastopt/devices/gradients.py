"""The gradients of a step on a device: the same look-up as on the host, with addresses in GPU memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any
from weakref import ref

import numpy as np

from fastopt import codecs, rows, touched
from fastopt.devices.array import DeviceArray
from fastopt.devices.foreign import EXPECTED, Producer, View, on_gpu, view
from fastopt.errors import ArrayTypeError, DeviceError, GradientError
from fastopt.gradients import Gradients
from fastopt.params import Tree
from fastopt.targets.driver import Driver


class DeviceGradients(Gradients):
    """`Gradients` whose arrays live on a GPU; nothing is ever copied.

    Attributes:
        producers: the libraries whose streams a step has to wait for.
    """

    def __init__(
        self,
        driver: Driver,
        device: int,
        tree: Tree,
        names: Sequence[str],
        params: Sequence[Any],
        frozen: Sequence[bool],
        owned: Sequence[DeviceArray],
        packed: Any,
    ):
        self._driver, self._device = driver, device
        self._moving: list[tuple[int, int]] = []  # (position, address) of what can say where it is now
        self.producers: tuple[Producer, ...] = ()
        super().__init__(tree, names, params, frozen, owned, packed)

    def _span(self, array: Any) -> tuple[int, int]:
        return array.address, array.address + array.nbytes

    def _are_the_same(self, leaves: Sequence[Any]) -> bool:
        # a tensor may be given other memory (x.data = ...) and stay the same object
        return super()._are_the_same(leaves) and all(leaves[k].data_ptr() == address for k, address in self._moving)

    def _resolve(self, leaves: Sequence[Any]) -> None:
        self._seen = ()
        self.rows = {}
        kinds: list[str] = []
        addresses: list[int] = []
        found: list[Callable[[], Any] | None] = []
        moving: list[tuple[int, int]] = []
        producers: dict[Producer, None] = {}
        for k, (name, like, leaf) in enumerate(zip(self._names, self._params, leaves, strict=True)):
            if leaf is None:
                kinds.append("")
                addresses.append(0)
                found.append(NoneType)
                continue
            given = self._rows(leaf, like, name) if rows.is_sparse(leaf) else None
            if given is not None:
                shape = (len(given.indices), *like.shape[1:])
                g = self._look(given.values, shape, f"gradient of `{name}`, of rows", False)
                self.rows[name] = given
                kinds.append(f"r{g.dtype.char}")
            else:
                g = self._look(leaf, like.shape, f"gradient of `{name}`", self.zeroed)
                kinds.append(g.dtype.char)
            addresses.append(g.address)
            found.append(_weak(leaf))
            if hasattr(leaf, "data_ptr"):
                moving.append((k, g.address))
            if g.producer:
                producers[g.producer] = None
        self.kinds, self.addresses = tuple(kinds), np.array(addresses, np.uint64)
        self.producers, self._moving = tuple(producers), moving
        self._held = leaves
        self._found = tuple(f for f in found if f) if None not in found and not self.rows else ()

    def release(self, zero: bool = False) -> None:
        if zero and self.zeroed:
            self._driver.synchronize(self._device)
            for kind, address, like in zip(self.kinds, self.addresses.tolist(), self._params, strict=True):
                if kind[:1] not in ("", "r") and like.size:
                    self._driver.zero(self._device, address, like.size * codecs.of(kind).itemsize)
        super().release()

    def _rows(self, leaf: Any, like: Any, name: str) -> rows.Rows:
        if type(leaf) is not rows.Rows:
            raise DeviceError(
                f"gradient of `{name}` is a {type(leaf).__name__} in host memory; the parameter is on "
                f"cuda:{self._device}. Copy its rows there, and give fastopt.rows(indices, values)."
            )
        given = rows.of(leaf, like, name)
        touched.check(given, like, name)
        return given

    def _look(self, leaf: Any, shape: tuple[int, ...], where: str, written: bool) -> View:
        """A gradient as kernels see it. Raises `GradientError` or `DeviceError`; `written`: zero_grads writes to it."""
        if not on_gpu(leaf):
            raise DeviceError(
                f"{where} is a {type(leaf).__name__} in host memory; the parameter is on cuda:{self._device}. Copy the "
                "gradient there, as torch.as_tensor(g, device='cuda') or cupy.asarray(g) do."
            )
        try:
            g = view(leaf, self._driver)
        except ArrayTypeError as error:
            raise GradientError(f"{where}: {error}") from error
        except DeviceError as error:
            raise DeviceError(f"{where}: {error}") from error
        if g.device != self._device and g.address:
            raise DeviceError(f"{where} is on cuda:{g.device}; the parameter is on cuda:{self._device}.")
        if g.codec is None:
            raise GradientError(f"{where}: dtype {g.dtype}; {EXPECTED}.")
        if written and not g.writeable:
            raise GradientError(f"{where} is read-only, and zero_grads writes to it; pass a copy.")
        if g.shape != shape:
            raise GradientError(f"{where}: shape {g.shape}; expected {shape}, the parameter's.")
        if not g.contiguous or g.address % g.dtype.itemsize:
            raise GradientError(f"{where} is not C-contiguous; pass g.contiguous(), or a copy.")
        size = math.prod(shape)
        end = g.address + size * g.dtype.itemsize
        k = bisect_left(self._starts, end) - 1
        if k >= 0 and self._ends[k] > g.address and size:
            raise GradientError(f"{where} shares memory with a parameter or state, which the step overwrites; copy it.")
        return g


def _weak(x: Any) -> Callable[[], Any] | None:
    try:
        return ref(x)
    except TypeError:
        return None
