"""The loop of a pass that looks at rows or columns: a block takes a chunk's rows, several at once if they are short."""

from fastopt.statements import Level
from fastopt.targets import text
from fastopt.targets.cuda_elements import Elements, misaligned, slot

# `across` threads share a row, `down` rows are under way. A column belongs to the same threads in every row, so its sum
# is theirs alone: in shared memory if one turn covers a row, else in the chunk's part of the sums, where down is 1.
_ROWS = """\
columns = addresses[table + np.uint64({columns})]
row = lo // max(columns, np.uint64(1))
vectors = {aligned}
width = np.uint64({lanes}) if vectors else np.uint64(1)
across, shift = np.uint64(1), np.uint64(0)
while across < threads and across * width < columns:
    across *= np.uint64(2)
    shift += np.uint64(1)
mine, line, down = thread & (across - np.uint64(1)), thread >> shift, threads >> shift
{clear}first = lo
while first < hi:
    start = first + line * columns
{zero}    if start < hi:
{values}        j = mine * width
        if vectors:
            while j < columns:
                i = start + j
{vector}
                j += across * width
        else:
            while j < columns:
                i = start + j
{scalar}
                j += across
{fold}    first += down * columns
    row += down
{parts}"""

_CLEAR = """\
step = addresses[table + np.uint64({step})]
part = lo // max(step, np.uint64(1)) * columns
narrow = columns <= across * width
j = thread
if narrow:
    while j < np.uint64({seats}):
{seats_zero}
        j += threads
else:
    while j < columns:
{parts_zero}
        j += threads
cuda.syncthreads()
"""

_PARTS = """\
if narrow:
    cuda.syncthreads()
    j = thread
    while j < columns:
        seat = j if vectors else j * np.uint64({lanes})
{sums}
        j += threads
    cuda.syncthreads()
"""


def shared(it: Elements, threads: int) -> list[str]:
    """Shared memory for the sums of columns."""
    count = len(it.sums(Level.COLUMN))
    return [f"seats = cuda.shared.array(({count}, {threads * it.lanes}), np.float64)"] if count else []


def loop(it: Elements, threads: int) -> str:
    rows = [slot(n) for n, _ in it.sums(Level.ROW)]
    fold = [f"sums[np.uint64({k}), thread] = sum{t}" for k, t in enumerate(rows)]
    if rows:
        fold += [f"fold(sums, np.uint64({len(rows)}), thread, across)", "if mine == np.uint64(0) and start < hi:"]
        for k, (n, _) in enumerate(it.sums(Level.ROW)):
            fold.append(f"    float64_store({n.vector}_at, row + line, (sums[np.uint64({k}), thread],))")
    values = [
        f"{n.name} = real(float64_load({n.vector}_at, row + line, 1)[0])" for n in it.q.uses if n.level is Level.ROW
    ]
    return _ROWS.format(
        columns=it.lowered.buffers.index("columns"),
        aligned=f"not {misaligned(it)} and columns % np.uint64({it.lanes}) == np.uint64(0)",
        lanes=it.lanes,
        clear=_clear(it, threads),
        zero=_block([f"sum{t} = 0.0" for t in rows], 4),
        values=_block(values, 8),
        vector=text.indent(it.lines(it.lanes), 16),
        scalar=text.indent(it.lines(1), 16),
        fold=_block(fold, 4),
        parts=_parts(it),
    )


def _clear(it: Elements, threads: int) -> str:
    slots = [slot(n) for n, _ in it.sums(Level.COLUMN)]
    if not slots:
        return ""
    return _CLEAR.format(
        step=it.lowered.buffers.index("step"),
        seats=threads * it.lanes,
        seats_zero=text.indent([f"seats[np.uint64({c}), j] = 0.0" for c in range(len(slots))], 8),
        parts_zero=text.indent([f"float64_store(partial{t}_at, part + j, (0.0,))" for t in slots], 8),
    )


def _parts(it: Elements) -> str:
    slots = [slot(n) for n, _ in it.sums(Level.COLUMN)]
    lines = []
    for c, t in enumerate(slots):
        lines += ["d, whole = np.uint64(0), 0.0", "while d < down:"]
        lines += [f"    whole += seats[np.uint64({c}), d * across * np.uint64({it.lanes}) + seat]"]
        lines += ["    d += np.uint64(1)", f"float64_store(partial{t}_at, part + j, (whole,))"]
    return _PARTS.format(lanes=it.lanes, sums=text.indent(lines, 8)) if slots else ""


def _block(lines: list[str], spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}\n" for line in lines)
