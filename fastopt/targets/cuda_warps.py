"""What the threads of a warp tell each other about a block of numbers in 8 bits. Used by generated code alone."""

import numpy as np
from numba import cuda

from fastopt.targets.blocks import scale_of

_ALL = 0xFFFFFFFF  # threads of a warp
_U32, _I32 = np.uint32, np.int32


@cuda.jit(device=True, forceinline=True)
def told(x):
    """What the warp's first thread has. No other one has to read what that will write."""
    return cuda.shfl_sync(_ALL, x, 0)


@cuda.jit(device=True, forceinline=True)
def common_scale(top, signs):
    """The scale of the warp's block. Each thread has found a largest size, and whether a sign bit is set (not 0)."""
    most, apart = _I32(top), _I32(16)
    while apart > _I32(0):
        most = max(most, cuda.shfl_xor_sync(_ALL, most, apart))
        apart >>= _I32(1)
    return scale_of(_U32(most), cuda.any_sync(_ALL, signs != _U32(0)))
