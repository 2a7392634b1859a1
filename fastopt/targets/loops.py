"""The loop over the elements of a chunk on the CPU: plain, with running sums, or row by row."""

from fastopt.codecs import Codec
from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import Level
from fastopt.targets import text

BLOCK = 256  # running sums side by side in float64, 2 KiB: no addition waits for the one before it

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


def elements(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """Lines of text; `of`: how every buffer is stored."""
    rows = [n for n in q.uses if n.level is Level.ROW]
    columns = [n for n in q.uses if n.level is Level.COLUMN]
    of_rows, of_columns, of_all = ([(n, v) for n, v in q.totals if n.level is level] for level in _LEVELS)
    loop = [f"{n.name} = real({n.vector}_at[i - lo])" for n in columns]
    loop += [f"{local} = {text.load(b, f'{b}_at[i]', of)}" for local, b in q.loads]
    loop += q.body
    loop += [f"{b}_at[i] = {text.result(b, value, of)}" for b, value in q.stores]
    loop += [f"lanes[task, {_slot(n)}, i - first] += wide({value})" for n, value in (*of_all, *of_rows)]
    loop += [f"{_part(n)}_at[part + (i - lo)] += wide({value})" for n, value in of_columns]

    buffers = dict.fromkeys([b for _, b in q.loads] + [b for b, _ in q.stores])
    buffers |= dict.fromkeys([n.vector for n in (*rows, *columns, *(n for n, _ in of_rows))])
    buffers |= dict.fromkeys([_part(n) for n, _ in of_columns])
    unpack = noises(lowered, loop)
    unpack = text.columns(lowered, loop + unpack, "{}") + unpack
    unpack += [f"{n.name} = real(reduced[segment, {n.slot}])" for n in q.uses if n.level is Level.REDUCED]
    unpack += [f"{b}_at = {text.pointer(lowered, b, of[b])}" for b in buffers]
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
    elif of_all:
        frame = _SUMS.format(block=BLOCK, loop=text.indent(loop, 8), done="\n".join(done))
    else:
        frame = _PLAIN.format(loop=text.indent(loop, 4)) if loop else ""
    return [*unpack, *(line for line in frame.splitlines() if line.strip())]


def noises(lowered: Lowered, loop: list[str]) -> list[str]:
    """Lines that make the keys of the random numbers that the loop draws."""
    named = [(key, seed) for key, seed in lowered.noises if key in text.words(loop)]
    key = f"addresses[segment, {lowered.buffers.index('key')}]" if named else ""
    return [f"{name} = noise_key({seed}, clock[0], {key}, {name[5:]})" for name, seed in named]


_LEVELS = (Level.ROW, Level.COLUMN, Level.REDUCED)


def _slot(n: Number) -> int:
    assert n.total is not None
    return n.total[0]


def _part(n: Number) -> str:
    return f"partial{_slot(n)}"
