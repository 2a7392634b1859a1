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
