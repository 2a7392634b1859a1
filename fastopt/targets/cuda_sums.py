"""Sums over the threads of a block, in an order that depends on nothing but `THREADS`. Used by generated code alone."""

import numpy as np
from numba import cuda

THREADS = 256  # in every block: enough to hide memory's latency, and the order of additions hangs on it


@cuda.jit(device=True)
def fold(sums, count, thread, across):
    """Add up the first `count` rows of `sums`, float64 in shared memory with a number per thread, in runs.

    A run is `across` threads, a power of 2. Its first thread finds the sum at its own place, and may read it without
    another barrier; what other threads find is unspecified.
    """
    place = thread & (across - np.uint64(1))
    half = across >> np.uint64(1)
    cuda.syncthreads()  # type: ignore[call-arg]
    while half > np.uint64(0):
        if place < half:
            k = np.uint64(0)
            while k < count:
                sums[k, thread] += sums[k, thread + half]
                k += np.uint64(1)
        cuda.syncthreads()  # type: ignore[call-arg]
        half >>= np.uint64(1)


@cuda.jit(device=True)
def block_total(sums, thread, value, threads):
    """The sum of the threads' values, for all of them."""
    sums[np.uint64(0), thread] = value
    fold(sums, np.uint64(1), thread, threads)
    value = sums[np.uint64(0), np.uint64(0)]
    cuda.syncthreads()  # type: ignore[call-arg]  # or the next sum overwrites what a slow thread has still to read
    return value
