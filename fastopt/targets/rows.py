"""The loop of a CPU kernel over the rows that a gradient touches: all passes over a row, then the next row."""

import re
from dataclasses import replace

from fastopt.blocks import BLOCK
from fastopt.codecs import Codec
from fastopt.lowered import COPY, Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import Level
from fastopt.targets import loops, text

POINTERS = {**dict.fromkeys(("lazy", "exact", "row"), ("uint64",)), "closed": ("uint64", "float64")}  # of tables

# A chunk is a run of the rows that are touched. Several gradients of one row are added up first.
_TOUCHED = """\
length = addresses[segment, {columns}]
stride = length * np.uint64({itemsize})
places_at, order_at = uint64_at(addresses[segment, {places}]), uint64_at(addresses[segment, {order}])
values, final = addresses[segment, 1], places_at[np.uint64(2) * hi + np.uint64(1)] - np.uint64(1)
own = addresses[segment, {sums}] + np.uint64(task) * (stride + np.uint64(64))
{once}
for place in range(lo, hi):
    row = places_at[np.uint64(2) * min(place + AHEAD, hi - np.uint64(1))]
{fetches}
    seat = np.uint64(2) * place
    row, begin, end = places_at[seat], places_at[seat + np.uint64(1)], places_at[seat + np.uint64(3)]
    first = row * length
    fetch(values + order_at[min(begin + AHEAD, final)] * stride, stride)
    given = values + order_at[begin] * stride
    if end > begin + np.uint64(1):
        add({gradient}_at(values), order_at, begin, end, final, length, {gradient}_at(own), values, stride)
        given = own
    given -= first * np.uint64({itemsize})
{steps}"""

_LAZY = """\
g_at = {gradient}_at(given)
{passes}"""

_ROW = """\
group = steps_at[row]
steps_at[row] = group + np.uint64(1)
{columns}
g_at = {gradient}_at(given)
{passes}"""

# Rows behind the step catch up first, with a gradient of zeros.
_EXACT = """\
group = steps_at[row]
steps_at[row] = stop
while group <= now:
{columns}
    g_at = {gradient}_at(given if group == present else zeros - first * np.uint64({itemsize}))
{passes}
    group += np.uint64(1)"""

# What rows have missed is one product.
_CLOSED = """\
group = steps_at[row]
steps_at[row] = stop
if group < now:
    compose(products_at, group, now, room_)
{matrix}
{product}
if present == now:
    group = np.uint64(0)
    g_at = {gradient}_at(given)
{passes}"""

_PLAIN = """\
for i in range(first, first + length):
{loop}"""

# With running sums side by side, or state in 8 bits, of which a row is a whole number of blocks: see `loops.py`.
_STRIPS = """\
start = first
while start < first + length:
{before}
    for i in range(start, min(start + width, first + length)):
{loop}
{encode}
    start += width
{sums}"""


def before(lowered: Lowered) -> Pass:
    """The numbers about the parameter that are known before the loop."""
    q = lowered.passes[0]
    numbers = tuple(n for q in lowered.passes for n in q.numbers if not _inside(lowered, n))
    kept = tuple((s, new) for s, new in q.kept if new in {n.name for n in numbers})
    return replace(q, earlier=(), numbers=numbers, kept=kept)


def elements(lowered: Lowered, of: dict[str, Codec]) -> list[str]:
    """Lines of text; `of`: how every buffer is stored."""
    place = {n: lowered.buffers.index(n) for n in lowered.between}
    # gradients of rows are made anew for every step: none is set to 0
    kept = [replace(q, stores=tuple(s for s in q.stores if s[0] != "g")) for q in lowered.passes]
    passes = [line for q in kept for line in _pass(lowered, q, of)]
    used = {b for q in kept for b in loops.used(lowered, q)}
    used |= {s for s, level in lowered.numbers.items() if level is Level.ROW}
    buffers = [b for b in lowered.buffers if b in used and b != "g"]
    noises = loops.noises(lowered, passes)
    once = [f"{n.name}_wide = reduced[segment, {n.slot}]" for n in before(lowered).numbers]
    once += loops.pointers(lowered, buffers, of)
    if lowered.scales:
        once += ["widest()", f"blocks = length // np.uint64({BLOCK})"]
    if lowered.scales or any(q.totals for q in lowered.passes):
        once += [f"width = min(length, np.uint64({BLOCK}))"]
    if any(q.totals for q in lowered.passes):
        once += ["clear(lanes[task], width)"]
    columns = text.columns(lowered, passes + noises, "{}")
    how = {"gradient": of["g"], "itemsize": of["g"].itemsize}
    once = noises + once
    if lowered.touched == "lazy":
        once = columns + once
        steps = _LAZY.format(passes="\n".join(passes), **how)
    else:
        known = {"now": "now", "present": "present", "stop": "end", "zeros": "zeros"}
        once += [f"{n} = addresses[segment, {place[b]}]" for n, b in known.items() if b in place]
        once += [f"steps_at = uint64_at(addresses[segment, {place['steps']}])"]
        if lowered.touched == "row":
            steps = _ROW.format(columns="\n".join(columns), passes="\n".join(passes), **how)
        elif lowered.touched == "exact":
            steps = _EXACT.format(columns=text.indent(columns, 4), passes=text.indent(passes, 4), **how)
        else:
            live = ["p", *lowered.state]
            once += loops.pointers(lowered, [b for b in (*live, *lowered.scales) if b not in buffers], of)
            once += [*columns, f"products_at = float64_at(addresses[segment, {place['products']}])"]
            once += [f"room_ = np.empty((2, {len(live)}, {len(live)}))"]
            matrix, product = _product(lowered, live, of)
            steps = _CLOSED.format(
                matrix=text.indent(matrix, 4), product=text.indent(product, 4), passes=text.indent(passes, 4), **how
            )
    frame = _TOUCHED.format(
        **{n: place[n] for n in ("columns", "places", "order", "sums")},
        once="\n".join(once),
        fetches=text.indent([_fetch(lowered, b, of[b]) for b in buffers], 4),
        steps=text.indent(steps.splitlines(), 4),
        **how,
    )
    return [line for line in frame.splitlines() if line.strip()]


def _product(lowered: Lowered, live: list[str], of: dict[str, Codec]) -> tuple[list[str], list[str]]:
    """Lines that take a matrix out of its room, and those that multiply the elements of a row by it."""
    d = range(len(live))
    matrix = [f"m{i}_{j}_ = real(room_[0, {i}, {j}])" for i in d for j in d]
    values = [" + ".join(f"m{i}_{j}_ * x{j}_" for j in d) for i in d]
    stores = (*zip(live, values, strict=True), *(((COPY, values[0]),) if COPY in of else ()))
    q = replace(lowered.passes[0], loads=tuple((f"x{j}_", b) for j, b in enumerate(live)), stores=stores)
    return matrix, _row(lowered, replace(q, body=(), totals=()), of)


def _fetch(lowered: Lowered, buffer: str, codec: Codec) -> str:
    width = "" if buffer in lowered.numbers else " * blocks" if buffer in lowered.scales else " * length"
    start = f"addresses[segment, {lowered.buffers.index(buffer)}] + row{width} * np.uint64({codec.itemsize})"
    return f"fetch({start}, np.uint64({codec.itemsize}){width})"


def _pass(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """One pass over a row: its numbers, in float64, then its elements."""
    lines = [line for n in q.numbers if _inside(lowered, n) for line in _number(lowered, n)]
    lines += [f"{s}_at[row] = {new}_wide" for s, new in q.kept if lowered.numbers[s] is Level.ROW]
    lines += [f"{n.name} = real({n.name}_wide)" for n in q.uses]
    return lines + _row(lowered, q, of)


def _row(lowered: Lowered, q: Pass, of: dict[str, Codec]) -> list[str]:
    """The elements of a row."""
    loop = [*loops.loads(lowered, q, of), *q.body, *loops.stores(lowered, q, of)]
    totals = [(n.total[0], n.name, value) for n, value in q.totals if n.total]
    loop += [f"lanes[task, {k}, i - start] += wide({value})" for k, _, value in totals]
    if totals or loops.blocked(lowered, q):
        return _STRIPS.format(
            before=text.indent(loops.before(lowered, q, "start"), 4),
            loop=text.indent(loop, 8),
            encode=text.indent(loops.encode(lowered, q, "start", "start + width"), 4),
            sums="\n".join(f"{name}_wide = drain(lanes[task, {k}], width)" for k, name, _ in totals),
        ).splitlines()
    return _PLAIN.format(loop=text.indent(loop, 4)).splitlines() if loop else []


def _inside(lowered: Lowered, n: Number) -> bool:
    """Does a number differ from row to row: as one of the row, or because rows are at different steps?"""
    return n.level is Level.ROW or (bool(n.text) and lowered.touched != "lazy")


def _number(lowered: Lowered, n: Number) -> list[str]:
    """A number of a row; a total is known already."""
    if n.total:
        return []
    if n.state:
        return [f"{n.name}_wide = {n.state}_at[row]"]
    columns, numbers = text.names(lowered), {n.name for q in lowered.passes for n in q.numbers}

    def meant(found: re.Match[str]) -> str:
        word = found[0]
        return f"{word}_wide" if word in numbers else f"wide({word})" if word in columns else word

    value = re.sub(r"[A-Za-z_]\w*", meant, text.wide(n.text, lowered))
    return [f"{n.name}_wide = {value}"]
