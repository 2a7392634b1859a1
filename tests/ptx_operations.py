"""The arithmetic of PTX on NumPy arrays, an element per thread: what an instruction computes from its operands."""

from collections.abc import Callable
from typing import Any

import numpy as np

TYPES = {
    **{f"{k}{n}": np.dtype(f"{c}{n // 8}") for k, c in (("u", "u"), ("s", "i"), ("b", "u")) for n in (8, 16, 32, 64)},
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype(bool),
}


def _exact_product(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x * y as a rounded product and its error (Dekker 1971)."""

    def halves(a):
        c = a * 134217729.0  # 2^27 + 1
        high = c - (c - a)
        return high, a - high

    product = x * y
    (a, b), (c, d) = halves(x), halves(y)
    return product, ((a * c - product) + a * d + b * c) + b * d


def fma(x: Any, y: Any, z: Any) -> np.ndarray:
    """x * y + z with one rounding, but for rare ties; in float64 what a float32 product needs is exact anyway."""
    x, y, z = np.broadcast_arrays(x, y, z)
    if x.dtype == np.float32:
        return (x.astype(np.float64) * y + z).astype(np.float32)
    product, error = _exact_product(x, y)
    total = product + z
    back = total - product
    rest = (product - (total - back)) + (z - back)
    exact = total + (rest + error)
    return np.where(np.isfinite(exact), exact, x * y + z)  # beyond the range where products can be split


def _reciprocal(op: list[str], x: np.ndarray) -> np.ndarray:
    found = x.dtype.type(1) / x
    if "approx" in op and x.dtype == np.float64:  # 20 bits; the code refines them
        return (np.asarray(found).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    return found


def _compare(op: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    unordered = (x != x) | (y != y)
    test = op[1]
    if test in ("nan", "num"):
        return unordered if test == "nan" else ~unordered
    loose = test in ("neu", "equ", "ltu", "gtu", "leu", "geu")
    test = test[:-1] if loose else test
    result = _TESTS.get(test, _TESTS[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(test, test)])(x, y)
    return result | unordered if loose else result & ~unordered


_TESTS: dict[str, Callable[..., Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
_ROUND = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _convert(op: list[str], x: np.ndarray) -> np.ndarray:
    for how in op[1:-2]:
        x = _ROUND[how](x) if how in _ROUND else x
    return np.asarray(x).astype(TYPES[op[-2]])


def _multiply(op: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if op[1] == "wide":
        wide = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
        return np.asarray(x).astype(wide) * np.asarray(y).astype(wide)
    assert op[1] != "hi", "mul.hi"
    return x * y


def _shift(op: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    by = np.minimum(y, bits - 1).astype(x.dtype)
    moved = x << by if op[0] == "shl" else x >> by
    return moved if x.dtype.kind == "i" else np.where(y >= bits, x.dtype.type(0), moved)


def _permute(op: list[str], x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four bytes of the eight of y and x, each chosen by four bits of the selector; the fourth bit repeats the sign."""
    both = np.asarray(x).astype(np.uint64) | np.asarray(y).astype(np.uint64) << np.uint64(32)
    found = np.zeros(both.shape, np.uint64)
    for k in range(4):
        nibble = np.asarray(selector).astype(np.uint64) >> np.uint64(4 * k)
        byte = both >> np.uint64(8) * (nibble & np.uint64(7)) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        found |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * k)
    return found.astype(np.uint32)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda op, x, y: x + y,
    "sub": lambda op, x, y: x - y,
    "mul": _multiply,
    "mad": lambda op, x, y, z: _multiply(op, x, y) + z,
    "fma": lambda op, x, y, z: fma(x, y, z),
    "div": lambda op, x, y: x / y if x.dtype.kind == "f" else x // y,
    "rem": lambda op, x, y: x % y,
    "rcp": _reciprocal,
    "min": lambda op, x, y: np.fmin(x, y),  # of numbers: a NaN loses
    "max": lambda op, x, y: np.fmax(x, y),
    "and": lambda op, x, y: x & y,
    "or": lambda op, x, y: x | y,
    "xor": lambda op, x, y: x ^ y,
    "not": lambda op, x: ~x,
    "shl": _shift,
    "shr": _shift,
    "mov": lambda op, x: x,
    "cvta": lambda op, x: x,
    "cvt": _convert,
    "abs": lambda op, x: np.abs(x),
    "neg": lambda op, x: np.negative(x),
    "copysign": lambda op, x, y: np.copysign(y, x),  # the sign comes first
    "sqrt": lambda op, x: np.sqrt(x),
    "ex2": lambda op, x: np.exp2(x),
    "lg2": lambda op, x: np.log2(x),
    "prmt": _permute,
    "setp": _compare,
    "selp": lambda op, x, y, p: np.where(p, x, y),
}


def operand_types(op: list[str]) -> list[np.dtype]:
    """The types of an instruction's operands, behind the one it writes."""
    kind = TYPES[op[-1]]
    if op[0] in ("shl", "shr"):
        return [kind, TYPES["u32"]]
    if op[0] == "selp":
        return [kind, kind, TYPES["pred"]]
    if op[0] == "mad" and op[1] == "wide":
        return [kind, kind, np.dtype(f"{kind.kind}{2 * kind.itemsize}")]
    return [kind] * 3
