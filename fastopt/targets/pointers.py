"""Addresses as typed pointers inside a kernel. Used by generated code alone."""

from typing import Any

from llvmlite import ir
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


def _prefetch(typing_context, address):
    """Ask for the cache line of an address, into the second level; one that is not there does no harm."""

    def codegen(context, builder, signature, arguments):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        builder.call(function, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(address), codegen


prefetch: Any = intrinsic(_prefetch)
