"""What the memory allows: kernels that move the bytes of a rule and compute next to nothing.

An optimizer step reads p, g and each state and writes p and each state. The limit for it is an in-place
read-modify-write over equally many buffers: the same bytes in the same number of streams, no formula. A copy is not the
same thing: on most CPUs it moves half as many bytes again as it seems to (the lines it writes are read first).
"""

from functools import cache, partial

import numpy as np

from fastopt.commands.bench import buffer
from fastopt.commands.peers import Step

BLOCK = 1 << 14  # elements; within a few per cent of the best for every block from 2^12 to half the array


@cache
def _kernels() -> tuple:
    # compiled where they are used: importing this module must not import Numba
    from numba import njit, prange

    parallel = njit(parallel=True, error_model="numpy")

    def none(p, g, c, block):
        for k in prange((p.size + block - 1) // block):
            for i in range(np.uint64(k * block), np.uint64(min((k + 1) * block, p.size))):
                p[i] += c * g[i]

    def one(p, g, m, c, block):
        for k in prange((p.size + block - 1) // block):
            for i in range(np.uint64(k * block), np.uint64(min((k + 1) * block, p.size))):
                x = c * g[i]
                p[i] += x
                m[i] += x

    def two(p, g, m, v, c, block):
        for k in prange((p.size + block - 1) // block):
            for i in range(np.uint64(k * block), np.uint64(min((k + 1) * block, p.size))):
                x = c * g[i]
                p[i] += x
                m[i] += x
                v[i] += x

    return tuple(map(parallel, (none, one, two)))


def read_modify_write(n: int, states: int) -> Step:
    """One pass over n float32 elements of 2 + states buffers of its own: reads all, writes all but the second."""
    from fastopt import threads

    buffers = [buffer(n, 1e-3) for _ in range(2 + states)]
    return partial(threads.launch, _kernels()[states], *buffers, np.float32(1e-9), BLOCK)


def copy(n: int) -> Step:
    """NumPy's copy of n float32 elements, on one thread, for comparison: 8 n bytes as STREAM counts them."""
    a, b = buffer(n, 1.0), buffer(n)
    return partial(np.copyto, b, a)
