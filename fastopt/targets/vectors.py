"""Loads and stores of 16 bytes at once inside a CUDA kernel, or of single elements. Used by generated code alone.

Nothing else makes Numba emit `ld.global.v4`: not four neighbouring elements, nor alignment hints on arrays.
"""

from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.cuda.extending import intrinsic

_GLOBAL = 1  # the address space: such an access need not find out first where it points
_INT32 = ir.IntType(32)
_WORD = 4  # bytes


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


def _words(builder, element, width, address, index, lanes):
    """As `_accesses`, in words of 32 bits where several elements fill one, and how many elements those hold.

    A vector of 8 numbers of 16 bits would be two accesses.
    """
    packed = _WORD // width
    if packed <= 1 or lanes % packed:
        return *_accesses(builder, element, width, address, index, lanes), 1
    first = builder.add(address, builder.mul(index, index.type(width)))
    zero = index.type(0)
    return *_accesses(builder, _INT32, _WORD, first, zero, lanes // packed), packed


def _split(builder, element, width, word, packed):
    """The elements in a word, the lowest first."""
    if packed == 1:
        return [word]
    return [builder.trunc(builder.lshr(word, _INT32(8 * width * k)), element) for k in range(packed)]


def _join(builder, width, elements):
    """The word that holds elements."""
    if len(elements) == 1:
        return elements[0]
    parts = [builder.shl(builder.zext(x, _INT32), _INT32(8 * width * k)) for k, x in enumerate(elements)]
    return reduce(builder.or_, parts)


def _singles(builder, element, width, address, index, count, lanes):
    """Pointers to single elements, and whether each is one of the first `count`."""
    first = builder.add(address, builder.mul(index, index.type(width)))
    for k in range(lanes):
        pointer = builder.inttoptr(builder.add(first, first.type(k * width)), element.as_pointer(_GLOBAL))
        yield pointer, builder.icmp_unsigned("<", count.type(k), count)


def _check(values, element):
    if any(v != element for v in values):
        raise TypeError(f"the rule gives {values}, the buffer holds {element}")  # a float64 has crept in


def _make(element: Any):  # a type of Numba
    width = element.bitwidth // 8

    @intrinsic
    def load(typing_context, address, index, lanes):
        """`lanes` (a literal) elements from `index` on, as a tuple; the address of the first is aligned to 16 bytes."""
        if not isinstance(lanes, types.IntegerLiteral):
            return None  # Numba then asks again with the literal
        n = lanes.literal_value

        def codegen(context, builder, signature, arguments):
            kind = context.get_value_type(element)
            pointers, each, _, packed = _words(builder, kind, width, arguments[0], arguments[1], n)
            values = []
            for pointer in pointers:
                loaded = builder.load(pointer, align=each * packed * width)
                words = [loaded] if each == 1 else [builder.extract_element(loaded, _INT32(j)) for j in range(each)]
                values += [x for word in words for x in _split(builder, kind, width, word, packed)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(element, n)(types.uint64, types.uint64, lanes), codegen

    @intrinsic
    def store(typing_context, address, index, values):
        """Write a tuple of elements from `index` on; aligned like `load`."""
        _check(values, element)

        def codegen(context, builder, signature, arguments):
            address, index, given = arguments
            n, kind = len(signature.args[2]), context.get_value_type(element)
            pointers, each, vector, packed = _words(builder, kind, width, address, index, n)
            single = [builder.extract_value(given, j) for j in range(n)]
            words = [_join(builder, width, single[j : j + packed]) for j in range(0, n, packed)]
            for k, pointer in enumerate(pointers):
                lanes = words[k * each : (k + 1) * each]
                value = lanes[0]
                if each > 1:
                    value = ir.Constant(vector, ir.Undefined)
                    for j, lane in enumerate(lanes):
                        value = builder.insert_element(value, lane, _INT32(j))
                builder.store(value, pointer, align=each * packed * width)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, values), codegen

    @intrinsic
    def load_some(typing_context, address, index, lanes, count):
        """As `load`, one by one and wherever they are; only the first `count` are read, the others are 0."""
        if not isinstance(lanes, types.IntegerLiteral):
            return None
        n = lanes.literal_value

        def codegen(context, builder, signature, arguments):
            address, index, _, count = arguments
            kind, values = context.get_value_type(element), []
            for k, (pointer, here) in enumerate(_singles(builder, kind, width, address, index, count, n)):
                slot = cgutils.alloca_once_value(builder, kind(0), name=f"lane{k}")
                with builder.if_then(here):
                    builder.store(builder.load(pointer, align=width), slot)
                values.append(builder.load(slot))
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(element, n)(types.uint64, types.uint64, lanes, types.uint64), codegen

    @intrinsic
    def store_some(typing_context, address, index, values, count):
        """Write the first `count` of a tuple, one by one and wherever they are."""
        _check(values, element)

        def codegen(context, builder, signature, arguments):
            address, index, given, count = arguments
            kind, n = context.get_value_type(element), len(signature.args[2])
            for k, (pointer, here) in enumerate(_singles(builder, kind, width, address, index, count, n)):
                with builder.if_then(here):
                    builder.store(builder.extract_value(given, k), pointer, align=width)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, values, types.uint64), codegen

    return load, store, load_some, store_some


float32_load, float32_store, float32_load_some, float32_store_some = _make(types.float32)
float64_load, float64_store, float64_load_some, float64_store_some = _make(types.float64)
uint8_load, uint8_store, uint8_load_some, uint8_store_some = _make(types.uint8)  # codes in blocks
uint16_load, uint16_store, uint16_load_some, uint16_store_some = _make(types.uint16)  # codes of float16 and bfloat16
uint64_load, uint64_store, uint64_load_some, uint64_store_some = _make(types.uint64)  # of tables
