"""What the kernels of all targets share: the same columns, functions and statements, printed in another frame."""

import numpy as np

from fastopt import math
from fastopt.lower import Lowered


def dtypes(lowered: Lowered, dtype: np.dtype, gradient: np.dtype) -> dict[str, np.dtype]:
    """The element type of every buffer, p and g first."""
    return {b: gradient if b == "g" else dtype for _, b in lowered.loads}


def names(lowered: Lowered) -> list[str]:
    """Names of the columns of `hyper`, in order."""
    return ["scale", *(c.name for c in lowered.columns)]


def legend(lowered: Lowered) -> str:
    """Comment lines that say what the columns are."""
    columns = [("scale", "-1 when maximizing, else 1"), *((c.name, c.expression) for c in lowered.columns)]
    return "\n".join(f"#   {n}" if n == e else f"#   {n} = {e}" for n, e in columns)


def imports(lowered: Lowered) -> str:
    """The import of what the statements call from `math`; '' if they call nothing there."""
    called = sorted(n for n in _called(lowered) if n in math.LIBM)
    return f"from math import {', '.join(called)}\n" if called else ""


def functions(lowered: Lowered, decorator: str) -> str:
    """Definitions of the other functions the statements call."""
    return "".join(f"\n\n{decorator}\n{math.SCALAR[n]}\n" for n in _called(lowered) if n in math.SCALAR)


def load(buffer: str, value: str, widened: bool) -> str:
    """A loaded element as the compute type; gradients are scaled."""
    value = f"real({value})" if widened else value
    return f"scale * {value}" if buffer == "g" else value


def result(buffer: str, value: str) -> str:
    """What is stored: state without subnormal numbers."""
    return value if buffer == "p" else f"flush({value})"


def indent(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _called(lowered: Lowered) -> list[str]:
    needs = {"cbrt": ["copysign", "cbrt"]}  # what a definition itself calls comes first
    return list(dict.fromkeys(n for f in sorted(lowered.functions) for n in needs.get(f, [f])))
