"""Numbers in 8 bits inside a kernel, and blocks of them on the CPU: decoded into a room of float32 numbers, and encoded
from it when a step has been done on these. Used by generated code alone; `fastopt/blocks.py` says what the codes mean.

Everything is 32 bits wide and without branches, or the loops would not be vectorised. Roots only find the level
below a number; whether it or the next one is taken is decided on the numbers themselves, so that chance is right on
average.
"""

from math import sqrt

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, register_jitable

from fastopt.targets.dice import dice
from fastopt.targets.noise import _bits, _float

_U32, _U64, _I32, _F32 = np.uint32, np.uint64, np.int32, np.float32
_inlined = register_jitable(error_model="numpy", forceinline=True)
_BIG, _TINY = 0x7F800000, 0x00800000  # bits of infinity, and of the smallest number that is not subnormal


@intrinsic
def _signed(typing_context, code):
    """A uint8 as the int8 of the same bits."""

    def codegen(context, builder, signature, arguments):
        return arguments[0]

    return types.int8(types.uint8), codegen


@_inlined
def size(x):
    """The bits of |x|, which are in the order of sizes, NaN above all."""
    return _U32(_bits(x) & _U32(0x7FFFFFFF))  # type: ignore[call-arg]


@_inlined
def minus(x):
    """Is the sign bit set? As 1 or 0."""
    return _U32(_bits(x) >> _U32(31))  # type: ignore[call-arg]


@_inlined
def scale_of(top, signed):
    """The scale of a block whose largest size is `top`. If it is 0 or NaN, all codes are 0."""
    if top >= _U32(_BIG) or top < _U32(_TINY):
        return _F32(np.nan) if top >= _U32(_BIG) else _F32(0)
    return _float(top) if signed else -_float(top)  # type: ignore[call-arg]


@_inlined
def from_signed(code, scale):
    q = _F32(_signed(code)) * _F32(1 / 127)  # type: ignore[call-arg]
    return scale * (q * q * q)


@_inlined
def from_unsigned(code, scale):
    q = _F32(code) * _F32(1 / 255)
    return -scale * ((q * q) * (q * q))


@_inlined
def _cube_root(y):
    # a third of the exponent's bits is 4 % off, and a step of Halley's makes 2e-5 of it
    t = _float(_U32(_I32(0x2A510000) + _I32(_F32(_I32(_bits(y))) * _F32(1 / 3))))  # type: ignore[call-arg]
    cube = t * t * t
    return t * ((cube + (y + y)) / ((cube + cube) + y))


@_inlined
def _fourth_root(y):
    return sqrt(sqrt(y))


@_inlined
def to_signed(x, unit, chance):
    """The code of a number, up with this chance; `unit`: 1 by the size of the scale."""
    y = _float(size(x)) * unit * _F32(127**3) + _F32(1e-12)  # type: ignore[call-arg]
    n = _I32(_cube_root(y))  # y is above 0, whose cube would be subnormal
    q = _F32(n)
    more = y - q * q * q > chance * (_F32(3) * (q * q + q) + _F32(1))
    n = _I32(min(_I32(n + _I32(more)), _I32(127)))
    below = _I32(minus(x))
    return np.uint8(_I32(n ^ _I32(-below)) + below)


@_inlined
def to_unsigned(x, unit, chance):
    y = x * unit * _F32(255**4)
    n = _I32(_fourth_root(y))
    q = _F32(n)
    low, high = q * q, (q + _F32(1)) * (q + _F32(1))
    more = y - low * low > chance * (high * high - low * low)
    n = _I32(min(_I32(n + _I32(more)), _I32(255)))
    return np.uint8(_I32(max(n, _I32(x > _F32(0)))))


@_inlined
def chance_of(key, i):
    # an odd multiple of 2**-24: no 0, or a 0 could be rounded up
    return _F32(_I32(_U32(_U32(dice(key, i) >> _U32(8)) | _U32(1)))) * _F32(2**-24)


@_inlined
def half(key, i):
    """The chance that makes it the nearest."""
    return _F32(0.5)


@njit(error_model="numpy")
def load_block(codes, scales, x, first, end):
    """Decode elements first..end, which are of one block, into `x`."""
    scale = scales[first >> _U64(8)]
    if scale < _F32(0):
        for i in range(first, end):
            x[i] = from_unsigned(codes[i], scale)
    else:
        for i in range(first, end):
            x[i] = from_signed(codes[i], scale)


def _encoder(chance):
    @njit(error_model="numpy")
    def encode(codes, scales, x, first, end, key):
        top, signs = _U32(0), _U32(0)
        for i in range(first, end):
            top = _U32(max(top, size(x[i])))
            signs = _U32(signs | _bits(x[i]))  # type: ignore[call-arg]
        scale = scale_of(top, signs >> _U32(31) != _U32(0))
        scales[first >> _U64(8)] = scale
        unit = _F32(1) / abs(scale)
        if scale > _F32(0):
            for i in range(first, end):
                codes[i] = to_signed(x[i], unit, chance(key, i))
        elif scale < _F32(0):
            for i in range(first, end):
                codes[i] = to_unsigned(x[i], unit, chance(key, i))
        else:
            for i in range(first, end):
                codes[i] = np.uint8(0)

    return encode


round_block = _encoder(chance_of)  # each number to one of its two levels, itself on average
_store = _encoder(half)


@_inlined
def store_block(codes, scales, x, first, end):
    """Encode elements first..end of `x`, which are all of a block, each to the nearest level."""
    _store(codes, scales, x, first, end, _U32(0))
