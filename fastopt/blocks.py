"""Numbers in 8 bits: blocks of 256, each with a float32 scale, the largest size in the block.

    a block with a number below 0    scale > 0, codes sign and 7 bits q:  +-scale * f(3, q) / f(3, 127)
    a block without one              scale < 0, codes 8 bits q:            -scale * f(4, q) / f(4, 255)

    f(n, q) = P(1 + q / n) - 1        P(s): the float32 whose bits are n times as far from those of 1 as the bits of s

The bits of a float32, read as an integer, are its logarithm but for straight lines between powers of two. So P is
nearly the power s^n, made of straight lines that meet where it is a power of two, which is on a level. Of a signed
block 32 levels halve the largest, 16 each the next three times, then 8 each three times, and so on; of an unsigned
block 32 each the first four times, then 16 each four times. The smallest level is 1.4e-5, or 6e-8, of the largest.
Such a map costs a few operations on integers, and is straight from one level to the next, so that a number rounded by
chance is right on average.

A kernel takes -0, too, for a number below 0. So second moments get a map of their own without anybody saying which
state is one. A number above 0 in such a block is never stored as 0, since rules divide by it. The steps between levels
grow with the number, as those of the dynamic map of Dettmers et al. 2022 (arXiv:2110.02861) do. A block that holds a
NaN or an infinity becomes NaN as a whole.

Kernels have functions of their own for this (targets/blocks.py); these are for people, tests and the start of a state.
"""

import numpy as np

BLOCK = 256  # elements, of the flat parameter; a chunk of work is a whole number of blocks
_AT_ONCE = 4096  # blocks: encoding takes some 60 bytes per element meanwhile
SIGNED, UNSIGNED = (3, 127), (4, 255)  # n, and the largest q
_ONE = np.float32(1).view(np.int32)


def levels(n: int, most: int) -> np.ndarray:
    """f(n, q) for q = 0..most, as float32, which all of them are."""
    s = (1 + np.arange(most + 1) * np.float64(np.float32(1 / n))).astype(np.float32)  # rounded as in kernels
    return (_ONE + n * (s.view(np.int32) - _ONE)).view(np.float32) - np.float32(1)


def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers, float32, in the shape of the codes."""
    flat = codes.reshape(-1)
    scale = np.repeat(scales, BLOCK)[: flat.size].astype(np.float32)
    three, four = (found / found[-1] for found in (levels(*SIGNED), levels(*UNSIGNED)))
    signed = np.where(flat > 127, -three[flat & 127], three[flat & 127])
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.where(scale < 0, -scale * four[flat], scale * signed)
    return values.astype(np.float32).reshape(codes.shape)


def write(codes: np.ndarray, scales: np.ndarray, values: np.ndarray) -> None:
    """Encode numbers, each to the nearest level, into C-contiguous codes."""
    flat, given = codes.reshape((codes.size,)), values.reshape(-1)
    for first in range(0, len(scales), _AT_ONCE):
        blocks = slice(first, first + _AT_ONCE)
        elements = slice(first * BLOCK, (first + _AT_ONCE) * BLOCK)
        flat[elements], scales[blocks] = _encoded(given[elements], scales[blocks].size)


def _encoded(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros(n * BLOCK)
    x[: values.size] = values
    x = x.reshape(-1, BLOCK)
    top = np.abs(x).max(1, keepdims=True, initial=0.0)
    signed, bad = (x < 0).any(1, keepdims=True), ~np.isfinite(top)
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.where((top > 0) & ~bad, x / top, 0.0)
    small = _nearest(np.abs(y), levels(*SIGNED)) | (y < 0) << 7
    large = np.maximum(_nearest(np.abs(y), levels(*UNSIGNED)), y > 0)
    found = np.where(signed, small, large).astype(np.uint8)
    return found.reshape(-1)[: values.size], np.where(bad, np.nan, np.where(signed, top, -top))[:, 0]


def _nearest(y: np.ndarray, found: np.ndarray) -> np.ndarray:
    found = found.astype(np.float64) / found[-1]
    return np.searchsorted((found[1:] + found[:-1]) / 2, y)
