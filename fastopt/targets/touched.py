"""Which rows a sparse gradient touches, in order and each once. Used by generated code alone."""

import numpy as np
from numba import njit

_BITS = 11  # of a digit: its counters fit into the first-level cache


@njit
def outside(indices, n_rows):
    """The position of the first index that is no row, or -1."""
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
def sort(indices, n_rows, order, other):
    """Fill the start of `order` with the positions of the indices from the smallest on, equal ones in the order given.

    A radix sort from the last digit to the first; `order` and `other` may be longer.
    """
    counts = np.zeros((1 << _BITS) + 1, np.int64)
    for k in range(indices.size):
        order[k] = k
    shift = 0
    while (n_rows - 1) >> shift:
        counts[:] = 0
        for k in range(indices.size):
            counts[1 + ((indices[k] >> shift) & ((1 << _BITS) - 1))] += 1
        for d in range(1 << _BITS):
            counts[d + 1] += counts[d]
        for k in range(indices.size):
            position = order[k]
            digit = (indices[position] >> shift) & ((1 << _BITS) - 1)
            other[counts[digit]] = position
            counts[digit] += 1
        for k in range(indices.size):
            order[k] = other[k]
        shift += _BITS


@njit
def distinct(indices, order, starts):
    """Where each run of equal indices begins in `order`, and its end last; returns the number of runs."""
    n = 0
    for k in range(indices.size):
        if k == 0 or indices[order[k]] != indices[order[k - 1]]:
            starts[n] = k
            n += 1
    starts[n] = indices.size
    return n


@njit
def prepare(indices, n_rows, order, other, starts, places):
    """Fill `places`, uint64 (n, 2): each row that is touched, from the first on, and where its gradient is; returns n.

    That is a row of the values, or, if some index occurs twice, one of the sums that `add` makes.
    """
    if ascending(indices):
        for k in range(indices.size):
            places[k, 0], places[k, 1] = indices[k], k
        return indices.size
    sort(indices, n_rows, order, other)
    n = distinct(indices, order, starts)
    for j in range(n):
        places[j, 0] = indices[order[starts[j]]]
        places[j, 1] = order[j] if n == indices.size else j
    return n


@njit
def add(values, order, starts, merged):
    """merged[j]: the sum of the rows of run j, in the order given. `values` and `merged` are 2-d."""
    for j in range(merged.shape[0]):
        first = order[starts[j]]
        for i in range(values.shape[1]):
            merged[j, i] = values[first, i]
        for k in range(starts[j] + 1, starts[j + 1]):
            row = order[k]
            for i in range(values.shape[1]):
                merged[j, i] += values[row, i]
