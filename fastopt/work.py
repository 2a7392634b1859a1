"""Work is a list of chunks. Groups, frozen parameters, loose arrays and threads are all ways to choose its rows."""

from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 14  # elements: 64 KiB of float32, far above a chunk's own cost (about 10 ns) and fine enough to share out


def chunks(
    sizes: Sequence[int], segments: Sequence[int], rows: Sequence[int], chunk: int | Sequence[int] = CHUNK
) -> np.ndarray:
    """uint64 (n_chunks, 4), columns lo, hi, segment, group: every segment cut into runs of at most `chunk` elements.

    `chunk` may be given for each segment.

    `sizes`, `segments` and `rows` go together: a segment's length in elements, its row in the address table, its row
    in the hyper table. A chunk never straddles segments. An empty segment has one empty chunk, which counts
    its step.
    """
    size = np.asarray(sizes, np.int64)
    length = np.broadcast_to(np.asarray(chunk, np.int64), size.shape)
    count = np.maximum(1, -(-size // length))
    owner = np.repeat(np.arange(len(size)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    lo = (np.arange(len(owner)) - first) * length[owner]
    hi = np.minimum(lo + length[owner], size[owner])
    return np.stack([lo, hi, np.asarray(segments)[owner], np.asarray(rows)[owner]], axis=1).astype(np.uint64)


def tasks(work: np.ndarray, n: int) -> np.ndarray:
    """uint64 (m + 1,), m <= n: bounds of runs of chunks with nearly equal numbers of elements, one a thread."""
    done = np.cumsum(work[:, 1] - work[:, 0], dtype=np.uint64)
    total = int(done[-1])
    inner = np.searchsorted(done, [total * (k + 1) / n for k in range(n - 1)], side="left") + 1
    return np.unique(np.concatenate([[0], np.minimum(inner, len(work)), [len(work)]])).astype(np.uint64)
