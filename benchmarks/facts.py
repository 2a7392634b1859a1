"""The machine and the versions behind a set of results: nothing that names a host, a user or a folder."""

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("fastopt", "numpy", "numba", "llvmlite", "torch", "deepspeed")
OTHERS = "other processes' share of the cores"  # key of what `Others` measures


def machine() -> dict[str, Any]:
    """Call it after the measurements: Numba knows its threading layer only after a parallel launch."""
    import numba

    from fastopt import threads

    try:
        layer = numba.threading_layer()  # pyright: ignore[reportPrivateImportUsage]
    except ValueError:
        layer = "none started"
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": {"fastopt": threads.count(), "layer": layer},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }
    if facts["versions"]["torch"]:
        import torch

        facts["threads"]["torch"] = torch.get_num_threads()
    return facts


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Package -> version, None where it is not installed."""
    return {name: _version(name) for name in packages}


class Others:
    """What else the machine did meanwhile: the share of all cores' time that other processes took (None: unknown)."""

    def __init__(self) -> None:
        self._begin = self._clock()

    @staticmethod
    def _clock() -> tuple[float, float, float] | None:
        """(seconds the cores were busy, seconds of this process and its children, wall seconds times cores)."""
        try:
            _, user, nice, system, idle, wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        busy = (int(user) + int(nice) + int(system) + sum(map(int, rest[:3]))) / tick  # rest: irq, softirq, steal
        return busy, sum(os.times()[:4]), busy + (int(idle) + int(wait)) / tick

    def share(self) -> float | None:
        end = self._clock()
        if self._begin is None or end is None:
            return None
        busy, own, total = (b - a for a, b in zip(self._begin, end, strict=True))
        return round(max(0.0, (busy - own) / total), 3) if total > 0 else None


def wait_for_quiet(seconds: float) -> None:
    """Return once other processes have used less than 4 % of the cores for half a second, or after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        others = Others()
        time.sleep(0.5)
        if (others.share() or 0.0) < 0.04:
            return


def _cpu() -> str:
    try:
        fields = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        info = {key.strip(): value.strip() for key, value in reversed(fields)}  # reversed: the first core's wins
        return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
