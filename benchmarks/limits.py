"""What the memory allows: kernels that move the bytes of a rule and compute next to nothing.

An optimizer step reads p, g and each state and writes p and each state. The limit for it is an in-place
read-modify-write over equally many buffers: the same bytes in the same number of streams, no formula. A copy is not the
same thing: on most CPUs it moves half as many bytes again as it seems to (the lines it writes are read first).
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from fastopt.commands.bench import buffer
from fastopt.commands.peers import Step
from fastopt.lowered import Lowered

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


def streams_of(lowered: Lowered) -> tuple[tuple[int, int], list[tuple[list[str], list[str]]]]:
    """How many buffers a lowered rule reads and writes in all its passes, and which in each: (read, written)."""
    passes = [([b for _, b in q.loads], [b for b, _ in q.stores]) for q in lowered.passes]
    return (sum(len(r) for r, _ in passes), sum(len(w) for _, w in passes)), passes


def streams(n: int, lowered: Lowered) -> tuple[Step, list[np.ndarray]]:
    """The passes of a lowered rule without its formula, over n float32 elements of buffers of its own, and these."""
    from fastopt import threads

    _, passes = streams_of(lowered)
    names = dict.fromkeys(b for r, w in passes for b in (*r, *w))
    buffers = {b: buffer(n, 1e-3) for b in names}
    kernels = [
        (_kernel(tuple(r), tuple(w)), [buffers[b] for b in dict.fromkeys((*r, *w))])
        for r, w in passes
        if r or w  # else it computes numbers alone
    ]
    sums = np.zeros(-(-n // BLOCK), np.float32)

    def step() -> None:
        for kernel, given in kernels:
            threads.launch(kernel, *given, sums, np.float32(1e-3), BLOCK)

    return step, list(buffers.values())


@cache
def _kernel(read: tuple[str, ...], written: tuple[str, ...]) -> Callable[..., None]:
    """Adds what is only read, times c, to all that is written; without anything to write, sums it per block."""
    from numba import njit, prange

    arrays = [f"a{k}" for k, _ in enumerate(dict.fromkeys((*read, *written)))]
    of = dict(zip(dict.fromkeys((*read, *written)), arrays, strict=True))
    only = " + ".join(f"{of[b]}[i]" for b in read if b not in written) or "c"
    lines = [f"{of[b]}[i] {'+=' if b in read else '='} x" for b in written] or ["total += x"]
    text = [
        f"def kernel({', '.join(arrays)}, sums, c, block):",
        "    for k in prange(sums.size):",
        "        total = real(0)",
        "        for i in range(np.uint64(k * block), np.uint64(min((k + 1) * block, a0.size))):",
        f"            x = c * ({only})",
        *(f"            {line}" for line in lines),
        "        sums[k] = total",
    ]
    scope = {"np": np, "prange": prange, "real": np.float32}
    exec("\n".join(text), scope)
    # reassociated: a sum that waits for its last addition would not be a limit of the memory
    return njit(parallel=True, error_model="numpy", fastmath={"reassoc", "nsz"})(scope["kernel"])


def copy(n: int) -> Step:
    """NumPy's copy of n float32 elements, on one thread, for comparison: 8 n bytes as STREAM counts them."""
    a, b = buffer(n, 1.0), buffer(n)
    return partial(np.copyto, b, a)
