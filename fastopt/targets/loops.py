"""The loop over the elements of a chunk on the CPU: plain, with running sums, or row by row."""

import re
from collections.abc import Iterable

from fastopt.blocks import BLOCK
from fastopt.codecs import Codec
from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import Level
from fastopt.targets import masters, text

# running sums side by side in float64, 2 KiB: no addition waits for the one before it

_PLAIN = """\
for i in range(lo, hi):
{loop}"""

_SUMS = """\
width = min(hi - lo, np.uint64({block}))
clear(lanes[task], width)
first = lo
while first < hi:
    for i in range(first, min(first + width, hi)):
{loop}
    first += width
{done}"""

# State in 8 bits is decoded into the task's room, a block at a time, as if it were an array of float32 that begins at
# `first`; the loop is the same, and encodes it again. A chunk is a whole number of blocks.
_BLOCKS = """\
{clear}
first = lo
while first < hi:
    end = min(first + np.uint64({block}), hi)
{decode}
    for i in range(first, end):
{loop}
{encode}
    first = end
{done}"""

# A chunk is a run of whole rows: the sum of a row is complete here, that of a column is the chunk's part.
_ROWS = """\
columns, step = addresses[segment, {columns}], addresses[segment, {step}]
width = min(columns, np.uint64({block}))
clear(lanes[task], width)
row, part = lo // max(columns, np.uint64(1)), lo // max(step, np.uint64(1)) * columns
{zero}
while lo < hi:  # a row
{values}
    first, end = lo, lo + columns
    while first < end:
        for i in range(first, min(first + width, end)):
{loop}
        first += width
{sums}
    lo = end
    row += np.uint64(1)
{done}"""


# A chunk is a run of the rows that are touched. Rows behind the step catch up first, with a gradient of zeros.
_TOUCHED = """\
columns, places_at = addresses[segment, {columns}], uint64_at(addresses[segment, {places}])
{once}
for place in range(lo, hi):
    row = places_at[np.uint64(2) * place]
    first = row * columns
    shift = (places_at[np.uint64(2) * place + np.uint64(1)] * columns - first) * np.uint64({itemsize})
{steps}"""

_LAZY = """\
g_at = {dtype}_at(addresses[segment, 1] + shift)
for i in range(first, first + columns):
{loop}"""

_ROW = """\
group = steps_at[row]
steps_at[row] = group + np.uint64(1)
{columns}
g_at = {dtype}_at(addresses[segment, 1] + shift)
for i in range(first, first + columns):
{loop}"""

_EXACT = """\
group = steps_at[row]
steps_at[row] = end
while group <= now:
{columns}
    g_at = {dtype}_at(addresses[segment, 1] + shift if group == present else zeros - first * np.uint64({itemsize}))
    for i in range(first, first + columns):
{loop}
    group += np.uint64(1)"""


def touched(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines of text of the loop over the rows that a gradient touches."""
    place = {n: lowered.buffers.index(n) for n in lowered.between}
    loop = _loads(lowered, q, of)
    loop += q.body
    loop += _stores(lowered, q, of)
    once = _noises(lowered, loop)
    once += [f"{n.name} = real(reduced[segment, {n.slot}])" for n in q.uses]
    buffers = _buffers(lowered, q) - {"g"}
    once += [f"{b}_at = {text.pointer(lowered, b, of[b])}" for b in lowered.buffers if b in buffers]
    columns = text.columns(lowered, loop + once, "{}")
    how = {"dtype": of["g"], "itemsize": of["g"].itemsize}
    if lowered.touched == "lazy":
        once = columns + once
        steps = _LAZY.format(loop=text.indent(loop, 4), **how)
    else:
        exact = lowered.touched == "exact"
        once += [f"{n} = addresses[segment, {place[n]}]" for n in ("now", "present", "end", "zeros") if exact]
        once += [f"steps_at = uint64_at(addresses[segment, {place['steps']}])"]
        steps = (_EXACT if exact else _ROW).format(
            columns=text.indent(columns, 4 * exact), loop=text.indent(loop, 4 + 4 * exact), **how
        )
    frame = _TOUCHED.format(
        columns=place["columns"],
        places=place["places"],
        once="\n".join(once),
        itemsize=of["g"].itemsize,
        steps=text.indent(steps.splitlines(), 4),
    )
    return [line for line in frame.splitlines() if line.strip()]


def elements(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines of text; `of`: how every buffer is stored."""
    if lowered.touched:
        return touched(lowered, q, of)
    rows = [n for n in q.uses if n.level is Level.ROW]
    columns = [n for n in q.uses if n.level is Level.COLUMN]
    of_rows, of_columns, of_all = ([(n, v) for n, v in q.totals if n.level is level] for level in _LEVELS)
    loop = [f"{n.name} = real({n.vector}_at[i - lo])" for n in columns]
    loop += _loads(lowered, q, of)
    loop += q.body
    loop += _stores(lowered, q, of)
    loop += [f"lanes[task, {_slot(n)}, i - first] += wide({value})" for n, value in (*of_all, *of_rows)]
    loop += [f"{_part(n)}_at[part + (i - lo)] += wide({value})" for n, value in of_columns]

    buffers = dict.fromkeys(b for b in lowered.buffers if b in _buffers(lowered, q))
    buffers |= dict.fromkeys([n.vector for n in (*rows, *columns, *(n for n, _ in of_rows))])
    buffers |= dict.fromkeys([_part(n) for n, _ in of_columns])
    unpack = _noises(lowered, [*loop, *_encode(lowered, q, lowered.scales.values())])
    unpack = text.columns(lowered, loop + unpack, "{}") + unpack
    unpack += [f"{n.name} = real(reduced[segment, {n.slot}])" for n in q.uses if n.level is Level.REDUCED]
    blocked = [b for b in buffers if of[b].blocked]
    unpack += [f"{b}_at = {text.pointer(lowered, b, of[b])}" for b in buffers if b not in blocked]
    unpack += [f"{b}_codes_at = {text.pointer(lowered, b, of[b])}" for b in blocked]
    unpack += [f"{s}_at = {text.pointer(lowered, s, of[s])}" for s, b in lowered.scales.items() if b in blocked]
    done = [f"partials[chunk, {_slot(n)}] = drain(lanes[task, {_slot(n)}], width)" for n, _ in of_all]
    if rows or columns or of_rows or of_columns:
        frame = _ROWS.format(
            columns=lowered.buffers.index("columns"),
            step=lowered.buffers.index("step"),
            block=BLOCK,
            zero="\n".join(f"clear_part({_part(n)}_at, part, columns)" for n, _ in of_columns),
            values=text.indent([f"{n.name} = real({n.vector}_at[row])" for n in rows], 4),
            loop=text.indent(loop, 12),
            sums=text.indent([f"{n.vector}_at[row] = drain(lanes[task, {_slot(n)}], width)" for n, _ in of_rows], 4),
            done="\n".join(done),
        )
    elif blocked:
        frame = _BLOCKS.format(
            block=BLOCK,
            clear=f"width = min(hi - lo, np.uint64({BLOCK}))\nclear(lanes[task], width)" if of_all else "",
            decode=text.indent(_decode(lowered, q, blocked), 4),
            loop=text.indent(loop, 8),
            encode=text.indent(_encode(lowered, q, blocked), 4),
            done="\n".join(done),
        )
    elif of_all:
        frame = _SUMS.format(block=BLOCK, loop=text.indent(loop, 8), done="\n".join(done))
    else:
        frame = _PLAIN.format(loop=text.indent(loop, 4)) if loop else ""
    return [*unpack, *(line for line in frame.splitlines() if line.strip())]


def _buffers(lowered: Lowered, q: Pass) -> set[str]:
    """What a pass reads or writes, of each element."""
    used = {b for _, b in q.loads} | {b for b, _ in q.stores}
    return used | {"master"} if lowered.master and "p" in used else used


def _loads(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    return [
        f"{local} = {masters.load(lowered.master, of)}"
        if b == "p" and lowered.master
        else f"{local} = {text.load(b, f'{b}_at[i]', of)}"
        for local, b in q.loads
    ]


def _stores(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    chances = text.chances(lowered)
    lines = []
    for b, value in q.stores:
        if b == "p" and lowered.master:
            lines += masters.store(lowered.master, of, value)
        else:
            lines.append(f"{b}_at[i] = {text.result(b, value, of, chances)}")
    rolled = sorted(word for word in text.words(lines) if re.fullmatch(r"dice_\d+", word))
    return [f"{word} = dice(key_{word[5:]}, i)" for word in rolled] + lines


def _decode(lowered: Lowered, q: Pass, blocked: Iterable[str]) -> list[str]:
    lines, loaded = [], [b for _, b in q.loads]
    for b in blocked:
        k = list(lowered.scales.values()).index(b)
        lines.append(f"{b}_at = float32_at(rooms[task] + np.uint64({k * 4 * BLOCK}) - np.uint64(4) * first)")
        if b in loaded:
            lines.append(f"load_block({b}_codes_at, {b}_scale_at, {b}_at, first, end)")
    return lines


def _encode(lowered: Lowered, q: Pass, blocked: Iterable[str]) -> list[str]:
    stored = [b for b, _ in q.stores if b in blocked]
    places = [f"{b}_codes_at, {b}_scale_at, {b}_at, first, end" for b in stored]
    return [
        f"round_block({at}, key_{b})" if b in lowered.rounded else f"store_block({at})"
        for b, at in zip(stored, places, strict=True)
    ]


def _noises(lowered: Lowered, loop: list[str]) -> list[str]:
    named = [(key, seed) for key, seed in lowered.noises if key in text.words(loop)]
    key = f"addresses[segment, {lowered.buffers.index('key')}]" if named else ""
    keys = [f"{name} = noise_key({seed}, clock[0], {key}, {name[5:]})" for name, seed in named]
    words = [*map(str, range(len(lowered.rounded))), *lowered.scales.values()]
    rolled = {f"key_{w}": k for k, w in enumerate(words) if f"key_{w}" in text.words(loop)}
    key = f"addresses[segment, {lowered.buffers.index('key')}]" if rolled else ""
    return keys + [f"{name} = dice_key(clock[0], {key}, {k})" for name, k in rolled.items()]


_LEVELS = (Level.ROW, Level.COLUMN, Level.REDUCED)


def _slot(n: Number) -> int:
    assert n.total is not None
    return n.total[0]


def _part(n: Number) -> str:
    return f"partial{_slot(n)}"
