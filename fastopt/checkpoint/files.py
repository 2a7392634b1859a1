"""Files on a disk: replaced whole or not at all, and read through one open descriptor into memory of our own."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastopt.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PART = ".fastopt-part"  # the end of a temporary file's name
PIECE = 1 << 22  # bytes written or read at once
ABANDONED = 60.0  # seconds without a write, after which a temporary file that nobody has locked is deleted
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Damaged(CheckpointError):
    """A file that cannot be read, or does not hold what was saved: an older one may serve instead."""


def location(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise CheckpointError(f"the path is {path!r} ({type(path).__name__}); expected a str or a Path.") from None


# -------------------------------------------------------------------- writing
def write(path: Any, pieces: Iterable[memoryview]) -> None:
    """Write a file: at every moment the old one or the new one is there, whole, and after the return it is on the disk.

    A symbolic link stays, the file that it points to is replaced; the mode of an old file is kept. Raises
    `CheckpointError`, after which the old file is still there.
    """
    path = location(path)
    pieces = iter(pieces)
    first = next(pieces)  # before the disk is touched: this is where content is refused
    try:
        target = Path(os.path.realpath(path))
        _sweep(target.parent)
        _write(target, first, pieces)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(f"cannot save {_shown(path)}: {_reason(error)}. What was there is unchanged.") from error
    try:
        _sync_folder(target.parent)
    except OSError as error:
        reason = f"its folder could not be flushed to the disk ({_reason(error)})"
        raise CheckpointError(
            f"{_shown(path)} is written, but {reason}: a power cut may bring the old one back."
        ) from error


def _write(target: Path, first: memoryview, rest: Iterator[memoryview]) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    temporary = target.parent / f".{secrets.token_hex(8)}{PART}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        try:
            _lock(handle)
            with suppress(FileNotFoundError):
                if hasattr(os, "fchmod"):
                    os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
            for piece in (first, *rest):
                _write_all(handle, piece)
            _sync(handle)
            if os.name != "nt":
                os.replace(temporary, target)  # while it is locked: nobody takes it for an abandoned one
        finally:
            with suppress(OSError):  # the data has been flushed; or another error is on its way
                os.close(handle)
        if os.name == "nt":  # where an open file cannot be renamed
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        done = os.write(handle, data[:PIECE])
        if done <= 0:
            raise OSError(errno.EIO, "nothing was written")
        data = data[done:]


def _sync(handle: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves the data in the disk's own cache
    if fcntl is not None and full is not None:
        with suppress(OSError):  # a file system without it
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY | _BINARY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems where folders cannot be flushed
            raise
    finally:
        with suppress(OSError):
            os.close(handle)


def _lock(handle: int) -> bool | None:
    """Take the file: True, False if another process has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _sweep(folder: Path) -> None:
    """Delete the temporary files of processes that were killed: each may be as large as a checkpoint."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in [e for e in entries if e.name.startswith(".") and e.name.endswith(PART)]:
            with suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age < ABANDONED or not entry.is_file(follow_symlinks=False):
                    continue
                handle = os.open(entry.path, os.O_RDONLY | _BINARY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    free = _lock(handle)
                finally:
                    os.close(handle)
                if age > 86400 if free is None else free:  # without locks, a day must do
                    os.unlink(entry.path)


# -------------------------------------------------------------------- reading
class File(NamedTuple):
    """A regular file, open: whatever happens to its name, this one is read."""

    path: str
    handle: int
    size: int

    def refuse(self, what: str) -> NoReturn:
        raise Damaged(f"{self.path} is damaged: {what}.")

    def read(self, start: int, size: int) -> bytes:
        data = np.empty(size, np.uint8)
        for _ in self.fill(start, data):
            pass
        return data.tobytes()

    def fill(self, start: int, data: np.ndarray) -> Iterator[memoryview]:
        """Read bytes from `start` on into all of `data`; gives each piece as it comes."""
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            os.lseek(self.handle, start, os.SEEK_SET)
            with open(self.handle, "rb", buffering=0, closefd=False) as file:
                while view:
                    done = file.readinto(view[:PIECE])
                    if not done:
                        self.refuse("it ends early")
                    yield view[:done]
                    view = view[done:]
        except OSError as error:
            raise Damaged(f"cannot read {self.path}: {_reason(error)}.") from error


@contextmanager
def opened(path: Any) -> Iterator[File]:
    """Raises `CheckpointError` if there is no such regular file, `Damaged` for one too short to be a checkpoint."""
    path = location(path)
    try:
        # non-blocking: opening a FIFO would wait for its writer
        handle = os.open(path, os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise Damaged(f"cannot read {_shown(path)}: {_reason(error)}.") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"cannot read {_shown(path)}: it is a folder, a device or a pipe, not a file.")
        file = File(_shown(path), handle, status.st_size)
        if file.size < 10:
            file.refuse(f"it has {file.size} bytes")
        yield file
    finally:
        os.close(handle)


def _shown(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")
