"""Numbers in 8 bits inside a kernel, and blocks of them on the CPU: decoded into a room of float32 numbers, and encoded
from it when a step has been done on these. Used by generated code alone; `fastopt/blocks.py` says what the codes mean.

Everything is 32 bits wide and without branches, or the loops would not be vectorised. Inside, numbers are scaled by a
power of two so that neither the smallest nor the largest scale overflows.
"""

import numpy as np
from numba import njit
from numba.extending import register_jitable

from fastopt.blocks import SIGNED, UNSIGNED, levels
from fastopt.targets.dice import dice, next_dice
from fastopt.targets.intrinsics import fma, widest
from fastopt.targets.noise import _bits, _float

_U32, _U64, _I32, _F32 = np.uint32, np.uint64, np.int32, np.float32
_inlined = register_jitable(error_model="numpy", forceinline=True)
_BIG, _TINY = 0x7F800000, 0x00800000  # bits of infinity, and of the smallest number that is not subnormal
_SIZE, _SIGN, _ALL = 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF
_ONE, _FOUR = 0x3F800000, 0x40800000  # bits of 1 and 4
_LOW3, _LOW4 = 2.0**-16, 2.0**-24  # of P(1) in a signed and an unsigned block; those of its largest level are nearly 1
_BITS3, _BITS4 = 0x37800000, 0x33800000
_TOP3, _TOP4 = (float(levels(*kind)[-1]) * low for kind, low in ((SIGNED, _LOW3), (UNSIGNED, _LOW4)))


@_inlined
def size(x):
    """The bits of |x|, which are in the order of sizes, NaN above all."""
    return _U32(_bits(x) & _U32(_SIZE))  # type: ignore[call-arg]


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
def meaning(scale):
    """What `decoded` has to know of a block of this scale, so that it needs no branch."""
    if scale < _F32(0):
        # what is stored and decoded again and again must come to rest: the nearest quotient, though float32 does not
        # have the divisor, _TOP4 - _LOW4
        unit = -scale / _F32(_TOP4)
        rest = fma(unit, _F32(_LOW4), fma(unit, -_F32(_TOP4), -scale))  # type: ignore[call-arg]
        unit = fma(rest, _F32(1 / _TOP4), unit)  # type: ignore[call-arg]
        return _U32(255), _F32(1 / 4), _U32(4), _U32(_BITS4 - 4 * _ONE & _ALL), unit, -_F32(_LOW4) * unit, _U32(0)
    unit = scale / _F32(_TOP3)
    return _U32(127), _F32(1 / 3), _U32(3), _U32(_BITS3 - 3 * _ONE & _ALL), unit, -_F32(_LOW3) * unit, _U32(_SIGN)


@_inlined
def decoded(code, meaning):
    """The number of a code, float32."""
    mask, share, n, more, unit, less, sign = meaning
    word = _U32(code)
    s = fma(_F32(_I32(_U32(word & mask))), share, _F32(1))  # type: ignore[call-arg]
    power = _float(_U32(_U32(_bits(s) * n) + more))  # type: ignore[call-arg]
    x = fma(power, unit, less)  # type: ignore[call-arg]
    return _float(_U32(_bits(x) | _U32(_U32(word << _U32(24)) & sign)))  # type: ignore[call-arg]


@_inlined
def to_signed(x, unit, chance):
    """The code of a number; `unit`: 1 by the size of the scale; `chance`: 1 more than the chance to go up."""
    power = fma(_float(size(x)), unit * _F32(_TOP3), _F32(_LOW3))  # type: ignore[call-arg]
    # float32's 1 / 3 is a little too large, by about 1 here
    far = fma(_F32(_I32(_U32(_bits(power) - _U32(_BITS3)))), _F32(1 / 3), _F32(-1))  # type: ignore[call-arg]
    q = fma(_float(_U32(_U32(_I32(far)) + _U32(_ONE))), _F32(3), _F32(-4))  # type: ignore[call-arg]
    n = _U32(min(_U32(_I32(q + chance)), _U32(127)))
    return np.uint8(_U32(n | _U32(_U32(_bits(x) >> _U32(24)) & _U32(128))))  # type: ignore[call-arg]


@_inlined
def to_unsigned(x, unit, chance):
    power = fma(x, unit * _F32(_TOP4), _F32(_LOW4))  # type: ignore[call-arg]
    q = _float(_U32(_U32(_bits(power) >> _U32(2)) + _U32(_FOUR - _BITS4 // 4)))  # type: ignore[call-arg]
    least = min(x * _F32(2.0**126), _F32(1))  # 1 if there is anything
    n = _U32(_I32(max(q + (chance - _F32(5)), least)))
    return np.uint8(_U32(min(n, _U32(255))))


@_inlined
def chance_of(word):
    """At least 1, and less than 2; `word`: random bits, of which 16 count: so a sum with a code is not rounded."""
    return _float(_U32(_U32(_U32(word >> _U32(9)) & _U32(0x7FFF80)) | _U32(_ONE + 0x20)))  # type: ignore[call-arg]


@_inlined
def half(word):
    """The chance that makes it the nearest."""
    return _F32(1.5)


def _encoder(chance):
    @njit(error_model="numpy")
    def encode(codes, scales, x, first, end, key):
        widest()  # type: ignore[call-arg]
        top, signs = _U32(0), _U32(0)
        for i in range(first, end):
            top = _U32(max(top, size(x[i])))
            signs = _U32(signs | _bits(x[i]))  # type: ignore[call-arg]
        scale = scale_of(top, signs >> _U32(31) != _U32(0))
        scales[first >> _U64(8)] = scale
        unit = _F32(1) / abs(scale)
        word = dice(key, first)  # type: ignore[call-arg]
        if scale > _F32(0):
            for i in range(first, end):
                codes[i] = to_signed(x[i], unit, chance(word))
                word = next_dice(key, word)
        elif scale < _F32(0):
            for i in range(first, end):
                codes[i] = to_unsigned(x[i], unit, chance(word))
                word = next_dice(key, word)
        else:
            for i in range(first, end):
                codes[i] = np.uint8(0)

    return encode


round_block = _encoder(chance_of)  # each number to one of its two levels, itself on average
_store = _encoder(half)


@_inlined
def store_block(codes, scales, x, first, end):
    """Encode elements first..end of `x`, which are all of a block, each to the nearest level."""
    _store(codes, scales, x, first, end, _U64(0))
