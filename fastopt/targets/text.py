"""What the kernels of all targets share: the same columns, functions and statements, printed in another frame."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from fastopt import codecs, math
from fastopt.codecs import Codec
from fastopt.lowered import COPY, Lowered

_NONE: Mapping[str, str] = {}


def dtypes(lowered: Lowered, dtype: np.dtype | Codec, gradient: np.dtype | Codec) -> dict[str, Codec]:
    """How the elements of every buffer are stored, p and g first."""
    wide, own, stored = codecs.of("float64"), codecs.of(dtype), dict(lowered.stored)
    plain = codecs.of(own.real)
    of = {b: wide if b in lowered.numbers or b in lowered.between else plain for b in lowered.buffers}
    of |= dict.fromkeys(lowered.scales, codecs.of("float32"))
    of |= {"p": own, "master": plain if lowered.master == "float32" else own} if lowered.master else {"p": own}
    return {**of, **{b: codecs.of(name) for b, name in stored.items()}, "g": codecs.of(gradient)}


def pointer(lowered: Lowered, buffer: str, dtype: np.dtype | Codec) -> str:
    """Where a buffer of the parameter at hand begins."""
    return f"{dtype}_at(addresses[segment, {lowered.buffers.index(buffer)}])"


def words(lines: Iterable[str]) -> set[str]:
    return {w for line in lines for w in re.findall(r"\w+", line)}


def columns(lowered: Lowered, lines: Iterable[str], form: str) -> list[str]:
    """Reads of the columns of `hyper` that the lines name."""
    named = words(lines)
    return [f"{n} = {form.format(f'hyper[group, {k}]')}" for k, n in enumerate(names(lowered)) if n in named]


def totals(lowered: Lowered) -> int:
    """How many columns `partials` has."""
    return 1 + max((n.total[0] for q in lowered.passes for n, _ in q.totals if n.total), default=-1)


def names(lowered: Lowered) -> list[str]:
    """Names of the columns of `hyper`, in order."""
    return ["scale", *(c.name for c in lowered.columns)]


def legend(lowered: Lowered) -> str:
    """Comment lines that say what the columns are."""
    columns = [("scale", "-1 when maximizing, else 1"), *((c.name, c.expression) for c in lowered.columns)]
    return "\n".join(f"#   {n}" if n == e else f"#   {n} = {e}" for n, e in columns)


def imports(lowered: Lowered) -> str:
    """The import of what the statements call from `math`; '' if they call nothing there."""
    called = sorted(n for n in _called(lowered.functions | lowered.number_functions) if n in math.LIBM)
    return f"from math import {', '.join(called)}\n" if called else ""


def functions(lowered: Lowered, decorator: str) -> str:
    """Definitions of the other functions the statements call; those on numbers compute in float64."""
    called = _called(lowered.functions)
    beside = "".join(f"\n{math.BESIDE[n]}" for n in called if n in math.BESIDE)
    elements = [math.SCALAR[n] for n in called if n in math.SCALAR]
    of_numbers = math.SCALAR | math.OF_NUMBERS
    numbers = [wide(of_numbers[n], lowered) for n in _called(lowered.number_functions) if n in math.SCALAR]
    return beside + "".join(f"\n\n{decorator}\n{text}\n" for text in elements + numbers)


def wide(text: str, lowered: Lowered) -> str:
    """A statement on elements as one on numbers: in float64, and with functions of its own."""
    for name in ("real", *(n for n in _called(lowered.number_functions) if n in math.SCALAR)):
        text = re.sub(rf"\b{name}\(", "wide(" if name == "real" else f"wide_{name}(", text)
    return text


def unsigned(kernels: str) -> tuple[str, str]:
    """Kernels with `u4` for `np.uint64(4)`, and the lines that define these: Numba takes its time over every call."""
    found = sorted({int(n) for n in re.findall(r"\bnp\.uint64\((\d+)\)", kernels)})
    return re.sub(r"\bnp\.uint64\((\d+)\)", r"u\1", kernels), "".join(f"u{n} = np.uint64({n})\n" for n in found)


def load(buffer: str, value: str, of: Mapping[str, Codec]) -> str:
    """A loaded element, decoded, as the compute type; gradients are scaled."""
    codec = of[buffer]
    value = f"from_{codec}({value})" if codec.coded else value
    value = f"real({value})" if codec.real != of["p"].real else value
    return f"scale * {value}" if buffer == "g" else value


def result(buffer: str, value: str, of: Mapping[str, Codec], chances: Mapping[str, str] = _NONE) -> str:
    """What is stored, encoded: state without subnormal numbers. `chances`: buffer -> bits that it is rounded by."""
    if buffer == "g":
        return value  # 0, whose code is 0 in every codec
    codec = of[buffer]
    value = value if buffer in ("p", COPY) or codec.blocked else f"flush({value})"
    if codec.coded and buffer in chances:
        return f"round_{codec}({value}, {chances[buffer]})"
    if codec.coded:
        return f"to_{codec}({value})"
    return value if codec.real == of["p"].real else f"np.{codec.real}({value})"


def chances(lowered: Lowered) -> dict[str, str]:
    """Buffers in 16 bits that are rounded by chance -> random bits for an element."""
    return {b: f"dice(key_{b}, i)" for b in lowered.rounded if b not in lowered.scales.values()}


def dice(lowered: Lowered) -> dict[str, int]:
    """Keys of random bits -> their numbers."""
    return {f"key_{b}": k for k, b in enumerate(lowered.rounded)}


def halves(lines: Iterable[str]) -> str:
    """The import of the decoders and encoders that the lines call; '' if there are none."""
    known = {f"{way}_{name}" for way in ("from", "to", "round") for name in ("float16", "bfloat16")}
    called = sorted(words(lines) & {*known, "upper_half", "lower_half", "join_halves"})
    return f"from fastopt.targets.halves import {', '.join(called)}\n" if called else ""


def mending(lines: Iterable[str], decorator: str) -> str:
    """The definition of `mend`, where the lines call it."""
    text = "def mend(x):\n    return x if x - x == 0 else real(0)"
    return f"\n\n{decorator}\n{text}\n" if "mend" in words(lines) else ""


def indent(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _called(functions: frozenset[str]) -> list[str]:
    needs = {"cbrt": ["copysign", "cbrt"]}  # what a definition itself calls comes first
    return list(dict.fromkeys(n for f in sorted(functions) for n in needs.get(f, [f])))
