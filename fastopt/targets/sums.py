"""Sums in an order that depends on nothing but the count of numbers. Used by generated code alone.

A kernel adds the elements of a chunk to `lanes` running sums in turn; these are added up at the chunk's end, and the
chunks' sums, in order, when all threads are done.
"""

import numpy as np
from numba import njit


@njit
def clear(lanes, width):
    """Set the first `width` lanes of every total, a row each, to 0."""
    for k in range(lanes.shape[0]):
        for i in range(width):
            lanes[k, i] = 0.0


@njit
def drain(row, count):
    """The sum of the first `count` numbers of a float64 row, which are 0 afterwards; its length is a power of 2.

    Halves are added to halves: loops without a carried sum, so they vectorise, and with the same order of additions
    whatever the width of the vectors.
    """
    half = np.uint64(8)
    while np.uint64(2) * half < count:
        half *= np.uint64(2)
    for i in range(count, np.uint64(2) * half):
        row[i] = 0.0
    while half > np.uint64(0):
        for i in range(half):
            row[i] += row[i + half]
        half >>= np.uint64(1)
    total = row[np.uint64(0)]
    for i in range(count):
        row[i] = 0.0
    return total


@njit
def gather(parameters, partials, reduced, k):
    """Total `k` of every parameter: its chunks' sums, in order, whichever thread made them."""
    for row in range(parameters.shape[0]):
        total = 0.0
        for chunk in range(parameters[row, 2], parameters[row, 3]):
            total += partials[chunk, k]
        reduced[parameters[row, 0], k] = total


@njit
def everywhere(reduced, k):
    """Total `k` over all parameters, in order."""
    total = 0.0
    for segment in range(reduced.shape[0]):
        total += reduced[segment, k]
    return total


@njit
def of_group(reduced, k, segment):
    """Total `k` over the parameters of a group, in order; the last column says which they are."""
    column, total = reduced.shape[1] - 1, 0.0
    for other in range(reduced.shape[0]):
        if reduced[other, column] == reduced[segment, column]:
            total += reduced[other, k]
    return total


@njit
def clear_part(part, first, columns):
    """Set a chunk's part of the sums of columns to 0."""
    for j in range(columns):
        part[first + j] = 0.0


@njit
def add_columns(part, total, parameter):
    """The sums of the columns of a parameter: its chunks' parts, in order."""
    columns = parameter[6]
    for j in range(columns):
        total[j] = 0.0
    for chunk in range(parameter[3] - parameter[2]):
        for j in range(columns):
            total[j] += part[chunk * columns + j]
