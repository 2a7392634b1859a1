"""The loop over the elements of a chunk on the CPU: plain, with running sums, or row by row."""

from collections.abc import Iterable, Mapping

from fastopt.blocks import BLOCK
from fastopt.codecs import Codec
from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import Level
from fastopt.targets import masters, text

# Running sums side by side in float64, 2 KiB: no addition waits for the one before it. So many operations keep the
# processor from looking far ahead: where a pass only reads, memory is asked for the next block.

_PLAIN = """\
for i in range(lo, hi):
{loop}"""

_SUMS = """\
width = min(hi - lo, np.uint64({block}))
clear(lanes[task], width)
first = lo
while first < hi:
{fetches}
    for i in range(first, min(first + width, hi)):
{loop}
    first += width
{done}"""

# State in 8 bits is decoded where it is loaded; what replaces it waits in the task's room, as if that were an array of
# float32 that begins at `first`, until its block is done and can be encoded. Memory, which would be idle meanwhile, is
# asked for the next block. A chunk is a whole number of blocks.
_BLOCKS = """\
widest()
{clear}
first = lo
while first < hi:
    end = min(first + np.uint64({block}), hi)
{before}
    for i in range(first, end):
{loop}
{fetches}
{encode}
    first = end
{done}"""

# A chunk is a run of whole rows: the sum of a row is complete here, that of a column is the chunk's part. A row is a
# whole number of blocks where state is in 8 bits.
_ROWS = """\
{widest}
columns, step = addresses[segment, {columns}], addresses[segment, {step}]
width = min(columns, np.uint64({block}))
clear(lanes[task], width)
row, part = lo // max(columns, np.uint64(1)), lo // max(step, np.uint64(1)) * columns
{zero}
while lo < hi:  # a row
{values}
    first, end = lo, lo + columns
    while first < end:
{before}
        for i in range(first, min(first + width, end)):
{loop}
{encode}
        first += width
{sums}
    lo = end
    row += np.uint64(1)
{done}"""


def elements(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines of text; `of`: how every buffer is stored."""
    rows = [n for n in q.uses if n.level is Level.ROW]
    columns = [n for n in q.uses if n.level is Level.COLUMN]
    of_rows, of_columns, of_all = ([(n, v) for n, v in q.totals if n.level is level] for level in _LEVELS)
    loop = [f"{n.name} = real({n.vector}_at[i - lo])" for n in columns]
    loop += loads(lowered, q, of)
    loop += q.body
    loop += stores(lowered, q, of)
    loop += [f"lanes[task, {_slot(n)}, i - first] += wide({value})" for n, value in (*of_all, *of_rows)]
    loop += [f"{_part(n)}_at[part + (i - lo)] += wide({value})" for n, value in of_columns]

    buffers = dict.fromkeys(b for b in lowered.buffers if b in used(lowered, q))
    buffers |= dict.fromkeys([n.vector for n in (*rows, *columns, *(n for n, _ in of_rows))])
    buffers |= dict.fromkeys([_part(n) for n, _ in of_columns])
    unpack = noises(lowered, [*loop, *encode(lowered, q, "first", "end")])
    unpack = text.columns(lowered, loop + unpack, "{}") + unpack
    unpack += [f"{n.name} = real(reduced[segment, {n.slot}])" for n in q.uses if n.level is Level.REDUCED]
    unpack += pointers(lowered, buffers, of)
    done = [f"partials[chunk, {_slot(n)}] = drain(lanes[task, {_slot(n)}], width)" for n, _ in of_all]
    if rows or columns or of_rows or of_columns:
        frame = _ROWS.format(
            widest="widest()" if blocked(lowered, q) else "",
            columns=lowered.buffers.index("columns"),
            step=lowered.buffers.index("step"),
            block=BLOCK,
            zero="\n".join(f"clear_part({_part(n)}_at, part, columns)" for n, _ in of_columns),
            values=text.indent([f"{n.name} = real({n.vector}_at[row])" for n in rows], 4),
            before=text.indent(before(lowered, q, "first"), 8),
            loop=text.indent(loop, 12),
            encode=text.indent(encode(lowered, q, "first", "first + width"), 8),
            sums=text.indent([f"{n.vector}_at[row] = drain(lanes[task, {_slot(n)}], width)" for n, _ in of_rows], 4),
            done="\n".join(done),
        )
    elif blocked(lowered, q):
        frame = _BLOCKS.format(
            block=BLOCK,
            clear=f"width = min(hi - lo, np.uint64({BLOCK}))\nclear(lanes[task], width)" if of_all else "",
            before=text.indent(before(lowered, q, "first"), 4),
            loop=text.indent(loop, 8),
            fetches=text.indent(_fetches(lowered, q, of, "end"), 4),
            encode=text.indent(encode(lowered, q, "first", "end"), 4),
            done="\n".join(done),
        )
    elif of_all:
        frame = _SUMS.format(
            block=BLOCK,
            fetches="" if q.stores else text.indent(_fetches(lowered, q, of, "first + width"), 4),
            loop=text.indent(loop, 8),
            done="\n".join(done),
        )
    else:
        frame = _PLAIN.format(loop=text.indent(loop, 4)) if loop else ""
    return [*unpack, *(line for line in frame.splitlines() if line.strip())]


def used(lowered: Lowered, q: Pass) -> set[str]:
    """What a pass reads or writes, of each element or block."""
    found = {b for _, b in q.loads} | {b for b, _ in q.stores}
    found |= {s for s, b in lowered.scales.items() if b in found}
    return found | {"master"} if lowered.master and "p" in found else found


def _fetches(lowered: Lowered, q: Pass, of: dict[str, Codec], start: str) -> list[str]:
    """Lines that ask for the elements of a block; of scales, a number each, the processor knows what comes next."""
    elements = used(lowered, q) - {*lowered.scales}
    wanted = [(k, of[b].itemsize) for k, b in enumerate(lowered.buffers) if b in elements]
    return [f"fetch(addresses[segment, {k}] + ({start}) * np.uint64({n}), np.uint64({n * BLOCK}))" for k, n in wanted]


def blocked(lowered: Lowered, q: Pass) -> list[str]:
    """Those of them that are in 8 bits."""
    return [b for b in lowered.scales.values() if b in used(lowered, q)]


def pointers(lowered: Lowered, buffers: Iterable[str], of: Mapping[str, Codec]) -> list[str]:
    """Lines that say where buffers begin; of those in 8 bits, their codes."""
    names = {b: f"{b}_codes" if of[b].blocked else b for b in buffers}
    return [f"{name}_at = {text.pointer(lowered, b, of[b])}" for b, name in names.items()]


def loads(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines that load an element of each buffer of a pass, decoded."""
    return [
        f"{local} = {masters.load(lowered.master, of)}"
        if b == "p" and lowered.master
        else f"{local} = {text.load(b, _element(b, of[b]), of)}"
        for local, b in q.loads
    ]


def _element(buffer: str, codec: Codec) -> str:
    return f"decoded({buffer}_codes_at[i], {buffer}_meaning)" if codec.blocked else f"{buffer}_at[i]"


def stores(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines that store one, encoded."""
    chances = text.chances(lowered)
    lines = []
    for b, value in q.stores:
        if b == "p" and lowered.master:
            lines += masters.store(lowered.master, of, value)
        else:
            lines.append(f"{b}_at[i] = {text.result(b, value, of, chances)}")
    return lines


def before(lowered: Lowered, q: Pass, first: str) -> list[str]:
    """Lines about the block at `first`, of what is in 8 bits: what its codes mean, and where results wait."""
    loaded, stored = [b for _, b in q.loads], [b for b, _ in q.stores]
    decoded = [b for b in blocked(lowered, q) if b in loaded]
    lines = [f"{b}_meaning = meaning({b}_scale_at[{first} // np.uint64({BLOCK})])" for b in decoded]
    for k, b in enumerate(lowered.scales.values()):
        if b in stored:
            lines.append(f"{b}_at = float32_at(rooms[task] + np.uint64({k * 4 * BLOCK}) - np.uint64(4) * {first})")
    return lines


def encode(lowered: Lowered, q: Pass, first: str, end: str) -> list[str]:
    """Lines that put them back."""
    stored = [b for b, _ in q.stores if b in blocked(lowered, q)]
    places = [f"{b}_codes_at, {b}_scale_at, {b}_at, {first}, {end}" for b in stored]
    return [
        f"round_block({at}, key_{b})" if b in lowered.rounded else f"store_block({at})"
        for b, at in zip(stored, places, strict=True)
    ]


def noises(lowered: Lowered, loop: list[str]) -> list[str]:
    """Lines that make the keys of the random numbers that the loop draws."""
    named = [(key, seed) for key, seed in lowered.noises if key in text.words(loop)]
    key = f"addresses[segment, {lowered.buffers.index('key')}]" if named else ""
    keys = [f"{name} = noise_key({seed}, clock[0], {key}, {name[5:]})" for name, seed in named]
    rolled = {key: k for key, k in text.dice(lowered).items() if key in text.words(loop)}
    key = f"addresses[segment, {lowered.buffers.index('key')}]" if rolled else ""
    return keys + [f"{name} = dice_key(clock[0], {key}, {k})" for name, k in rolled.items()]


_LEVELS = (Level.ROW, Level.COLUMN, Level.REDUCED)


def _slot(n: Number) -> int:
    assert n.total is not None
    return n.total[0]


def _part(n: Number) -> str:
    return f"partial{_slot(n)}"
