"""Addresses as typed pointers inside a kernel. Used by generated code alone."""

from numba import types
from numba.extending import intrinsic


def _pointer(element: types.Type):
    @intrinsic
    def at(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), codegen

    return at


float32_at = _pointer(types.float32)
float64_at = _pointer(types.float64)
uint64_at = _pointer(types.uint64)
q8_at = _pointer(types.uint8)
float16_at = bfloat16_at = _pointer(types.uint16)  # the codes, see `halves`
