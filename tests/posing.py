"""torch on a fake GPU: tensors in host memory that pose as CUDA's, for the CUDA kernels of the torch classes.

What an operation returns lies where its arguments lie, as in torch; numbers of two places do not mix, and nobody may
wait for a number of a device while `waiting` is False. Kernels run at once, as behind everything that torch has done.
"""

import ctypes
from contextlib import contextmanager

import numpy as np
import torch
from fake_cuda import FakeDriver
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastopt.targets import driver
from fastopt.torch import place, where

HOST = where.HOST
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.set_.source_Tensor)
_WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default)


class Posing(TorchDispatchMode):
    """Which storages pose. Those stay alive: an address is not given out again."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # its own address -> (device, storage)
        self.waiting = True

    def device(self, x):
        return self.storages.get(_storage(x)._cdata, (HOST, None))[0]

    def put(self, x, device):
        storage = _storage(x)
        self.storages.setdefault(storage._cdata, (device, storage))

    def cuda(self, x, device=0):
        """A copy of `x`, a parameter if it is one, on a device."""
        with _disable_current_modes():
            copy = x.detach().clone()
        self.put(copy, device)
        return torch.nn.Parameter(copy) if isinstance(x, torch.nn.Parameter) else copy

    def cpu(self, x):
        """A copy on the host, which waits for what is on a device."""
        assert self.waiting or self.device(x) == HOST, "a copy to the host waits for the device"
        with _disable_current_modes():
            return x.detach().clone()

    @property
    def numpy(self):
        """`torch.Tensor.numpy`, which is for numbers on the host."""
        own = torch.Tensor.numpy

        def numpy(x, **options):
            assert self.device(x) == HOST, "a NumPy array of what is on a device"
            return own(x, **options)

        return numpy

    def raws(self):
        """The bytes of all of them."""
        for _, storage in self.storages.values():
            if storage.nbytes():
                of = ctypes.c_uint8 * storage.nbytes()
                yield np.ctypeslib.as_array(of.from_address(storage.data_ptr()))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = {self.device(x) for x in given if x.dim() or self.device(x) != HOST}
        if len(places) > 1 and function not in _COPIES:
            raise RuntimeError(f"Expected all tensors to be on the same device: {function}")
        if function in _WAITS and places - {HOST}:
            assert self.waiting, f"{function} waits for the device"
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.put(x, self.device(given[0]) if function in _COPIES else max(places, default=HOST))
        return result


def _storage(x):
    return (x if x.layout is torch.strided else x._values()).untyped_storage()


class TorchDriver(FakeDriver):
    """Its kernels may reach what poses, and run when they are queued. `streams`: on which."""

    def __init__(self, posing, devices=2):
        super().__init__(devices=devices)
        self.posing = posing

    def queue(self, stream, work):
        work()

    def execute(self, calls):
        own = self.memory
        self.memory = {**own, **{raw.ctypes.data: (raw, None) for raw in self.posing.raws()}}
        try:
            super().execute(calls)
        finally:
            self.memory = own

    def synchronize(self, device):
        assert self.posing.waiting, "cuCtxSynchronize waits for the device"
        super().synchronize(device)

    def alloc(self, device, size):
        assert self.posing.waiting, "cuMemAlloc may wait for the device"
        return super().alloc(device, size)

    def copy_out(self, device, host, address):
        assert self.posing.waiting, "a copy to the host waits for the device"
        super().copy_out(device, host, address)


@contextmanager
def torch_on_fake(monkeypatch):
    """`Posing` whose driver, `gpu`, is the library's; kernels have the bits of the CPU's."""
    posing = Posing()
    posing.gpu = TorchDriver(posing)
    monkeypatch.setattr(where, "device", posing.device)
    monkeypatch.setattr(where, "host", posing.cpu)
    monkeypatch.setattr(torch.Tensor, "numpy", posing.numpy)
    monkeypatch.setattr(where, "stream", lambda device: {0: lambda: 7, 1: lambda: 11}[device])
    monkeypatch.setattr(place, "PRECISE", True)
    driver.install(posing.gpu)
    try:
        with posing:
            yield posing
    finally:
        driver.install(None)
