"""The functions a rule may call. Here they are ordinary Python: a number gives a number, an array an array.

Inside a kernel the same names stand for the scalar code of `SCALAR`. NaN passes through all of them, as in NumPy.
"""

import builtins
import math as _math
from collections.abc import Callable
from typing import Any

import numpy as np

# Scalar definitions, as text: they serve the numbers' half of the functions below and, with `real` as the compute
# type, become part of every kernel that calls them. Comparisons and selects only, which LLVM vectorises.
SCALAR = {
    "sign": "def sign(x):\n    return real(1) if x > 0 else (real(-1) if x < 0 else (real(0) if x == 0 else x))",
    "maximum": "def maximum(a, b):\n    return a if a >= b or a != a else b",
    "minimum": "def minimum(a, b):\n    return a if a <= b or a != a else b",
    "clip": "def clip(x, low, high):\n    y = low if x < low else x\n    return high if y > high else y",
    "square": "def square(x):\n    return x * x",
    "isfinite": "def isfinite(x):\n    return x - x == 0",
    # A third of the exponent for a start, 4 % off, as LLVM has no power of a vector. Then twice y (1 + d)^(-1/3) as a
    # series in d, the error of y^3: off by 2e-5, then by rounding. 2^54 lifts subnormal numbers, whose bits say less.
    "cbrt": "def cbrt(x):\n    small = abs(x) < tiny\n    a = abs(x) * real(2.0**54) if small else abs(x)\n"
    "    y, r = bits(real(real(a).view(bits)) * real(1 / 3) + third).view(real), real(1) / a\n"
    "    d = y * y * (y * r) - real(1)\n    y = y - y * d * (real(1 / 3) - d * (real(2 / 9) - d * real(14 / 81)))\n"
    "    d = y * y * (y * r) - real(1)\n    y = y - y * d * (real(1 / 3) - d * (real(2 / 9) - d * real(14 / 81)))\n"
    "    y = copysign(y * real(2.0**-18) if small else y, x)\n    return y if x - x == 0 and x != 0 else x",
}
# What a definition needs beside it, at the level of the module.
BESIDE = {
    "cbrt": "bits, third = {4: (np.int32, real(709958130)), 8: (np.int64, real(715094163 << 32))}[real().itemsize]",
}
# Of a single float64 number there is no vector, so the power will do, and one Newton step for its last digits.
OF_NUMBERS = {
    "cbrt": "def cbrt(x):\n    y = copysign(abs(x) ** real(1 / 3), x)\n"
    "    return y - (y - x / (y * y)) * real(1 / 3) if x - x == 0 and x != 0 else x",
}
LIBM = ("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "copysign")  # kernels import these
# Looks at all elements: in a kernel a pass of its own ends with each.
REDUCTIONS = ("total", "mean", "norm", "rms")
# How many arguments the functions take that do not take one.
ARITY = {"copysign": (2,), "maximum": (2,), "minimum": (2,), "clip": (3,), "where": (3,), "normal": (2,)} | {
    n: (1, 2) for n in (*REDUCTIONS, "size")
}


def _either(name: str, number: Callable[..., Any], array: Callable[..., Any]) -> Callable[..., Any]:
    # Plain Python numbers stay Python floats: a NumPy float64 scalar would widen the float32 array it meets next.
    def function(*args: Any) -> Any:
        return number(*args) if all(type(a) in (int, float) for a in args) else array(*args)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`{name}` of numbers or arrays, elementwise."
    return function


_scope: dict[str, Any] = {"real": float, "copysign": _math.copysign}
exec("\n".join(SCALAR.values()), _scope)

sqrt = _either("sqrt", _math.sqrt, np.sqrt)
exp = _either("exp", _math.exp, np.exp)
expm1 = _either("expm1", _math.expm1, np.expm1)
log = _either("log", _math.log, np.log)
log1p = _either("log1p", _math.log1p, np.log1p)
sin = _either("sin", _math.sin, np.sin)
cos = _either("cos", _math.cos, np.cos)
tanh = _either("tanh", _math.tanh, np.tanh)
copysign = _either("copysign", _math.copysign, np.copysign)
abs = _either("abs", builtins.abs, np.abs)
sign = _either("sign", _scope["sign"], np.sign)
maximum = _either("maximum", _scope["maximum"], np.maximum)
minimum = _either("minimum", _scope["minimum"], np.minimum)
clip = _either("clip", _scope["clip"], np.clip)
square = _either("square", _scope["square"], np.square)
cbrt = _either("cbrt", _math.cbrt, np.cbrt)
isfinite = _either("isfinite", _math.isfinite, np.isfinite)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; elementwise when the condition is an array."""
    return np.where(condition, a, b) if isinstance(condition, np.ndarray) else (a if condition else b)


def total(x: Any, over: str = "parameter") -> Any:
    """The sum of `x` in float64: over a "parameter", a "group", "all" of an optimizer's, or each "row" or "column".

    In a rule it ends a pass over memory: what depends on it is computed in the next one. A formula called with arrays
    knows of one parameter only, so there "parameter", "group" and "all" are the same; sums of rows have shape
    (rows, 1), sums of columns (1, columns), so that they broadcast.
    """
    axes = {"parameter": None, "group": None, "all": None, "row": 1, "column": 0}
    if over not in axes:
        raise ValueError(f"over is {over!r}; expected one of {', '.join(map(repr, axes))}.")
    given = np.asarray(x)
    result = np.sum(given, axis=axes[over], dtype=np.float64, keepdims=axes[over] is not None)
    return float(result) if axes[over] is None else result


def mean(x: Any, over: str = "parameter") -> Any:
    """The mean of `x`; see `total`."""
    return total(x, over) / {"row": np.shape(x)[-1:], "column": np.shape(x)[:1]}.get(over, (np.size(x),))[0]


def norm(x: Any, over: str = "parameter") -> Any:
    """The Euclidean norm of `x`, squared in float64, so that no finite float32 overflows; see `total`."""
    return sqrt(total(np.square(x, dtype=np.float64), over))


def rms(x: Any, over: str = "parameter") -> Any:
    """The root of the mean of the squares of `x`; see `norm`."""
    return sqrt(mean(np.square(x, dtype=np.float64), over))


def size(x: Any, over: str = "parameter") -> int:
    """The number of elements of a parameter, or of each of its rows or columns, see `total`. Give it `p`."""
    return int({"row": np.shape(x)[-1:], "column": np.shape(x)[:1]}.get(over, (np.size(x),))[0])


def normal(x: Any, seed: float) -> Any:
    """Independent standard normal numbers, one for each element of `x`. Give it `p`, and an integer below 2**24.

    In a rule they depend on the seed, the step, the parameter's path and the element's index alone: the same bits for
    any layout and thread count, and after a resume. They are within 2e-6 of exact quantiles and at most 5.3 in size. A
    formula called as a function gets other numbers, the same ones at each call with the same seed.
    """
    drawn = np.random.default_rng(int(seed)).standard_normal(np.shape(x))
    return float(drawn) if np.ndim(x) == 0 else drawn.astype(np.asarray(x).dtype)


def bias_correction(beta: float, t: int) -> float:
    """1 - beta**t in float64, without the cancellation that eats its digits when beta is close to 1.

    Kingma & Ba 2014, arXiv:1412.6980, Algorithm 1. The compiler writes it wherever a rule says `1 - beta**t`.
    """
    return -_math.expm1(t * _math.log(beta)) if 0 < beta < 1 else 1 - beta**t


# What the staged expressions call, once a step: the numbers' half alone.
NUMBERS: dict[str, Callable[..., Any]] = {
    **{n: getattr(_math, n) for n in LIBM},
    **_scope,
    **{"abs": builtins.abs, "cbrt": _math.cbrt, "isfinite": _math.isfinite, "bias_correction_": bias_correction},
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    n: globals()[n] for n in (*LIBM, *SCALAR, "abs", "where", *REDUCTIONS, "size", "normal")
}

_NUMPY = ("sqrt exp expm1 log log1p sin cos tanh copysign abs sign maximum minimum clip where square cbrt").split()
# The name a kernel uses for each function object that a rule's author may have in scope under whatever name.
CANONICAL: dict[Any, str] = {
    **{getattr(np, n): n for n in _NUMPY},
    **{getattr(_math, n): n for n in (*LIBM, "cbrt", "isfinite")},
    **{f: n for n, f in FUNCTIONS.items()},
    **{np.isfinite: "isfinite", _math.fabs: "abs", builtins.abs: "abs", max: "maximum", min: "minimum"},
}
