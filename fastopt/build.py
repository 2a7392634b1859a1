"""Source text -> a module on disk under its content hash -> compiled functions that Numba caches beside it."""

import hashlib
import importlib.util
import linecache
import os
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fastopt.errors import ConfigError

_modules: dict[str, ModuleType] = {}
_lock = threading.RLock()
_warned = False


def cache_folder() -> Path:
    """Where generated modules live: FASTOPT_CACHE_DIR, or `fastopt` in the platform's user cache folder."""
    if chosen := os.environ.get("FASTOPT_CACHE_DIR"):
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "fastopt" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastopt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fastopt"


def load(text: str, stem: str) -> ModuleType:
    """The module of a generated text, compiled; the same text gives the same module, in every process.

    Any trouble with the folder or with what Numba cached there costs time, never a result: damaged entries are thrown
    away and compiled again, and without a usable folder the module lives in memory, with one warning per process.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise ConfigError(
            "NUMBA_DISABLE_JIT is set, but fastopt's kernels work on addresses and must be compiled; unset it."
        )
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    with _lock:
        if digest not in _modules:
            _modules[digest] = _from_disk(text, f"{stem}_{digest}") or _from_memory(text, f"{stem}_{digest}")
        return _modules[digest]


def _from_disk(text: str, stem: str) -> ModuleType | None:
    try:
        path = _write(text, stem)
    except OSError as error:
        _warn(str(error))
        return None
    for attempt in (1, 2):
        try:
            return _run(importlib.util.spec_from_file_location(f"fastopt_kernel_{stem}", path), text)
        except Exception as error:  # damaged cache entries raise anything: EOFError, UnpicklingError, ValueError, ...
            for entry in (path.parent / "__pycache__").glob(f"{stem}.*"):
                entry.unlink(missing_ok=True)
            if attempt == 2:
                _warn(f"{type(error).__name__}: {error}")
    return None


def _from_memory(text: str, stem: str) -> ModuleType:
    text = text.replace("cache=True", "cache=False")
    file = f"<fastopt {stem}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    module = ModuleType(f"fastopt_kernel_{stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(text, file, "exec"), vars(module))
    return module


def _run(spec: ModuleSpec | None, text: str) -> ModuleType:
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Numba's cache looks functions up by module, before the module has run
    try:
        with _no_bytecode():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _no_bytecode() -> Iterator[None]:
    # a .pyc is checked by time and size alone, and all our files have the same time
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _write(text: str, stem: str) -> Path:
    """The file of a module, written whole or not at all. Raises OSError if the folder is unusable or unsafe."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(
                f"{folder} can be written by others, and compiled code found there would be run; chmod 700 it"
            )
    path = folder / f"{stem}.py"
    try:
        if path.read_text() == text:
            return path
    except (OSError, UnicodeDecodeError):
        pass
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-", suffix=".py")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.utime(temporary, (0, 0))  # Numba's index is keyed by time and size: equal for every process that writes it
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _warn(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"fastopt cannot keep compiled kernels in {cache_folder()} ({reason}); they are compiled again in every "
            "process. Set FASTOPT_CACHE_DIR to a private, writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )
