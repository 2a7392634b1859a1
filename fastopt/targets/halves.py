"""16-bit numbers, which Numba does not know: their bits, as uint16, to and from float32. Used by generated code alone.

All of it is in the types of LLVM, 16 and 32 bits wide and without branches, so that the loop around it is vectorised.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_HALF, _FLOAT = ir.HalfType(), ir.FloatType()


def _narrow(builder, value):
    """A float32 or float64 as a float32."""
    return value if value.type == _FLOAT else builder.fptrunc(value, _FLOAT)


@intrinsic
def from_bfloat16(typing_context, code):
    """A bfloat16 is the upper half of a float32."""

    def codegen(context, builder, signature, arguments):
        wide = builder.shl(builder.zext(arguments[0], _I32), _I32(16))
        return builder.bitcast(wide, _FLOAT)

    return types.float32(types.uint16), codegen


@intrinsic
def to_bfloat16(typing_context, x):
    """The nearest bfloat16, of two as near the even one; NaN stays NaN."""

    def codegen(context, builder, signature, arguments):
        bits = builder.bitcast(_narrow(builder, arguments[0]), _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        nearest = builder.add(bits, builder.add(odd, _I32(0x7FFF)))
        size = builder.and_(bits, _I32(0x7FFFFFFF))
        quiet = builder.or_(bits, _I32(0x00400000))  # or rounding could make an infinity of it
        chosen = builder.select(builder.icmp_unsigned(">", size, _I32(0x7F800000)), quiet, nearest)
        return builder.trunc(builder.lshr(chosen, _I32(16)), _I16)

    return types.uint16(x), codegen


@intrinsic
def from_float16(typing_context, code):
    def codegen(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], _HALF), _FLOAT)

    return types.float32(types.uint16), codegen


@intrinsic
def to_float16(typing_context, x):
    """The nearest float16 of the nearest float32, of two as near the even one; infinite from 65,520 on."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(_narrow(builder, arguments[0]), _HALF), _I16)

    return types.uint16(x), codegen


@intrinsic
def round_bfloat16(typing_context, x, dice):
    """One of the two bfloat16s around a number, by the upper 16 bits of `dice`, the nearer one more often: it is the
    number itself on average. NaN and infinities stay what they are."""

    def codegen(context, builder, signature, arguments):
        bits = builder.bitcast(_narrow(builder, arguments[0]), _I32)
        moved = builder.add(bits, builder.lshr(arguments[1], _I32(16)))  # less than a bfloat16's last place: inf stays
        size = builder.and_(bits, _I32(0x7FFFFFFF))
        quiet = builder.or_(bits, _I32(0x00400000))
        chosen = builder.select(builder.icmp_unsigned(">", size, _I32(0x7F800000)), quiet, moved)
        return builder.trunc(builder.lshr(chosen, _I32(16)), _I16)

    return types.uint16(x, types.uint32), codegen


@intrinsic
def round_float16(typing_context, x, dice):
    """As `round_bfloat16`, by the upper bits of `dice`."""

    def codegen(context, builder, signature, arguments):
        value = _narrow(builder, arguments[0])
        bits = builder.bitcast(value, _I32)
        size, sign = (builder.and_(bits, _I32(mask)) for mask in (0x7FFFFFFF, 0x80000000))
        # down to 10 bits behind the point
        moved = builder.add(size, builder.lshr(arguments[1], _I32(19)))
        usual = builder.and_(moved, _I32(0xFFFFE000))
        # below 2**-14 all float16s are multiples of 2**-24
        count = builder.fmul(builder.bitcast(size, _FLOAT), _FLOAT(2.0**24))
        chance = builder.fmul(builder.sitofp(builder.lshr(arguments[1], _I32(8)), _FLOAT), _FLOAT(2.0**-24))
        small = builder.icmp_unsigned("<", size, _I32(0x38800000))
        whole = builder.fptosi(builder.select(small, builder.fadd(count, chance), _FLOAT(0.0)), _I32)
        tiny = builder.bitcast(builder.fmul(builder.sitofp(whole, _FLOAT), _FLOAT(2.0**-24)), _I32)
        finite = builder.select(small, tiny, usual)
        chosen = builder.select(builder.icmp_unsigned(">=", size, _I32(0x7F800000)), size, finite)
        exact = builder.bitcast(builder.or_(chosen, sign), _FLOAT)
        return builder.bitcast(builder.fptrunc(exact, _HALF), _I16)

    return types.uint16(x, types.uint32), codegen


def _rounded_up(builder, x):
    """The bits of a float32 with half a bfloat16's last place added; of a NaN, those of the usual one."""
    bits = builder.bitcast(x, _I32)
    size = builder.and_(bits, _I32(0x7FFFFFFF))
    usual = builder.select(builder.icmp_unsigned(">", size, _I32(0x7F800000)), _I32(0x7FC00000), bits)
    return usual, builder.add(usual, _I32(0x8000))


@intrinsic
def upper_half(typing_context, x):
    """The nearest bfloat16, of two as near the larger one: so the lower half tells which way it went."""

    def codegen(context, builder, signature, arguments):
        _, moved = _rounded_up(builder, arguments[0])
        return builder.trunc(builder.lshr(moved, _I32(16)), _I16)

    return types.uint16(types.float32), codegen


@intrinsic
def lower_half(typing_context, x):
    """The lower 16 bits of a float32."""

    def codegen(context, builder, signature, arguments):
        bits, _ = _rounded_up(builder, arguments[0])
        return builder.trunc(bits, _I16)

    return types.uint16(types.float32), codegen


@intrinsic
def join_halves(typing_context, upper, lower):
    """The float32 that `upper_half` and `lower_half` were made of."""

    def codegen(context, builder, signature, arguments):
        high = builder.shl(builder.zext(arguments[0], _I32), _I32(16))
        return builder.bitcast(builder.add(high, builder.sext(arguments[1], _I32)), _FLOAT)

    return types.float32(types.uint16, types.uint16), codegen
