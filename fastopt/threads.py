"""How many threads a kernel may use, and when it must not start any. Every parallel launch goes through here."""

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

from fastopt.errors import ConfigError

_launch_lock = threading.Lock()  # Numba's `workqueue` layer aborts the process on two launches at once
_wanted: int | None = None
_launched = False  # has this process started a thread pool?
_forked = False  # are we the child of a process that had?
epoch = 0  # grows whenever an answer of `count` may have changed, so that callers can keep it


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def count() -> int:
    """Threads of a parallel launch now: Numba's setting, capped by the CPU affinity and `set_num_threads`."""
    if _forked:
        return 1
    import numba

    try:
        available = numba.get_num_threads()
    except ValueError as error:
        layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
        raise ConfigError(
            f"Numba cannot start the threading layer {layer!r}: {error} See numba.threading_layer()."
        ) from error
    return max(1, min(available, _cores(), _wanted or available))


def set_num_threads(n: int | None) -> None:
    """Cap the threads of every fastopt kernel in this process at `n` >= 1; None removes the cap.

    Results have the same bits for any `n`. Raises `ConfigError` for anything but a positive int or None.
    """
    global _wanted, epoch
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ConfigError(f"set_num_threads: `n` is {n!r}; expected an int >= 1, or None for no cap.")
    _wanted = n
    epoch += 1


def launch(kernel: Callable[..., Any], *args: Any) -> None:
    """Run a parallel kernel, alone."""
    global _launched
    with _launch_lock:
        _launched = True
        kernel(*args)


def _after_fork() -> None:
    global _launch_lock, _forked, epoch
    _launch_lock = threading.Lock()  # another thread may have held it
    if _launched and not _forked:
        _forked = True  # a GNU OpenMP pool does not survive a fork: its first launch kills the child
        epoch += 1


def warn_if_forked() -> None:
    """Say once, in a forked child, why its kernels use one thread. Called when a kernel would have been parallel."""
    global _warned
    if _forked and not _warned:
        _warned = True
        warnings.warn(
            "fastopt runs on one thread in this process: it was forked after a parallel step, and an OpenMP thread "
            "pool does not survive a fork. Start workers with the `spawn` or `forkserver` method to use all cores.",
            RuntimeWarning,
            stacklevel=3,
        )


_warned = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
