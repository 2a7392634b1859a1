"""The kernel of a pass over elements on CUDA: blocks walk chunks with 16-byte accesses, and add up in a fixed order."""

from fastopt.codecs import Codec
from fastopt.errors import DeviceError
from fastopt.lowered import Lowered
from fastopt.passes import Pass
from fastopt.statements import VECTORS, Level
from fastopt.targets import cuda_blocks, cuda_rows, text
from fastopt.targets.cuda_elements import SHARED, Elements, misaligned, slot

# `while` loops: `for i in range(a, b, stride)` costs a 64-bit division.
_KERNEL = """

def {name}(n_chunks, n_parameters, work, addresses, hyper, control, clock, parameters, reduced, partials):
    if control[1] != 0.0:  # the step is skipped
        return
{shared}    thread, threads = np.uint64(cuda.threadIdx.x), {threads}
    chunk, blocks = np.uint64(cuda.blockIdx.x), np.uint64(cuda.gridDim.x)
    while chunk < n_chunks:
        entry = chunk * np.uint64(4)
        lo, hi = work[entry], work[entry + np.uint64(1)]
        segment, group = work[entry + np.uint64(2)], work[entry + np.uint64(3)]
{unpack}
{loop}
{done}        chunk += blocks
"""

# Arrays that are misaligned alike have a few single elements at both ends, others (foreign memory) nothing else.
_PLAIN = """\
{head}
start = lo + head
end = start + (hi - start) // np.uint64({lanes}) * np.uint64({lanes})
i = start + thread * np.uint64({lanes})
while i < end:
{vector}
    i += threads * np.uint64({lanes})
j, rest = thread, head + (hi - end)
while j < rest:
    i = lo + j if j < head else end + (j - head)
{scalar}
    j += threads"""


def kernel(name: str, lowered: Lowered, q: Pass, of: dict[str, Codec], totals: int, threads: int) -> str:
    """The text of a pass's kernel; "" if the pass looks at no element. `totals`: columns of `partials`."""
    it = Elements(name, lowered, q, of, threads)
    if not (q.stores or q.totals):
        return ""
    by_rows = any(n.level in VECTORS for n in (*q.uses, *(n for n, _ in q.totals)))
    flat = it.sums(Level.REDUCED)
    frame = cuda_rows.loop(it, threads) if by_rows else cuda_blocks.loop(it) if it.blocked else _plain(it)
    done = [f"sums[np.uint64({k}), thread] = sum{slot(n)}" for k, (n, _) in enumerate(flat)]
    if flat:
        done += [f"fold(sums, np.uint64({len(flat)}), thread, threads)", "if thread == np.uint64(0):"]
        done += [
            f"    partials[chunk * np.uint64({totals}) + np.uint64({slot(n)})] = sums[np.uint64({k}), thread]"
            for k, (n, _) in enumerate(flat)
        ]
    tables = max(len(flat), len(it.sums(Level.ROW)))
    shared = [f"sums = cuda.shared.array(({tables}, {threads}), np.float64)"] if tables else []
    shared += cuda_rows.shared(it, threads) if by_rows else []
    if (size := it.shared(it.lanes)) > SHARED:
        raise DeviceError(
            f"`{name}` adds up {len(q.totals)} totals at once, in {size:,} bytes of a CUDA block's {SHARED:,}; "
            "name fewer totals of columns in one formula, or run the rule on the CPU."
        )
    return it.function() + _KERNEL.format(
        name=name,
        shared="".join(f"    {line}\n" for line in shared),
        threads=f"np.uint64({threads})" if shared or by_rows or it.blocked else "np.uint64(cuda.blockDim.x)",
        unpack=text.indent(unpack(it), 8),
        loop=text.indent([f"sum{slot(n)} = 0.0" for n, _ in flat] + frame.splitlines(), 8),
        done="".join(f"        {line}\n" for line in done),
    )


def unpack(it: Elements) -> list[str]:
    """Lines that read what a segment has: columns, addresses, numbers."""
    lines = []
    if columns := it.columns(*(seed for _, seed in it.noises)):
        lines.append(f"column = group * np.uint64({len(text.names(it.lowered))})")
    for k, n in columns:
        lines.append(f"{n} = hyper[column + np.uint64({k})]" + (" * real(control[0])" if n == "scale" else ""))
    lines.append(f"table = segment * np.uint64({len(it.of)})")
    rows = [n.vector for n in (*it.q.uses, *(n for n, _ in it.sums(Level.ROW))) if n.level in VECTORS]
    parts = [f"partial{slot(n)}" for n, _ in it.sums(Level.COLUMN)]
    scales = [f"{b}_scale" for b in it.blocked]
    for b in dict.fromkeys([*it.buffers, *scales, *rows, *parts]):
        lines.append(f"{b}_at = addresses[table + np.uint64({it.lowered.buffers.index(b)})]")
    for name, seed in it.noises:  # numbered from 0
        key = f"addresses[table + np.uint64({it.lowered.buffers.index('key')})]"
        lines.append(f"{name} = noise_key({seed}, clock[0], {key}, {name.removeprefix('noise')})")
    rolled = {*it.dice, *(f"key_{b}" for b in it.stored if b in it.blocked and b in it.lowered.rounded)}
    for name, k in text.dice(it.lowered).items():
        if name in rolled:
            key = f"addresses[table + np.uint64({it.lowered.buffers.index('key')})]"
            lines.append(f"{name} = dice_key(clock[0], {key}, {k})")
    for n in it.q.uses:
        if n.level is Level.REDUCED:
            lines.append(f"{n.name} = real(reduced[segment * np.uint64({it.lowered.slots}) + np.uint64({n.slot})])")
    return lines


def _plain(it: Elements) -> str:
    return _PLAIN.format(
        head=_head(it),
        lanes=it.lanes,
        vector=text.indent(it.lines(it.lanes), 4),
        scalar=text.indent(it.lines(1), 4),
    )


def _head(it: Elements) -> str:
    """How many elements come before the first 16-byte boundary; all of them where there is none in common."""
    first, *others = it.buffers
    size = it.of[first].itemsize
    if any(it.of[b].itemsize != size for b in others):
        return f"head = hi - lo if {misaligned(it)} else np.uint64(0)"
    line = f"(np.uint64(16) - ({first}_at + lo * np.uint64({size})) % np.uint64(16)) % np.uint64(16)"
    lines = [f"head = min({line} // np.uint64({size}), hi - lo)"]
    if others:
        lines += [f"if ({' | '.join(f'({first}_at ^ {b}_at)' for b in others)}) & np.uint64(15) != np.uint64(0):"]
        lines += ["    head = hi - lo"]
    return "\n".join(lines)
