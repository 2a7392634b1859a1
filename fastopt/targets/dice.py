"""Rounding up or down by chance: random bits by counting, at the price of a multiplication. Used by generated code.

Element i has the bits a i + b, modulo 2^32, where a, odd, and b are drawn for each step, parameter and buffer. The bits
of one element over time are independent, and those of two elements, too (Carter & Wegman 1979; for elements 2^s apart,
the upper 32 - s): so each number is right on average, and a sum of errors is as small as if all were independent. Three
elements in a row are not, for which `noise.py` is. The bits are the same for any thread count, any split into chunks,
and after a resume.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from fastopt.targets.noise import noise_key

_U32, _U64 = np.uint32, np.uint64
_WORD = ir.IntType(32)
_inlined = register_jitable(error_model="numpy", forceinline=True)


@_inlined
def dice_key(t, parameter, buffer):
    """The key of a step, a parameter and a buffer: a in the upper half, b in the lower one."""
    return noise_key(_U64(0x524F554E44), t, parameter, buffer) | _U64(1 << 32)


@_inlined
def next_dice(key, word):
    """What the element after has: in a loop, an addition is all it takes."""
    return _U32(word + _U32(key >> _U64(32)))


@intrinsic
def dice(typing_context, key, i):
    """32 random bits for element i, the upper ones the better."""

    def codegen(context, builder, signature, arguments):
        key, i = arguments
        a, b, i = (builder.trunc(x, _WORD) for x in (builder.lshr(key, key.type(32)), key, i))
        return builder.add(builder.mul(a, i), b)  # by Numba's rules it would be 64 bits wide, in a vector, too

    return types.uint32(types.uint64, types.uint64), codegen
