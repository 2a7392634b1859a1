"""Source text -> a module on disk under its content hash -> compiled functions that Numba caches beside it."""

import hashlib
import importlib.util
import linecache
import os
import re
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from fastopt.errors import ConfigError

_modules: dict[str, ModuleType] = {}
_lock = threading.RLock()
_warned = False


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    digest, stem = _digest(text), re.sub(r"\W+", "_", stem)  # a rule may be called "keras.adam"
    with _lock:
        if digest not in _modules:
            _modules[digest] = _from_disk(text, f"{stem}_{digest}") or _from_memory(text, f"{stem}_{digest}")
        return _modules[digest]


def _digest(text: str) -> str:
    """Of the text, and of the files of ours that it imports: an upgrade must not meet kernels built on older ones."""
    whole = hashlib.sha256(text.encode())
    for content in _imported(text, set()):
        whole.update(content.encode())
    return whole.hexdigest()[:16]


def _imported(text: str, seen: set[str]) -> Iterator[str]:
    """The files of ours that a text imports functions of kernels from, and those that these import."""
    for name in re.findall(r"^from (fastopt\.[\w.]+) import", text, re.M):
        file = (Path(__file__).parent.parent / name.replace(".", "/")).with_suffix(".py")
        if name not in seen and file.exists():  # and no package
            seen.add(name)
            content = file.read_text(encoding="utf-8")
            yield content
            yield from _imported(content, seen)


def _from_disk(text: str, stem: str) -> ModuleType | None:
    try:
        path = _write(text, stem)
    except OSError as error:
        _warn(str(error))
        return None
    sums = path.with_suffix(".sums")
    for attempt in (1, 2):
        try:
            # damaged machine code would end the process, so what Numba kept is compared with what it wrote
            if _sums(path) != (sums.read_text() if sums.exists() else ""):
                _forget(path)
            module = _run(importlib.util.spec_from_file_location(f"fastopt_kernel_{stem}", path))
            if (now := _sums(path)) != (sums.read_text() if sums.exists() else ""):
                _put(sums, now)
            return module
        except Exception as error:  # a damaged index raises anything: EOFError, UnpicklingError, ValueError, ...
            _forget(path)
            if attempt == 2:
                _warn(f"{type(error).__name__}: {error}")
    return None


def _kept(path: Path) -> list[Path]:
    """What Numba cached of a module."""
    return sorted((path.parent / "__pycache__").glob(f"{path.stem}.*.nb?"))


def _sums(path: Path) -> str:
    return "".join(f"{hashlib.sha256(entry.read_bytes()).hexdigest()} {entry.name}\n" for entry in _kept(path))


def _forget(path: Path) -> None:
    for entry in _kept(path):
        entry.unlink(missing_ok=True)


def _from_memory(text: str, stem: str) -> ModuleType:
    text = text.replace("cache=True", "cache=False")
    file = f"<fastopt {stem}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    module = ModuleType(f"fastopt_kernel_{stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(text, file, "exec"), vars(module))
    return module


def _run(spec: ModuleSpec | None) -> ModuleType:
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Numba's cache looks functions up by module, before the module has run
    try:
        with _in_our_folder():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _in_our_folder() -> Iterator[None]:
    """While a module runs: Numba caches beside it, whatever NUMBA_CACHE_DIR says, and Python writes no .pyc."""
    from numba.core import config

    numba: Any = config
    folder, bytecode = numba.CACHE_DIR, sys.dont_write_bytecode
    try:
        # a .pyc is checked by time and size alone, and all our files have the same time
        numba.CACHE_DIR, sys.dont_write_bytecode = "", True
        yield
    finally:
        numba.CACHE_DIR, sys.dont_write_bytecode = folder, bytecode


def _write(text: str, stem: str) -> Path:
    """The file of a module, written whole or not at all. Raises OSError if the folder is unusable or unsafe."""
    path = _folder() / f"{stem}.py"
    try:
        if path.read_text() == text:
            return path
    except (OSError, UnicodeDecodeError):
        pass
    _put(path, text)
    return path


def keep(name: str, make: Callable[[], bytes]) -> bytes:
    """The bytes of a file of the cache, made if they are not there or damaged; trouble costs time, never a result."""
    try:
        path = _folder() / name
        kept = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
    except OSError as error:
        _warn(f"{type(error).__name__}: {error}")
        return make()
    made = make()
    try:
        _put(path, hashlib.sha256(made).digest() + made)
    except OSError as error:
        _warn(f"{type(error).__name__}: {error}")
    return made


def _folder() -> Path:
    """The cache folder. Raises OSError if it is unusable or unsafe."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(
                f"{folder} can be written by others, and compiled code found there would be run; chmod 700 it"
            )
    return folder


def _put(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.utime(temporary, (0, 0))  # Numba's index is keyed by time and size: equal for every process that writes it
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
