"""What the CUDA target computes between two passes, in float64: a block per parameter, its threads share the vectors.

A thread meets the same rows and columns in every statement, so only sums over threads, and what thread 0 writes for
all, need barriers.
"""

from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import VECTORS, Level
from fastopt.targets import text

_NUMBERS = """

def numbers_{q}(n_chunks, n_parameters, work, addresses, hyper, control, clock, parameters, reduced, partials):
    if control[1] != 0.0:  # the step is skipped
        return
{shared}    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64({threads})
    parameter, blocks = np.uint64(cuda.blockIdx.x), np.uint64(cuda.gridDim.x)
    while parameter < n_parameters:
        entry = parameter * np.uint64(8)
        segment, group = parameters[entry], parameters[entry + np.uint64(1)]
        first, last = parameters[entry + np.uint64(2)], parameters[entry + np.uint64(3)]
        n_elements, n_rows = parameters[entry + np.uint64(4)], parameters[entry + np.uint64(5)]
        n_columns = parameters[entry + np.uint64(6)]
        table, numbers = segment * np.uint64({buffers}), segment * np.uint64({slots})
        column = group * np.uint64({columns})
{lines}
        parameter += blocks
"""

# One block, between two passes, for totals over all parameters: they are left in the first chunk's row.
_GATHER = """

def gather_{q}(n_chunks, n_parameters, work, addresses, hyper, control, clock, parameters, reduced, partials):
    if control[1] != 0.0 or cuda.blockIdx.x != 0:
        return
    sums = cuda.shared.array((1, {threads}), np.float64)
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64({threads})
{lines}
"""

_SUM = """\
whole, chunk = 0.0, {first}
while chunk < {last}:
    whole += partials[chunk * np.uint64({totals}) + np.uint64({k})]
    chunk += threads
{name} = block_total(sums, thread, whole, threads)"""

# Of the parameters of a group: those whose last column is the same.
_GROUP = """\
whole, other = 0.0, np.uint64(0)
while other < n_parameters:
    seat = other * np.uint64(8)
    if parameters[seat + np.uint64(7)] == parameters[entry + np.uint64(7)]:
        chunk = parameters[seat + np.uint64(2)] + thread
        while chunk < parameters[seat + np.uint64(3)]:
            whole += partials[chunk * np.uint64({totals}) + np.uint64({k})]
            chunk += threads
    other += np.uint64(1)
{name} = block_total(sums, thread, whole, threads)"""

_COLUMNS = """\
part_at = addresses[table + np.uint64({part})]
j = thread
while j < n_columns:
    whole, d = 0.0, j
    while d < (last - first) * n_columns:
        whole += float64_load(part_at, d, 1)[0]
        d += n_columns
    float64_store({name}_at, j, (whole,))
    j += threads"""

_SIDE = {Level.ROW: "n_rows", Level.COLUMN: "n_columns"}
_COUNTS = {"count": "n_elements", "rows": "n_rows", "columns": "n_columns"}


def everywhere(q: Pass) -> list[int]:
    """The totals over all parameters that are known from this pass on."""
    return list(dict.fromkeys(n.total[0] for n in q.numbers if n.total and n.total[1] == "all"))


def gather(k: int, q: Pass, totals: int, threads: int) -> str:
    """The text of the kernel that adds up the totals over all parameters before pass `k`; "" if there are none."""
    lines: list[str] = []
    for t in everywhere(q):
        lines += _sum(f"total{t}", "thread", "n_chunks", t, totals)
        lines += ["if thread == np.uint64(0):", f"    partials[{t}] = total{t}"]
    return _GATHER.format(q=k, threads=threads, lines=text.indent(lines, 4)) if lines else ""


def function(k: int, lowered: Lowered, q: Pass, totals: int, threads: int) -> str:
    """The text of the kernel that computes the numbers of pass `k`; "" if it has none."""
    if not q.numbers:
        return ""
    known = {n.name: n for n in (*q.earlier, *q.numbers)}
    statements: list[str] = []
    for n in q.earlier:
        statements += [_pointer(lowered, n)] if n.level in VECTORS else [f"{n.name} = reduced[{_slot(n)}]"]
    for n in q.numbers:
        statements += (_vector if n.level in VECTORS else _scalar)(lowered, n, known, totals)
    written = [n for n in q.numbers if n.level not in VECTORS]
    kept = [(known[new], _address(lowered, state)) for state, new in q.kept]
    for n, at in kept:
        if n.level in VECTORS:
            statements += [f"{n.name}_to = {at}", *_each(n.level, [f"{_store(f'{n.name}_to', f'{n.name}_at')}"])]
    if written:
        scalars = [f"reduced[{_slot(n)}] = {n.name}" for n in written]
        scalars += [f"float64_store({at}, np.uint64(0), ({n.name},))" for n, at in kept if n.level not in VECTORS]
        statements += ["cuda.syncthreads()  # all threads have read what thread 0 now writes"]
        statements += ["if thread == np.uint64(0):", *(f"    {line}" for line in scalars)]
    return _NUMBERS.format(
        q=k,
        shared=f"    sums = cuda.shared.array((1, {threads}), np.float64)\n"
        if any("block_total(" in line for line in statements)
        else "",
        threads=threads,
        buffers=len(lowered.buffers),
        slots=lowered.slots,
        columns=len(text.names(lowered)),
        lines=text.indent(_columns(lowered, q) + statements, 8),
    )


def _columns(lowered: Lowered, q: Pass) -> list[str]:
    named = text.words([n.text for n in q.numbers])
    hyper = enumerate(text.names(lowered))
    return [f"{n} = wide(hyper[column + np.uint64({k})])" for k, n in hyper if n in named]


def _slot(n: Number) -> str:
    return f"numbers + np.uint64({n.slot})"


def _address(lowered: Lowered, buffer: str) -> str:
    return f"addresses[table + np.uint64({lowered.buffers.index(buffer)})]"


def _pointer(lowered: Lowered, n: Number) -> str:
    return f"{n.name}_at = {_address(lowered, n.vector)}"


def _store(to: str, source: str) -> str:
    return f"float64_store({to}, j, (float64_load({source}, j, 1)[0],))"


def _each(level: Level, lines: list[str]) -> list[str]:
    """The lines for every row or column `j`."""
    return ["j = thread", f"while j < {_SIDE[level]}:", *(f"    {line}" for line in lines), "    j += threads"]


def _sum(name: str, first: str, last: str, k: int, totals: int) -> list[str]:
    return _SUM.format(name=name, first=first, last=last, totals=totals, k=k).splitlines()


def _scalar(lowered: Lowered, n: Number, known: dict[str, Number], totals: int) -> list[str]:
    value = text.wide(n.text, lowered)
    if n.inner in VECTORS:
        each = _each(n.inner, [*_named(n, known), f"whole += {value}"])
        return ["whole = 0.0", *each, f"{n.name} = block_total(sums, thread, whole, threads)"]
    if n.total:
        k, over = n.total
        if over == "all":
            return [f"{n.name} = partials[{k}]  # the sum over all, see gather"]
        if over == "group":
            return _GROUP.format(name=n.name, totals=totals, k=k).splitlines()
        return _sum(n.name, "first + thread", "last", k, totals)
    if n.state:
        return [f"{n.name} = float64_load({_address(lowered, n.state)}, np.uint64(0), 1)[0]"]
    return [f"{n.name} = {value}" if n.text else f"{n.name} = wide({_COUNTS[n.name]})"]


def _vector(lowered: Lowered, n: Number, known: dict[str, Number], totals: int) -> list[str]:
    lines = [_pointer(lowered, n)]
    if n.total:
        k, over = n.total  # rows were summed where they were read; columns are still in parts, one a chunk
        if over == "column":
            part = lowered.buffers.index(f"partial{k}")
            lines += _COLUMNS.format(part=part, name=n.name).splitlines()
    elif n.state:
        lines += [f"{n.name}_from = {_address(lowered, n.state)}"]
        lines += _each(n.level, [_store(f"{n.name}_at", f"{n.name}_from")])
    else:
        new = f"float64_store({n.name}_at, j, ({text.wide(n.text, lowered)},))"
        lines += _each(n.level, [*_named(n, known), new])
    return lines


def _named(n: Number, known: dict[str, Number]) -> list[str]:
    """Reads of the vectors that a statement names, at j."""
    vectors = [known[w] for w in sorted(text.words([n.text])) if w in known and known[w].level in VECTORS]
    return [f"{v.name} = float64_load({v.name}_at, j, 1)[0]" for v in vectors]
