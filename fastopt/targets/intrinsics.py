"""What LLVM can do and Numba has no name for. Used by generated code alone."""

from typing import Any, cast

from numba import types
from numba.extending import intrinsic


@intrinsic
def fma(typing_context, x, y, z):
    """x * y + z, rounded once, on every target: an instruction of all but very old processors."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), codegen


@intrinsic
def widest(typing_context):
    """Make the loops of this function use the widest vectors there are: LLVM takes half of them on Intel's processors,
    some of which lower their clock for the whole. Where arithmetic binds, twice the width is worth it."""

    def codegen(context, builder, signature, arguments):
        # llvmlite's own method knows but some of LLVM's attributes
        set.add(cast(Any, builder.function.attributes), '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), codegen
