"""Loads and stores of 16 bytes at once inside a CUDA kernel, by address. Used by generated code alone.

Nothing else makes Numba emit `ld.global.v4`: not four neighbouring elements, nor alignment hints on arrays.
"""

from llvmlite import ir
from numba.core import types
from numba.cuda.extending import intrinsic

_GLOBAL = 1  # the address space: such an access need not find out first where it points
_INT32 = ir.IntType(32)


def _accesses(builder, element, width, address, index, lanes):
    """Pointers to vectors of at most 16 bytes that cover `lanes` elements from `index` on, and the lanes of each."""
    each = min(lanes, 16 // width)
    first = builder.add(address, builder.mul(index, index.type(width)))
    vector = ir.VectorType(element, each) if each > 1 else element
    pointers = [
        builder.inttoptr(builder.add(first, first.type(k * width)), vector.as_pointer(_GLOBAL))
        for k in range(0, lanes, each)
    ]
    return pointers, each, vector


def _make(element: types.Float):
    width = element.bitwidth // 8

    @intrinsic
    def load(typing_context, address, index, lanes):
        """`lanes` (a literal) elements from `index` on, as a tuple; the address of the first is aligned to 16 bytes."""
        if not isinstance(lanes, types.IntegerLiteral):
            return None  # Numba then asks again with the literal
        n = lanes.literal_value

        def codegen(context, builder, signature, arguments):
            pointers, each, _ = _accesses(
                builder, context.get_value_type(element), width, arguments[0], arguments[1], n
            )
            values = []
            for pointer in pointers:
                loaded = builder.load(pointer, align=each * width)
                values += [loaded] if each == 1 else [builder.extract_element(loaded, _INT32(j)) for j in range(each)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(element, n)(types.uint64, types.uint64, lanes), codegen

    @intrinsic
    def store(typing_context, address, index, values):
        """Write a tuple of elements from `index` on; aligned like `load`."""
        if any(v != element for v in values):
            raise TypeError(f"the rule gives {values}, the buffer holds {element}")  # a float64 has crept in

        def codegen(context, builder, signature, arguments):
            address, index, given = arguments
            n = len(signature.args[2])
            pointers, each, vector = _accesses(builder, context.get_value_type(element), width, address, index, n)
            for k, pointer in enumerate(pointers):
                lanes = [builder.extract_value(given, k * each + j) for j in range(each)]
                value = lanes[0]
                if each > 1:
                    value = ir.Constant(vector, ir.Undefined)
                    for j, lane in enumerate(lanes):
                        value = builder.insert_element(value, lane, _INT32(j))
                builder.store(value, pointer, align=each * width)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, values), codegen

    return load, store


float32_load, float32_store = _make(types.float32)
float64_load, float64_store = _make(types.float64)
