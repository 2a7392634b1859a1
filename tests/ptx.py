"""Executes the PTX of a kernel on this process's own memory: a GPU's arithmetic without a GPU.

The threads of a block are the elements of NumPy arrays, and run together as far as branches let them; blocks run one
after another. Barriers hold, warps tell each other what all of their threads have come to, and accesses are checked,
see `ptx_memory.py`. Unknown instructions raise.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from ptx_memory import Memory
from ptx_operations import OPERATIONS, TYPES, operand_types

_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*)", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s]+")
_WARP = 32  # threads
_CLASSES = {"p": "pred", "h": "f16", "f": "f32", "fd": "f64", "r": "u32", "rd": "u64", "rs": "u16"}


class Instruction(NamedTuple):
    predicate: str | None
    negated: bool
    op: list[str]
    operands: list[str]


@dataclass
class Function:
    parameters: list[str]
    program: list[Instruction]
    labels: dict[str, int]


@dataclass
class Module:
    entry: Function
    functions: dict[str, Function]
    shared: dict[str, int]  # symbol -> address
    shared_size: int


@lru_cache(maxsize=256)
def parse(ptx: str) -> Module:
    text = re.sub(r"//[^\n]*", "", ptx)
    shared, size = {}, 0
    for align, name, length in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", text):
        size = -(-size // int(align)) * int(align)
        shared[name] = size
        size += int(length)
    entry, functions = None, {}
    bodies = r"\.(entry|func)\s+(?:\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)[^{;]*\{(.*?)^\}"
    for kind, name, head, body in re.findall(bodies, text, re.S | re.M):
        function = _function(head, body)
        if kind == "entry":
            entry = function
        functions[name] = function
    assert entry is not None
    return Module(entry, functions, shared, size)


def _function(head: str, body: str) -> Function:
    program: list[Instruction] = []
    labels = {}
    body = re.sub(r"^\s*[{}]\s*$", "", body, flags=re.M)  # scopes of calls
    for raw in re.split(r";|(?<=:)\s*\n", body):
        line = raw.strip()
        while found := re.match(r"(\$?\w+):\s*", line):
            labels[found[1]] = len(program)
            line = line[found.end() :]
        if line and not line.startswith("."):
            negated, predicate, op, rest = _INSTRUCTION.fullmatch(line).groups()
            program.append(Instruction(predicate, bool(negated), op.split("."), _OPERAND.findall(rest)))
    return Function(re.findall(r"\.param \.\w+ (\w+)", head), program, labels)


class Frame:
    """A function under way in the threads of a block: registers are arrays with an element per thread."""

    def __init__(self, module: Module, function: Function, memory: Memory, special: dict[str, np.ndarray], given: Any):
        self.module, self.function, self.memory, self.special = module, function, memory, special
        self.parameters: dict[str, Any] = given
        self.registers: dict[str, np.ndarray] = {}
        self.n = len(special["%tid.x"])

    def run(self, threads: np.ndarray) -> None:
        """Until all of them return. Groups of threads wait for those that are further behind in the text."""
        program, labels = self.function.program, self.function.labels
        groups, waiting = {0: threads}, {}
        while groups or waiting:
            if not groups:
                ((at, who),) = waiting.items()  # more than one: threads wait at different barriers
                assert len(who) == self.n, "a barrier that some threads of the block never reach"
                self.memory.barrier()
                groups, waiting = {at + 1: who}, {}
            at = min(groups)
            who = groups.pop(at)
            following = min(groups, default=len(program))
            while True:
                if at == following:  # together again
                    groups[at] = np.sort(np.concatenate([groups[at], who]))
                    break
                predicate, negated, op, operands = program[at]
                active = who
                if predicate:
                    active = who[self.registers[predicate][who] != negated]
                if op[0] in ("bra", "ret"):
                    rest = who if not predicate else np.setdiff1d(who, active, assume_unique=True)
                    if op[0] == "bra" and active.size:
                        _join(groups, labels[operands[0]], active)
                    if rest.size and predicate:
                        _join(groups, at + 1, rest)
                    break
                if op[0] == "bar":
                    assert not predicate
                    waiting[at] = np.sort(np.concatenate([waiting.get(at, who[:0]), who]))
                    break
                if active.size:
                    self.execute(op, operands, active)
                at += 1

    # ---------------------------------------------------------------- registers
    def value(self, text: str, kind: np.dtype, who: np.ndarray) -> np.ndarray:
        if text in self.registers:
            found = self.registers[text][who]
        elif text in self.special:
            found = self.special[text][who]
        elif text[:2] in ("0f", "0d"):
            bits = np.uint32 if text[1] == "f" else np.uint64
            found = np.full(len(who), int(text[2:], 16), bits).view(np.float32 if text[1] == "f" else np.float64)
        elif text in self.module.shared:
            found = np.full(len(who), self.module.shared[text], np.uint64)
        else:
            size = 8 * kind.itemsize
            return np.full(len(who), int(text, 0) & ((1 << size) - 1), np.dtype(f"u{kind.itemsize}")).view(kind)
        if found.dtype != kind and found.dtype.itemsize == kind.itemsize:
            return found.view(kind)
        return found if found.dtype == kind else found.astype(kind)

    def put(self, register: str, values: Any, who: np.ndarray) -> None:
        if register == "%temp":  # the half that is not wanted
            return
        kind = TYPES[_CLASSES[re.match(r"%([a-z]+)\d+", register)[1]]]
        values = np.asarray(values)
        if values.dtype != kind:
            same = values.dtype.itemsize == kind.itemsize and kind.kind != "b"
            values = values.view(kind) if same else values.astype(kind)
        if register not in self.registers:
            self.registers[register] = np.zeros(self.n, kind)
        self.registers[register][who] = values

    def address(self, text: str, who: np.ndarray) -> np.ndarray:
        base, _, offset = text.strip("[]").partition("+")
        return self.value(base, TYPES["u64"], who) + np.uint64(int(offset or 0) & (1 << 64) - 1)

    # ---------------------------------------------------------------- instructions
    def execute(self, op: list[str], a: list[str], who: np.ndarray) -> None:
        name = op[0]
        if name in ("ld", "st") and op[1] == "param":
            self.parameter(name, TYPES[op[-1]], a, who)
        elif name == "ld":
            found = self.memory.load(op[1], self.address(a[1], who), TYPES[op[-1]], len(_names(a[0])), who)
            for register, values in zip(_names(a[0]), found.T, strict=True):
                self.put(register, values, who)
        elif name == "st":
            values = [self.value(r, TYPES[op[-1]], who) for r in _names(a[1])]
            self.memory.store(op[1], self.address(a[0], who), np.stack(values, axis=1), who)
        elif name == "call":
            self.call(a, who)
        elif name in ("shfl", "vote"):
            self.tell(op, a, who)
        elif name == "mov" and a[0].startswith("{"):
            halves = self.value(a[1], TYPES[op[-1]], who).view(np.dtype(f"u{TYPES[op[-1]].itemsize // 2}"))
            for k, register in enumerate(_names(a[0])):
                self.put(register, halves[k::2], who)
        elif name == "mov" and a[1].startswith("{"):
            half = np.dtype(f"u{TYPES[op[-1]].itemsize // 2}")
            halves = np.stack([self.value(r, half, who) for r in _names(a[1])], axis=1)
            self.put(a[0], np.ascontiguousarray(halves).view(TYPES[op[-1]])[:, 0], who)
        else:
            given = [self.value(x, kind, who) for x, kind in zip(a[1:], operand_types(op), strict=False)]
            self.put(a[0], OPERATIONS[name](op, *given), who)

    def parameter(self, name: str, kind: np.dtype, a: list[str], who: np.ndarray) -> None:
        if name == "ld":
            place = self.parameters[a[1].strip("[]").removesuffix("+0")]
            self.put(a[0], np.full(len(who), place, np.uint64) if isinstance(place, int) else place[who], who)
        else:
            place = self.parameters.setdefault(a[0].strip("[]").removesuffix("+0"), np.zeros(self.n, kind))
            place[who] = self.value(a[1], kind, who)

    def tell(self, op: list[str], a: list[str], who: np.ndarray) -> None:
        """Threads find what others of their warp hold, all of which must have come this far."""
        warps = who[::_WARP]
        lanes = np.arange(_WARP)
        whole = (warps % _WARP == 0).all() and np.array_equal(who, (warps[:, None] + lanes).ravel())
        assert whole and (self.value(a[-1], TYPES["s32"], who) == -1).all(), "only some threads of a warp are here"
        given = self.value(a[1], TYPES["pred" if op[0] == "vote" else op[-1]], who).reshape(-1, _WARP)
        if op[0] == "vote":
            assert op[2] == "any"
            found = np.repeat(given.any(axis=1), _WARP)
        else:
            other = self.value(a[2], TYPES["u32"], who).reshape(-1, _WARP)
            found = np.take_along_axis(given, {"idx": other, "bfly": lanes ^ other}[op[2]], axis=1).ravel()
        self.put(a[0].partition("|")[0], found, who)

    def call(self, a: list[str], who: np.ndarray) -> None:
        result, name, given = a
        function = self.module.functions[name]
        assert not any(i.op[0] == "bar" for i in function.program)
        passed = dict(zip(function.parameters, (self.parameters[x] for x in _names(given)), strict=True))
        frame = Frame(self.module, function, self.memory, self.special, passed)
        frame.run(who)
        (place,) = _names(result)
        self.parameters[place] = frame.parameters["func_retval0"]


def _join(groups: dict[int, np.ndarray], at: int, who: np.ndarray) -> None:
    groups[at] = np.sort(np.concatenate([groups[at], who])) if at in groups else who


def _names(text: str) -> list[str]:
    return re.findall(r"[^{}(),\s]+", text)


def run(ptx: str, arguments: Sequence[int], arrays: Sequence[np.ndarray], blocks: int, threads: int) -> dict[str, int]:
    """Launch the kernel of a PTX text. Returns the widest load and store in bytes."""
    module = parse(ptx)
    memory = Memory(arrays, module.shared_size, 1 if re.search(r"\b(ld|st)\.global\.[bsu]8\b", ptx) else 2)
    parameters = dict(zip(module.entry.parameters, map(int, arguments), strict=True))
    every = np.arange(threads)
    with np.errstate(all="ignore"):
        for block in range(blocks):
            fixed = {"%ntid.x": threads, "%ctaid.x": block, "%nctaid.x": blocks}
            special = {k: np.full(threads, v, np.uint32) for k, v in fixed.items()}
            memory.enter(block)
            Frame(module, module.entry, memory, special | {"%tid.x": every.astype(np.uint32)}, dict(parameters)).run(
                every
            )
    return memory.widest
