"""Executes the PTX of a kernel, thread after thread, on this process's own memory: a GPU's arithmetic without a GPU.

Enough of the language for the kernels of elementwise rules compiled without fused multiply-add. Every access is
checked: alignment to its full width, and that it lies inside an array that was handed over.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_TYPES = {
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "u64": np.dtype("u8"),
    "s64": np.dtype("u8"),
    "b64": np.dtype("u8"),
}
_BITS = {"b32": np.uint32, "b64": np.uint64}
_MASK = (1 << 64) - 1
_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*);")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class Memory:
    """The arrays a kernel may touch, at their real addresses."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.spans = [(a.ctypes.data, a.nbytes, a.reshape(-1).view(np.uint8)) for a in arrays if a.nbytes]
        self.widest: dict[str, int] = {"ld": 0, "st": 0}

    def at(self, address: int, dtype: np.dtype, lanes: int, what: str) -> np.ndarray:
        size = dtype.itemsize * lanes
        assert address % size == 0, f"{what} of {size} bytes at {address:#x} is misaligned"
        for start, length, raw in self.spans:
            if start <= address and address + size <= start + length:
                self.widest[what] = max(self.widest[what], size)
                return raw[address - start : address - start + size].view(dtype)
        raise AssertionError(f"{what} of {size} bytes at {address:#x} is outside every array")


def _float(text: str) -> Any:
    if text.startswith("0f"):
        return np.uint32(int(text[2:], 16)).view(np.float32)
    return np.uint64(int(text[2:], 16)).view(np.float64)


class Thread:
    """One thread's registers, and what each instruction does to them."""

    def __init__(self, memory: Memory, parameters: dict[str, int], special: dict[str, int]):
        self.memory, self.parameters, self.special = memory, parameters, special
        self.registers: dict[str, Any] = {}

    def value(self, text: str) -> Any:
        if text in self.registers:
            return self.registers[text]
        if text in self.special:
            return self.special[text]
        return _float(text) if text[:2] in ("0f", "0d") else int(text, 0) & _MASK

    def address(self, text: str) -> int:
        register, _, offset = text.strip("[]").partition("+")
        return (self.registers[register] + int(offset or 0)) & _MASK

    def execute(self, op: list[str], a: list[str]) -> None:
        name, kind = op[0], op[-1]
        if name == "ld" and op[1] == "param":
            self.registers[a[0]] = self.parameters[a[1].strip("[]")]
        elif name in ("ld", "st"):
            assert op[1] == "global", "a generic access: the address space was lost"
            registers, where = (a[0], a[1]) if name == "ld" else (a[1], a[0])
            names = re.findall(r"[^{},\s]+", registers)
            view = self.memory.at(self.address(where), _TYPES[kind], len(names), name)
            for lane, register in enumerate(names):
                if name == "st":
                    view[lane] = self.value(register)
                else:
                    self.registers[register] = view[lane] if kind[0] == "f" else int(view[lane])
        elif name == "mov" and kind in _BITS:  # the same bits in a register of another kind
            x = self.value(a[1])
            x = x.view(f"u{x.itemsize}") if isinstance(x, np.floating) else _BITS[kind](x)
            self.registers[a[0]] = x.view(f"f{x.itemsize}") if a[0].startswith("%f") else int(x)
        else:
            self.registers[a[0]] = _OPERATIONS[name](op, *map(self.value, a[1:]))


def _rounded(op: list[str]) -> type:
    return np.float32 if op[-1] == "f32" else np.float64


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def run(op: list[str], x: Any, y: Any) -> Any:
        return _rounded(op)(apply(x, y)) if op[-1][0] == "f" else int(apply(x, y)) & _MASK

    return run


def _compare(op: list[str], x: Any, y: Any) -> bool:
    unordered = bool(x != x or y != y)
    test = op[1]
    if test == "nan":
        return unordered
    if test in ("neu", "equ", "ltu", "gtu", "leu", "geu"):
        if unordered:
            return True
        test = test[:-1]
    elif unordered:
        return test == "ne" and op[-1][0] != "f"
    return bool({"lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y, "eq": x == y, "ne": x != y}[test])


def _convert(op: list[str], x: Any) -> Any:
    return {"f32": np.float32, "f64": np.float64}.get(op[-2], int)(x)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _arithmetic(lambda x, y: x + y),
    "sub": _arithmetic(lambda x, y: x - y),
    "mul": _arithmetic(lambda x, y: x * y),
    "div": _arithmetic(lambda x, y: x / y),
    "and": lambda op, x, y: x & y,
    "or": lambda op, x, y: x | y,
    "shl": lambda op, x, y: (x << y) & _MASK,
    "shr": lambda op, x, y: x >> y,
    "mov": lambda op, x: x,
    "cvta": lambda op, x: x,
    "cvt": _convert,
    "copysign": lambda op, x, y: np.copysign(y, x),  # of the second the size, as in the manual of PTX
    "abs": lambda op, x: _rounded(op)(abs(x)),
    "neg": lambda op, x: _rounded(op)(-x),
    "sqrt": lambda op, x: _rounded(op)(np.sqrt(x)),
    "setp": _compare,
    "selp": lambda op, x, y, p: x if p else y,
}


def run(ptx: str, arguments: Sequence[int], arrays: Sequence[np.ndarray], blocks: int, threads: int) -> dict[str, int]:
    """Launch the kernel of a PTX text. Returns the widest load and store in bytes."""
    head, body = re.search(r"\.entry[^(]*\((.*?)\)[^{]*\{(.*)\}", ptx, re.S).groups()
    parameters = dict(zip(re.findall(r"\.param \.u64 (\S+?),?\s", head + "\n"), arguments, strict=True))
    program, labels = [], {}
    for line in (raw.split("//")[0].strip() for raw in body.splitlines()):
        if line.endswith(":"):
            labels[line[:-1]] = len(program)
        elif line and not line.startswith("."):
            negated, predicate, op, rest = _INSTRUCTION.fullmatch(line).groups()
            program.append((predicate, bool(negated), op.split("."), _OPERAND.findall(rest)))
    memory = Memory(arrays)
    with np.errstate(all="ignore"):
        for block in range(blocks):
            for thread in range(threads):
                special = {"%tid.x": thread, "%ntid.x": threads, "%ctaid.x": block, "%nctaid.x": blocks}
                state, at = Thread(memory, parameters, special), 0
                while True:
                    predicate, negated, op, operands = program[at]
                    at += 1
                    if predicate and state.registers[predicate] == negated:
                        continue
                    if op[0] == "ret":
                        break
                    if op[0] == "bra":
                        at = labels[operands[0]]
                    else:
                        state.execute(op, operands)
    return memory.widest
