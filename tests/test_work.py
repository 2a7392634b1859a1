"""Work tables: every element of every segment in one chunk, once, whatever the sizes; runs of chunks share the load."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt import work

SIZES = st.lists(st.integers(0, 100_000), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, st.sampled_from([1 << 10, 1 << 14, 777]))
def test_chunks_cover_every_segment_once(sizes, chunk):
    table = work.chunks(sizes, range(len(sizes)), [k % 3 for k in range(len(sizes))], chunk)
    assert table.dtype == np.uint64 and table.shape[1] == 4 and table.flags.c_contiguous
    for k, size in enumerate(sizes):
        own = table[table[:, 2] == k].astype(np.int64)
        assert (own[:, 3] == k % 3).all()
        assert own[0, 0] == 0 and own[-1, 1] == size, (
            "the first chunk of a segment starts it: kernels count steps there"
        )
        assert (own[1:, 0] == own[:-1, 1]).all()
        assert ((own[:, 1] - own[:, 0]) <= chunk).all()
        assert len(own) == max(1, -(-size // chunk))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, st.integers(1, 64))
def test_tasks_are_runs_of_all_chunks_with_fair_shares(sizes, n):
    table = work.chunks(sizes, range(len(sizes)), [0] * len(sizes), 1024)
    bounds = work.tasks(table, n)
    assert bounds.dtype == np.uint64
    assert bounds[0] == 0 and bounds[-1] == len(table) and (np.diff(bounds.astype(np.int64)) > 0).all()
    assert len(bounds) - 1 <= n
    loads = [int((table[a:b, 1] - table[a:b, 0]).sum()) for a, b in pairwise(bounds)]
    assert max(loads) <= sum(sizes) / n + 1024, "no run exceeds its share by more than a chunk"


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**31 + 1, 2**33 + 5])
def test_sizes_beyond_32_bits(size):
    table = work.chunks([10, size], [0, 1], [0, 1], 1 << 24)
    assert int(table[-1, 1]) == size and int(table[-1, 2]) == 1
    assert int((table[1:, 1] - table[1:, 0]).sum()) == size
    assert int(work.tasks(table, 7)[-1]) == len(table)
