"""Which rows a sparse gradient touches, in order and each once. Used by generated code alone."""

import numpy as np
from numba import njit

from fastopt.targets.pointers import prefetch

_BITS = 12  # of a digit at most: its counters fit into the first-level cache
_ROW = 3  # a row's update in units of reading one gradient of it; what is shared out evenly
AHEAD = np.uint64(8)  # rows: far enough for memory to answer, near enough that the cache still has them
_LINE = np.uint64(64)
_LINES = np.uint64(16)  # of a row at most: what follows, the processor guesses by itself


@njit
def outside(indices, n_rows):
    """The position of the first index that is no row, or -1."""
    found = False
    for k in range(indices.size):  # unsigned, so that one comparison does; without an early end, so that it vectorises
        found |= np.uint64(indices[k]) >= np.uint64(n_rows)
    if found:
        for k in range(indices.size):
            if indices[k] < 0 or indices[k] >= n_rows:
                return k
    return -1


@njit
def ascending(indices):
    """Do they rise, so that there is nothing to sort and none occurs twice?"""
    for k in range(1, indices.size):
        if indices[k] <= indices[k - 1]:
            return False
    return True


@njit
def bits_of(x):
    """How many bits it takes to write the number x >= 0."""
    bits = 0
    while x >> bits:
        bits += 1
    return bits


@njit
def passes_for(size, bits):
    """(Passes, bits of a digit) that cost least to sort: a pass moves `size` numbers and adds up its counters."""
    best, cost = bits, 1 << 62
    for n in range(1, bits + 1):
        width = (bits + n - 1) // n
        if width <= _BITS and n * (2 * size + (1 << width)) < cost:
            best, cost = n, n * (2 * size + (1 << width))
    return best, (bits + best - 1) // best if best else 0


@njit
def sort(indices, n_rows, keys, other):
    """Fill the start of `keys` with row << b | position from the smallest on; returns b, the bits of a position.

    A radix sort of int64 from the last digit to the first, equal rows in the order given. `keys` and `other` may be
    longer than `indices`. Rows and positions together take 63 bits at most: a table and indices that took more would
    fill more memory than there is.
    """
    size = indices.size
    shift = bits_of(size - 1) if size else 0
    n, width = passes_for(size, bits_of(n_rows - 1))
    counts = np.zeros((n, (1 << width) + 1), np.uint32)
    source, target = (keys, other) if n % 2 == 0 else (other, keys)
    mask = (1 << width) - 1
    for k in range(size):
        index = indices[k]
        source[k] = (index << shift) | k
        for q in range(n):
            counts[q, 1 + (index & mask)] += np.uint32(1)
            index >>= width
    for q in range(n):
        for d in range(1 << width):
            counts[q, d + 1] += counts[q, d]
        down = shift + q * width
        for k in range(size):
            key = source[k]
            digit = (key >> down) & mask
            target[counts[q, digit]] = key
            counts[q, digit] += np.uint32(1)
        source, target = target, source
    return shift


@njit
def prepare(indices, n_rows, order, other, places, work):
    """Fill the tables of a launch; returns n, how many rows are touched.

    order: int64 (k,), where the gradients of each row are among those given, in the order given, row after row.
    places: uint64 (n + 1, 2), each row that is touched, from the first on, and where its part of `order` begins.
    work: columns lo and hi of its rows, one a thread, become the bounds of shares of `places`.
    """
    size, n = indices.size, 0
    if ascending(indices):
        for k in range(size):
            order[k], places[k, 0], places[k, 1] = k, indices[k], k
        n = size
    else:
        shift = sort(indices, n_rows, order, other)
        mask, before = (1 << shift) - 1, 0
        for k in range(size):
            row = order[k] >> shift
            if k == 0 or row != before:
                places[n, 0], places[n, 1] = row, k
                n += 1
            order[k], before = order[k] & mask, row
    places[n, 0], places[n, 1] = 0, size
    share(places, n, work)
    return n


@njit
def share(places, n, work):
    """Cut n places into shares that take nearly the same time. Only the first begins at 0: it counts the step."""
    size, m, j = int(places[n, 1]), work.shape[0], 0
    for t in range(m):
        work[t, 0] = j
        low, high = max(j, min(1, n)), n
        goal = (size + _ROW * n) * (t + 1) // m
        while low < high:
            middle = (low + high) // 2
            if int(places[middle, 1]) + _ROW * middle < goal:
                low = middle + 1
            else:
                high = middle
        j = work[t, 1] = low if t < m - 1 else n


@njit(inline="always")
def fetch(address, size):
    """Bring `size` bytes closer to the processor, while it does something else."""
    size += address % _LINE
    for line in range(min((size + _LINE - np.uint64(1)) // _LINE, _LINES)):
        prefetch(address + line * _LINE)


@njit
def add(values, order, begin, end, last, columns, sums, address, stride):
    """sums: the rows of `values` at begin..end of `order`, added in that order. All but the numbers are pointers.

    Those further on, `last` at most, are asked for: `address` is that of the values, `stride` the bytes of a row.
    """
    first = order[begin] * columns
    for i in range(columns):
        sums[i] = values[first + i]
    for k in range(begin + np.uint64(1), end):
        fetch(address + order[min(k + AHEAD, last)] * stride, stride)
        first = order[k] * columns
        for i in range(columns):
            sums[i] += values[first + i]


@njit
def compose(products, begin, end, room):
    """room[0]: the product of the matrices of steps begin..end - 1, by the binary tree of `missed.Products`.

    room: float64 (2, d, d).
    """
    d = room.shape[1]
    for i in range(d):
        for j in range(d):
            room[0, i, j] = 1.0 if i == j else 0.0
    first, end = np.int64(begin), np.int64(end)
    while first < end:
        size = 1
        while first % (2 * size) == 0 and first + 2 * size <= end:
            size *= 2
        at = (2 * first + size - 1) * d * d
        for i in range(d):
            for j in range(d):
                total = 0.0
                for k in range(d):
                    total += products[at + i * d + k] * room[0, k, j]
                room[1, i, j] = total
        for i in range(d):
            for j in range(d):
                room[0, i, j] = room[1, i, j]
        first += size
