"""Numbers in 8 bits: blocks of 256, each with a float32 scale, the largest size in the block.

    a block with a number below 0    scale > 0, codes int8 q:   scale * (q / 127)^3
    a block without one              scale < 0, codes uint8 q: -scale * (q / 255)^4

A kernel takes -0, too, for a number below 0. So second moments get a map of their own without anybody saying which
state is one: of 255 levels, the smallest 2.4e-10 of the largest. A number above 0 in such a block is never stored as 0,
since rules divide by it. The steps between levels grow with the number, as those of the dynamic map of Dettmers et al.
2022 (arXiv:2110.02861) do, without its jumps at every power of ten, and both maps are a few multiplications. A block
that holds a NaN or an infinity becomes NaN as a whole.

Kernels have functions of their own for this (targets/blocks.py); these are for people, tests and the start of a state.
"""

import numpy as np

BLOCK = 256  # elements, of the flat parameter; a chunk of work is a whole number of blocks
_AT_ONCE = 4096  # blocks: encoding takes some 60 bytes per element meanwhile


def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers, float32, in the shape of the codes."""
    flat = codes.reshape(-1)
    scale = np.repeat(scales, BLOCK)[: flat.size].astype(np.float32)
    signed, unsigned = flat.view(np.int8) / np.float32(127), flat / np.float32(255)
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.where(scale < 0, -scale * unsigned**4, scale * signed**3)
    return values.astype(np.float32).reshape(codes.shape)


def write(codes: np.ndarray, scales: np.ndarray, values: np.ndarray) -> None:
    """Encode numbers, each to the nearest level, into C-contiguous codes."""
    flat, given = codes.reshape(-1), values.reshape(-1)
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
    levels = np.arange(256)
    three, four = (levels[:128] / 127) ** 3, (levels / 255) ** 4
    small = _nearest(np.abs(y), three) * np.sign(y)
    large = np.maximum(_nearest(np.abs(y), four), y > 0)
    found = np.where(signed, small.astype(np.int8).view(np.uint8), large.astype(np.uint8))
    return found.reshape(-1)[: values.size], np.where(bad, np.nan, np.where(signed, top, -top))[:, 0]


def _nearest(y: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, y)
