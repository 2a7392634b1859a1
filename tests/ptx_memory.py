"""The memory of an executed PTX kernel: every access is checked for place, alignment and races between threads."""

from collections.abc import Sequence

import numpy as np

_NOBODY = -1


class Span:
    """One array, or a block's shared memory, and who has touched each word of `grain` bytes of it."""

    def __init__(self, start: int, raw: np.ndarray, grain: int):
        self.start, self.raw = start, raw
        words = -(-raw.size // grain) + 1
        # thread who did it last, and when: times are counted from barrier to barrier
        self.writer, self.written = np.full(words, _NOBODY), np.full(words, _NOBODY)
        self.reader, self.read = np.full(words, _NOBODY), np.full(words, _NOBODY)
        self.shared_at = np.full(words, _NOBODY)  # when more than one thread had read it
        self.of_writer, self.of_reader = np.full(words, _NOBODY), np.full(words, _NOBODY)  # blocks, of the whole launch

    def watch(self, words: np.ndarray, threads: np.ndarray, block: int, now: int, store: bool) -> None:
        """Raise `AssertionError` if two threads without a barrier between them, or two blocks, meet at a word."""
        me = np.broadcast_to(threads[:, None], words.shape).ravel()
        words = words.ravel()
        assert not ((self.written[words] == now) & (self.writer[words] != me)).any(), "a race: written by another"
        assert np.isin(self.of_writer[words], (_NOBODY, block)).all(), "a race: written by another block"
        if store:
            assert len(np.unique(words)) == len(words), "a race: two threads write one word"
            others = (self.read[words] == now) & (self.reader[words] != me) | (self.shared_at[words] == now)
            assert not others.any(), "a race: another reads what is overwritten"
            assert np.isin(self.of_reader[words], (_NOBODY, block)).all(), "a race: another block reads it"
            self.writer[words], self.written[words], self.of_writer[words] = me, now, block
        else:
            distinct, count = np.unique(words, return_counts=True)
            self.shared_at[words[(self.read[words] == now) & (self.reader[words] != me)]] = now
            self.shared_at[distinct[count > 1]] = now
            self.reader[words], self.read[words], self.of_reader[words] = me, now, block


class Memory:
    """The arrays a kernel may touch, at their real addresses, and a block's shared memory at small ones.

    `grain`: bytes of the smallest access, at which races are looked for.
    """

    def __init__(self, arrays: Sequence[np.ndarray], shared: int, grain: int):
        self.grain = grain
        spans = [Span(a.ctypes.data, a.reshape(-1).view(np.uint8), grain) for a in arrays if a.nbytes]
        self.spans = sorted(spans, key=lambda s: s.start)
        self.starts = np.array([s.start for s in self.spans], np.uint64)
        self.widest: dict[str, int] = {"ld": 0, "st": 0}
        self.size, self.now = shared, 0
        self.enter(0)

    def enter(self, block: int) -> None:
        """A block begins; its shared memory holds whatever was there, here NaNs."""
        self.block, self.now = block, self.now + 1
        self.shared = Span(0, np.full(self.size, 0xFF, np.uint8), self.grain)

    def barrier(self) -> None:
        self.now += 1

    def _places(self, space: str, address: np.ndarray, size: int, what: str):
        """(span, which threads, first bytes there) for addresses, one per thread."""
        wrong = address[address % np.uint64(size) != 0]
        assert not wrong.size, f"{what} of {size} bytes at {wrong[0]:#x} is misaligned"
        if space == "shared":
            assert (address + np.uint64(size) <= self.size).all(), f"{what} outside of shared memory"
            yield self.shared, np.arange(len(address)), address.astype(np.int64)
            return
        assert space == "global", "a generic access: the address space was lost"
        at = np.searchsorted(self.starts, address, side="right") - 1
        for k in np.unique(at):
            span, who = self.spans[k], np.flatnonzero(at == k)
            first = (address[who] - np.uint64(span.start)).astype(np.int64)
            bad = (k < 0) | (first + size > span.raw.size)
            assert not bad.any(), f"{what} of {size} bytes at {address[who][bad][0]:#x} is outside every array"
            yield span, who, first

    def load(self, space: str, address: np.ndarray, dtype: np.dtype, lanes: int, threads: np.ndarray) -> np.ndarray:
        """(threads, lanes) numbers."""
        size = dtype.itemsize * lanes
        found = np.empty((len(address), size), np.uint8)
        for span, who, first in self._places(space, address, size, "ld"):
            span.watch(self._words(first, size), threads[who], self.block, self.now, False)
            found[who] = span.raw[first[:, None] + np.arange(size)]
        if space == "global":
            self.widest["ld"] = max(self.widest["ld"], size)
        return found.view(dtype)

    def store(self, space: str, address: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        size = values.dtype.itemsize * values.shape[1]
        raw = np.ascontiguousarray(values).view(np.uint8)
        for span, who, first in self._places(space, address, size, "st"):
            span.watch(self._words(first, size), threads[who], self.block, self.now, True)
            span.raw[first[:, None] + np.arange(size)] = raw[who]
        if space == "global":
            self.widest["st"] = max(self.widest["st"], size)

    def _words(self, first: np.ndarray, size: int) -> np.ndarray:
        return first[:, None] // self.grain + np.arange(max(1, size // self.grain))
