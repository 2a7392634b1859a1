"""A CUDA driver without a GPU: memory of this process, kernels executed from their PTX, and faults on demand.

Work on a stream is put off until somebody waits for it, and then the streams go on in reverse order of their first use:
what is only right by luck of timing goes wrong here. An array is read and written by its `get` and `put`, which wait
for nothing.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import ptx as interpreter

from fastopt.errors import DeviceError
from fastopt.targets.driver import Call

ALIGN = 256


@dataclass
class Graph:
    """What was captured from a stream."""

    driver: "FakeDriver"
    stream: int
    calls: list[Call] = field(default_factory=list)

    def replay(self, stream=None):
        self.driver.queue(self.stream if stream is None else stream, lambda: self.driver.execute(self.calls))


class FakeDriver:
    """`fastopt.targets.driver.Driver`.

    `fail_alloc`: after so many more allocations the memory is used up. `fail_run`: so many launches from now a kernel
    reaches outside its memory, and every call after that says so. `log`: what happened, in order.
    """

    def __init__(self, devices=1, blocks=2):
        self.devices, self.most = devices, blocks
        self.memory = {}  # address -> (raw bytes, device)
        self.graveyard = []
        self.queues = {}
        self.graph = None
        self.unsafe = 0
        self.fail_alloc = self.fail_run = None
        self.lost = ""
        self.log = []
        self.assembled = []

    # ---------------------------------------------------------------- devices and memory
    def count(self):
        return self.devices

    def name(self, device):
        return "a fake"

    def capability(self, device):
        return (9, 0)

    def _alive(self, function):
        if self.lost:
            raise DeviceError(f"{function}: {self.lost}")

    def _safe(self, what):
        assert self.graph is None or self.unsafe, f"{what} while a graph is captured"

    def alloc(self, device, size):
        self._alive("cuMemAlloc")
        self._safe("cuMemAlloc")
        assert 0 <= device < self.devices and size > 0
        if self.fail_alloc is not None:
            self.fail_alloc -= 1
            if self.fail_alloc < 0:
                raise MemoryError("cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY")
        raw = np.full(size + 2 * ALIGN, 0xA5, np.uint8)  # nobody may hope for zeros
        start = -raw.ctypes.data % ALIGN
        raw = raw[start : start + size]
        self.memory[raw.ctypes.data] = (raw, device)
        return raw.ctypes.data

    def free(self, device, address):
        raw, of = self.memory.pop(address)
        assert of == device
        self.graveyard.append(raw)  # its address is not given out again

    def owner(self, address):
        return next((d for start, (raw, d) in self.memory.items() if start <= address < start + raw.size), None)

    def _bytes(self, device, address, size):
        for start, (raw, of) in self.memory.items():
            if start <= address and address + size <= start + raw.size:
                assert of == device, "memory of another device"
                return raw[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def zero(self, device, address, size):
        self._alive("cuMemsetD8Async")
        self._safe("cuMemsetD8Async")
        self._bytes(device, address, size)[...] = 0

    def copy_in(self, device, address, host, stream=None):
        self._alive("cuMemcpyHtoDAsync")
        assert host.flags.c_contiguous
        data = np.frombuffer(host.tobytes(), np.uint8)  # as the driver does with pageable memory
        target = self._bytes(device, address, data.size)
        self.log.append(("copy", stream, data.size))
        if stream is None:
            self._safe("cuMemcpyHtoDAsync")
            target[...] = data
        else:
            assert not self.capturing(device, stream), "a copy in a graph would read this memory at every replay"
            self.queue(stream, lambda: target.__setitem__(..., data))

    def copy_out(self, device, host, address):
        self._alive("cuMemcpyDtoHAsync")
        self._safe("cuMemcpyDtoHAsync")
        host.reshape(-1).view(np.uint8)[...] = self._bytes(device, address, host.nbytes)

    def copy(self, device, target, source, size):
        self._alive("cuMemcpyDtoDAsync")
        self._safe("cuMemcpyDtoDAsync")
        self._bytes(device, target, size)[...] = self._bytes(device, source, size)

    # ---------------------------------------------------------------- kernels
    def assemble(self, ptx, capability):
        self.assembled.append(ptx)
        return ptx.encode()

    def load(self, device, image, name):
        text = image.decode()
        assert f".entry {name}(" in text
        return text

    def blocks(self, device, function, threads):
        return self.most

    def call(self, function, blocks, threads, arguments):
        return Call(function, blocks, threads, list(arguments))

    def run(self, device, calls, stream):
        self._alive("cuLaunchKernel")
        self.log.append(("run", stream, len(calls)))
        if self.capturing(device, stream):
            self.graph.calls += calls
            return
        self.queue(stream, lambda: self.execute(calls))
        if self.fail_run is not None:
            self.fail_run -= 1
            if self.fail_run < 0:
                self.lost = "CUDA_ERROR_ILLEGAL_ADDRESS"

    def execute(self, calls):
        arrays = [raw for raw, _ in self.memory.values()]
        for function, blocks, threads, arguments, _ in calls:
            interpreter.run(function, arguments, arrays, blocks, threads)

    # ---------------------------------------------------------------- streams
    def queue(self, stream, work):
        self.queues.setdefault(0 if stream == 1 else stream, []).append(work)

    def _advance(self, stream, left=0):
        queue = self.queues.get(stream, [])
        while len(queue) > left:
            queue.pop(0)()

    def wait(self, device, stream, other):
        self._alive("cuStreamWaitEvent")
        self.log.append(("wait", stream, other))
        marks = list(self.queues.get(other, []))
        if marks:

            def catch_up():
                queue = self.queues[other]
                while any(w is marks[-1] for w in queue):
                    queue.pop(0)()

            self.queue(stream, catch_up)

    def synchronize(self, device):
        self._alive("cuCtxSynchronize")
        self._safe("cuCtxSynchronize")
        for stream in reversed(list(self.queues)):
            self._advance(stream)

    def capturing(self, device, stream):
        return self.graph is not None and self.graph.stream == stream

    @contextmanager
    def relaxed(self):
        self.unsafe += 1
        try:
            yield
        finally:
            self.unsafe -= 1

    @contextmanager
    def capture(self, stream):
        """What a program does around the steps it wants in a graph."""
        self.synchronize(0)
        self.graph = graph = Graph(self, stream)
        try:
            yield graph
        finally:
            self.graph = None

    # ---------------------------------------------------------------- arrays
    def array(self, values, device=0, **told):
        return FakeArray(self, np.asarray(values), device, told)


class FakeArray:
    """An array of some GPU library. `told` changes what its interface says."""

    def __init__(self, driver, values, device, told):
        self.driver, self.device, self.told = driver, device, told
        self.shape, self.dtype = values.shape, values.dtype
        self.address = driver.alloc(device, max(1, values.nbytes))
        self.put(values)

    @property
    def _raw(self):
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return self.driver._bytes(self.device, self.address, size).view(self.dtype).reshape(self.shape)

    @property
    def __cuda_array_interface__(self):
        interface = {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }
        return {**interface, **self.told}

    def put(self, values):
        self._raw[...] = values

    def get(self):
        return self._raw.copy()

    def free(self):
        self.driver.free(self.device, self.address)
