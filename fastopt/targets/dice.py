"""Rounding up or down by chance: random bits by counting, as in `noise.py`, at half the price. Used by generated code.

The bits depend on the step, the parameter, the state and the element's index, so they are the same for any thread
count, any split into chunks, and after a resume.
"""

import numpy as np
from numba.extending import register_jitable

from fastopt.targets.noise import _mix, noise_key

_U32, _U64 = np.uint32, np.uint64
_inlined = register_jitable(error_model="numpy", forceinline=True)


@_inlined
def dice_key(t, parameter, buffer):
    """The key of a step, a parameter and a buffer."""
    return _U32(noise_key(_U64(0x524F554E44), t, parameter, buffer) >> _U64(32))


@_inlined
def dice(key, i):
    """32 random bits for element i."""
    return _mix(_U32(_U32(i) ^ key))


@_inlined
def other_half(word):
    """The lower 16 bits in place of the upper ones, for a second number of the same element."""
    return _U32(word << _U32(16))
