"""Is every element of the gradients finite? A look of its own, for rules that do not begin with one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastopt import build, threads
from fastopt.codecs import Codec
from fastopt.targets import text

_MODULE = """\
# Which chunks of a gradient of {dtype} hold a NaN or an infinity? {threads}.

from numba import {numba}

{halves}from fastopt.targets.pointers import {dtype}_at


@njit(
    types.void(types.uint64[::1], types.uint64[:, ::1], types.uint64[:, ::1], types.uint8[::1]),
    parallel={parallel}, cache=True, nogil=True,
)
def look(tasks, work, addresses, found):
    for task in {range}(tasks.size - 1):
        for chunk in range(tasks[task], tasks[task + 1]):
            lo, hi, segment = work[chunk, 0], work[chunk, 1], work[chunk, 2]
            g_at = {dtype}_at(addresses[segment, 1])
            bad = False
            for i in range(lo, hi):
                g = {g}
                bad |= g - g != 0
            found[chunk] = bad
"""


@cache
def _kernel(dtype: Codec, parallel: bool) -> Any:
    g = text.load("p", "g_at[i]", {"p": dtype})  # decoded, and not scaled as a gradient
    made = _MODULE.format(
        dtype=dtype,
        g=g,
        halves=text.halves([g]),
        parallel=parallel,
        threads="All threads" if parallel else "One thread",
        numba="njit, prange, types" if parallel else "njit, types",
        range="prange" if parallel else "range",
    )
    return build.load(made, f"finite_{dtype}_{'parallel' if parallel else 'serial'}").look


def first(dtype: Codec, parallel: bool, tasks: np.ndarray, work: np.ndarray, addresses: np.ndarray) -> int:
    """The first segment of `work` whose gradient is not finite, or -1; the tables are those of a `Launch`."""
    found = np.empty(len(work), np.uint8)
    kernel = _kernel(dtype, parallel)
    if parallel:
        threads.launch(kernel, tasks, work, addresses, found)
    else:
        kernel(tasks, work, addresses, found)
    return int(work[found.argmax(), 2]) if found.any() else -1
