"""The loop of a pass over state in 8 bits on CUDA: a warp takes a block of 256 elements, each thread eight of them."""

import re

from fastopt.blocks import BLOCK
from fastopt.targets import text
from fastopt.targets.cuda_elements import LANES, WARP, Elements, listing, misaligned

# Every thread of a warp takes part in all of it, whether there is anything for it or not.
_LOOP = """\
lane, first = thread % np.uint64({warp}), lo + thread // np.uint64({warp}) * np.uint64({block})
aligned = not {misaligned}
while first < hi:
    i, block = first + lane * np.uint64({lanes}), first // np.uint64({block})
    mine, whole = hi - min(i, hi), aligned and first + np.uint64({block}) <= hi
{body}
    first += threads // np.uint64({warp}) * np.uint64({block})"""

_DECODE = """

@cuda.jit(device=True, forceinline=True)
def all_decoded(codes, scale):
    block = meaning(scale)
    return {each}
"""

# The first `mine` of the numbers, which are those from `i` on, are there.
_ENCODE = """

@cuda.jit(device=True, forceinline=True)
def {name}(x, mine, key, i):
    top, signs = np.uint32(0), np.uint32(0)
{look}
    scale = common_scale(top, signs)
    unit = np.float32(1) / abs(scale)
    if scale > np.float32(0):
        return ({signed}), scale
    if scale < np.float32(0):
        return ({unsigned}), scale
    return ({zeros}), scale
"""

_CHANCES = {"rounded": "chance_of(dice(key, i + np.uint64({k})))", "nearest": "half(np.uint32(0))"}

_LOOK = """\
top = max(top, size(x[{k}]) if np.uint64({k}) < mine else np.uint32(0))
signs |= minus(x[{k}]) if np.uint64({k}) < mine else np.uint32(0)"""


def loop(it: Elements) -> str:
    body = _load(it) + it.updates(LANES)
    for k in range(LANES) if it.q.totals else ():
        body += [f"if np.uint64({k}) < mine:", *(f"    {line}" for line in it.adds([k]))]
    # what need not be encoded is stored at once: that keeps registers free
    for b in sorted(it.stored, key=it.blocked.__contains__):
        body += _store(it, b)
    body = text.indent(body, 4)
    return _LOOP.format(warp=WARP, block=BLOCK, lanes=LANES, misaligned=misaligned(it), body=body)


def _load(it: Elements) -> list[str]:
    """Lines that load a thread's part of every buffer, decoded. A block's scale is the business of one thread."""
    kinds = [(local, b, it.of[b].moved) for local, b in it.inputs]
    coded = [(local, b) for local, b in it.inputs if b in it.blocked]
    lines = [f"{b}_scale_in = float32_load_some({b}_scale_at, block, 1, lane == np.uint64(0))[0]" for _, b in coded]
    lines += _either(
        [f"{local}_in = {kind}_load({b}_at, i, {LANES})" for local, b, kind in kinds],
        [f"{local}_in = {kind}_load_some({b}_at, i, {LANES}, mine)" for local, b, kind in kinds],
    )
    return lines + [f"{local}_in = all_decoded({local}_in, told({b}_scale_in))" for local, b in coded]


def _store(it: Elements, b: str) -> list[str]:
    """Lines that store a thread's part of a buffer, encoded."""
    lines, kind, out = [], it.of[b].moved, f"({listing(f'{b}_out{k}' for k in range(LANES))})"
    if b in it.blocked:
        chance = f"rounded({out}, mine, key_{b}, i)" if b in it.lowered.rounded else f"nearest({out}, mine, 0, i)"
        lines += [f"{b}_out, {b}_scale_out = {chance}"]
        lines += [f"float32_store_some({b}_scale_at, block, ({b}_scale_out,), lane == np.uint64(0))"]
        out = f"{b}_out"
    return lines + _either([f"{kind}_store({b}_at, i, {out})"], [f"{kind}_store_some({b}_at, i, {out}, mine)"])


def _either(whole: list[str], single: list[str]) -> list[str]:
    """The whole block at once, or element by element."""
    return ["if whole:", *(f"    {line}" for line in whole), "else:", *(f"    {line}" for line in single)]


def functions(kernels: str) -> str:
    """Definitions of what the kernels call of this file."""
    called, lanes, found = re.findall(r"(\w+)\(", kernels), range(LANES), ""
    if "all_decoded" in called:
        found += _DECODE.format(each=listing(f"decoded(codes[{k}], block)" for k in lanes))
    for name, chance in ((name, chance) for name, chance in _CHANCES.items() if name in called):
        ways = {
            way: listing(f"to_{way}(x[{k}], unit, {chance.format(k=k)})" for k in lanes)
            for way in ("signed", "unsigned")
        }
        look = text.indent([line for k in lanes for line in _LOOK.format(k=k).splitlines()], 4)
        found += _ENCODE.format(name=name, look=look, zeros=listing("np.uint8(0)" for _ in lanes), **ways)
    return found
