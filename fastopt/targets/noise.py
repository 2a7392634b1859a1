"""Random numbers by counting: a number depends on a key and on the element's index, on nothing that came before.

So the same bits come out for any thread count, any split into chunks, and after a resume. Everything is 32 bits wide
and without branches, or the loop around it would not vectorise. Used by generated code alone.
"""

from math import sqrt

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

_U32, _U64, _F32 = np.uint32, np.uint64, np.float32


# a call that could raise, or that LLVM finds too long to inline, would keep the loop around it from being vectorised
_inlined = register_jitable(error_model="numpy", forceinline=True)


@intrinsic
def _bits(typing_context, x):
    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _float(typing_context, x):
    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@_inlined
def noise_key(seed, t, parameter, stream):
    """The key of a step, a parameter and a call: Steele, Lea & Flood 2014 (SplitMix64), one round per number."""
    key = _U64(0)
    for word in (_U64(seed), _U64(t), _U64(parameter), _U64(stream)):
        key = (key ^ word) + _U64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> _U64(27))) * _U64(0x94D049BB133111EB)
        key = key ^ (key >> _U64(31))
    return key


@_inlined
def _mix(x):
    # a 32-bit mixer with little bias, found by search: Wellons 2018, "Prospecting for hash functions"
    x = _U32(x ^ _U32(x >> _U32(16)))
    x = _U32(x * _U32(0x21F0AAAD))
    x = _U32(x ^ _U32(x >> _U32(15)))
    x = _U32(x * _U32(0x735A2D97))
    return _U32(x ^ _U32(x >> _U32(15)))


@_inlined
def noise_bits(key, i):
    """32 random bits for element i."""
    return _mix(_U32(_mix(_U32(_U32(i) ^ _U32(key))) + _U32(key >> _U64(32))))


@_inlined
def normal(key, i):
    """A standard normal float32 for element i, within 2e-6 and at most 5.3 in size: the quantile of a uniform one.

    Giles 2010, "Approximating the erfinv function", table 5. Uniform numbers are the odd multiples of 2**-24.
    """
    x = _F32(_U32(noise_bits(key, i) >> _U32(8)) | _U32(1)) * _F32(2**-23) - _F32(1)
    w = -_log((_F32(1) - x) * (_F32(1) + x))
    a, b = w - _F32(2.5), sqrt(w) - _F32(3)
    near, far = _F32(2.81022636e-08), _F32(-0.000200214257)
    near, far = near * a + _F32(3.43273939e-07), far * b + _F32(0.000100950558)
    near, far = near * a + _F32(-3.5233877e-06), far * b + _F32(0.00134934322)
    near, far = near * a + _F32(-4.39150654e-06), far * b + _F32(-0.00367342844)
    near, far = near * a + _F32(0.00021858087), far * b + _F32(0.00573950773)
    near, far = near * a + _F32(-0.00125372503), far * b + _F32(-0.0076224613)
    near, far = near * a + _F32(-0.00417768164), far * b + _F32(0.00943887047)
    near, far = near * a + _F32(0.246640727), far * b + _F32(1.00167406)
    near, far = near * a + _F32(1.50140941), far * b + _F32(2.83297682)
    return (near if w < _F32(5) else far) * x * _F32(1.4142135623730951)


@_inlined
def _log(x):
    # x = m * 2**e with m in [sqrt(1/2), sqrt(2)): e from the bits, and log m = 2 atanh((m - 1) / (m + 1)) as a series
    shifted = _U32(_bits(x) + _U32(0x3F800000 - 0x3F3504F3))  # type: ignore[call-arg]
    e = _F32(np.int32(_U32(shifted >> _U32(23))) - np.int32(127))
    m = _float(_U32(_U32(shifted & _U32(0x007FFFFF)) + _U32(0x3F3504F3)))  # type: ignore[call-arg]
    s = (m - _F32(1)) / (m + _F32(1))
    q = s * s
    series = _F32(1) + q * (_F32(1 / 3) + q * (_F32(1 / 5) + q * (_F32(1 / 7) + q * _F32(1 / 9))))
    return _F32(2) * s * series + e * _F32(0.6931471805599453)
