"""`state_path`: state that lives in a file, mapped into memory, for runs whose state is larger than memory."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.errors import ConfigError

_MAGIC = b"fastopt state in use; a run's own, no checkpoint\n"


class Mapped:
    """Makes arrays of zeros, each in a part of its own of one file, which is made anew.

    The operating system reads ahead, writes back and keeps in memory what fits: a step walks along each array once,
    from one end to the other. Space is reserved at once, so that a full disk is an error here and not later.

    Raises `ConfigError` for a path that cannot be written, a file of something else, or of a run under way.
    """

    def __init__(self, path: Any):
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise ConfigError(f"state_path: {self.path} cannot be opened for writing: {error}.") from error
        weakref.finalize(self, os.close, self._file)  # each mapping has a handle of its own, and the lock with it
        found = os.read(self._file, len(_MAGIC))
        if found and found != _MAGIC:
            raise ConfigError(f"state_path: {self.path} is a file of something else; give a path of its own.")
        self._lock()
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, _MAGIC)
        self._end = mmap.ALLOCATIONGRANULARITY

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows refuses to cut a mapped file by itself
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"state_path: {self.path} is in use by another optimizer; give each its own.") from error

    def zeros(self, size: int, dtype: Any) -> np.ndarray:
        """A 1-d array of zeros at the beginning of a page. Raises `MemoryError` if the disk is full."""
        dtype = np.dtype(dtype)
        length = max(1, size * dtype.itemsize)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, self._end, length)
            else:
                os.ftruncate(self._file, self._end + length)
        except OSError as error:
            raise MemoryError(f"state_path: {length:,} bytes more do not fit where {self.path} is: {error}.") from error
        made = mmap.mmap(self._file, length, offset=self._end)
        if hasattr(made, "madvise"):
            made.madvise(mmap.MADV_SEQUENTIAL)
        self._end += -(-length // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return np.frombuffer(made, dtype, size)
