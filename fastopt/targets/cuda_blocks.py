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
{scales}
    if whole:
{loads}
    else:
{single_loads}
{update}
    first += threads // np.uint64({warp}) * np.uint64({block})"""

_STORE = """\
if whole:
    {whole}
else:
    {single}"""

_DECODE = """

@cuda.jit(device=True, forceinline=True)
def decoded(codes, scale):
    if scale < np.float32(0):
        return {unsigned}
    return {signed}
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

_CHANCES = {"rounded": "chance_of", "nearest": "half"}

_LOOK = """\
if np.uint64({k}) < mine:
    top, signs = max(top, size(x[{k}])), signs | minus(x[{k}])"""


def loop(it: Elements) -> str:
    loaded, lanes = {b: local for local, b in it.inputs if b in it.blocked}, range(LANES)
    update = [f"{local}_in = decoded({local}_in, told({b}_scale_in))" for b, local in loaded.items()]
    update += it.updates(LANES)
    for k in lanes if it.q.totals else ():
        update += [f"if np.uint64({k}) < mine:", *(f"    {line}" for line in it.adds([k]))]
    # what need not be encoded is stored at once: that keeps registers free
    for b in sorted(it.stored, key=it.blocked.__contains__):
        outs = listing(f"{b}_out{k}" for k in lanes)
        if b in it.blocked:
            encoded, key = ("rounded", f"key_{b}") if b in it.lowered.rounded else ("nearest", "np.uint32(0)")
            update.append(f"{b}_out, {b}_scale_out = {encoded}(({outs}), mine, {key}, i)")
            update.append(f"float32_store_some({b}_scale_at, block, ({b}_scale_out,), lane == np.uint64(0))")
        kind, out = it.of[b].moved, f"{b}_out" if b in it.blocked else f"({outs})"
        whole, single = f"{kind}_store({b}_at, i, {out})", f"{kind}_store_some({b}_at, i, {out}, mine)"
        update += _STORE.format(whole=whole, single=single).splitlines()
    return _LOOP.format(
        warp=WARP,
        block=BLOCK,
        lanes=LANES,
        misaligned=misaligned(it),
        scales=text.indent(
            [f"{b}_scale_in = float32_load_some({b}_scale_at, block, 1, lane == np.uint64(0))[0]" for b in loaded], 4
        ),
        loads=text.indent([f"{local}_in = {it.of[b].moved}_load({b}_at, i, {LANES})" for local, b in it.inputs], 8),
        single_loads=text.indent(
            [f"{local}_in = {it.of[b].moved}_load_some({b}_at, i, {LANES}, mine)" for local, b in it.inputs], 8
        ),
        update=text.indent(update, 4),
    )


def functions(kernels: str) -> str:
    """Definitions of what the kernels call of this file."""
    called, lanes, found = re.findall(r"(\w+)\(", kernels), range(LANES), ""
    if "decoded" in called:
        ways = {way: listing(f"from_{way}(codes[{k}], scale)" for k in lanes) for way in ("signed", "unsigned")}
        found += _DECODE.format(**ways)
    for name, chance in ((name, chance) for name, chance in _CHANCES.items() if name in called):
        up = [f"{chance}(key, i + np.uint64({k}))" for k in lanes]
        ways = {way: listing(f"to_{way}(x[{k}], unit, {up[k]})" for k in lanes) for way in ("signed", "unsigned")}
        look = text.indent([line for k in lanes for line in _LOOK.format(k=k).splitlines()], 4)
        found += _ENCODE.format(name=name, look=look, zeros=listing("np.uint8(0)" for _ in lanes), **ways)
    return found
