"""The kernel of a gradient of rows on CUDA: blocks walk the rows that are touched, several short ones at once."""

from dataclasses import replace

from fastopt.codecs import Codec
from fastopt.errors import DeviceError
from fastopt.lowered import Lowered
from fastopt.statements import VECTORS
from fastopt.targets import text
from fastopt.targets.cuda_elements import Elements
from fastopt.targets.cuda_loops import unpack

HEAD = 2  # numbers of the table of places before the first place: n, and how many gradients there are

# `across` threads share a row. Each column of it belongs to one of them, which adds up the column's gradients in the
# order given: no thread waits for another.
_KERNEL = """

def {name}(n_chunks, n_parameters, work, addresses, hyper, control, clock, parameters, reduced, partials):
    if control[1] != 0.0:  # the step is skipped
        return
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    segment, group = work[np.uint64(2)], work[np.uint64(3)]
{unpack}
    columns = addresses[table + np.uint64({columns})]
    places_at = addresses[table + np.uint64({places})]
    n = uint64_load(places_at, np.uint64(0), 1)[0]
    order = np.uint64({head}) + np.uint64(2) * (n + np.uint64(1))
    across, shift = np.uint64(1), np.uint64(0)
    while across < threads and across < columns:
        across *= np.uint64(2)
        shift += np.uint64(1)
    mine, down = thread & (across - np.uint64(1)), threads >> shift
    place = np.uint64(cuda.blockIdx.x) * down + (thread >> shift)
    while place < n:
        seat = np.uint64({head}) + np.uint64(2) * place
        first = uint64_load(places_at, seat, 1)[0] * columns
        begin = uint64_load(places_at, seat + np.uint64(1), 1)[0]
        end = uint64_load(places_at, seat + np.uint64(3), 1)[0]
        j = mine
        while j < columns:
            i = first + j
{update}
            j += across
        place += np.uint64(cuda.gridDim.x) * down
"""

_SUM = """\
g_sum = {dtype}_load(g_at, uint64_load(places_at, order + begin, 1)[0] * columns + j, 1)[0]
k = begin + np.uint64(1)
while k < end:
    g_sum += {dtype}_load(g_at, uint64_load(places_at, order + k, 1)[0] * columns + j, 1)[0]
    k += np.uint64(1)"""


def check(lowered: Lowered, rule: str) -> None:
    """Raise `DeviceError` for a rule that no kernel here can run, though the CPU's can."""
    if lowered.touched != "lazy":
        raise DeviceError(f"sparse={lowered.touched!r} of `{rule}` is for the CPU; on a GPU use sparse='lazy'.")
    if lowered.scales:
        raise DeviceError(
            f"`{rule}` cannot take a gradient of rows on a GPU: its state is in blocks of 8 bits; use "
            'state_dtype="bf16", or give it a dense gradient.'
        )
    numbers = [n for q in lowered.passes for n in q.numbers]
    if len(lowered.passes) > 1 or any(n.total or n.level in VECTORS or n.inner in VECTORS for n in numbers):
        raise DeviceError(
            f"`{rule}` cannot take a gradient of rows on a GPU: it sums over rows; give it a dense gradient, or the "
            "parameter's group another rule, such as fastopt.adagrad."
        )


def kernel(name: str, lowered: Lowered, of: dict[str, Codec], threads: int) -> str:
    """The text of the kernel of a rule's only pass. The table of places is described in `devices/rows.py`."""
    q = lowered.passes[0]
    # gradients of rows are made anew for every step: none is set to 0
    q = replace(q, stores=tuple(s for s in q.stores if s[0] != "g"))
    it, summed = Elements(name, lowered, q, of, threads), [local for local, b in q.loads if b == "g"]
    update = _SUM.format(dtype=of["g"]).splitlines() if summed else []
    for line in it.lines(1):
        into = line.partition(" = ")[0]
        update.append(f"{into} = (g_sum,)" if into in {f"{local}_in" for local in summed} else line)
    return it.function() + _KERNEL.format(
        name=name,
        unpack=text.indent(unpack(it), 4),
        columns=lowered.buffers.index("columns"),
        places=lowered.buffers.index("places"),
        head=HEAD,
        update=text.indent(update, 12),
    )
