"""The live bar of `minimize(progress=True)`, and one way to ask for the optional packages of the demo."""

import importlib
import time
from types import ModuleType, TracebackType
from typing import Any

from fastopt.callbacks import Run
from fastopt.errors import ConfigError

REMEDY = 'pip install ".[demo]" in a checkout of fastopt'  # not by name: fastopt is not on PyPI


def need(module: str, package: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise `ConfigError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs {package}, which is not installed: {REMEDY}") from error


class Bar:
    """A callback that shows epochs and losses, and the context that gives the terminal back whatever happens."""

    def __init__(self, title: str = "minimize") -> None:
        rich = need("rich.progress", "rich", "a progress bar")
        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn())
        self._display: Any = rich.Progress(*columns, rich.TextColumn("{task.fields[note]}"))
        self._title, self._task, self._next = title, None, 0.0

    def __enter__(self) -> tuple["Bar"]:
        self._display.start()
        return (self,)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def on_start(self, run: Run) -> None:
        self._by_step = run.epochs is None
        total = run.steps if self._by_step else run.epochs
        self._task = self._display.add_task(self._title, total=total, note="")

    def on_step(self, run: Run) -> None:
        if self._by_step and time.perf_counter() >= self._next:
            self._show(run)

    def on_epoch(self, run: Run) -> None:
        if time.perf_counter() >= self._next:
            self._show(run)

    def on_end(self, run: Run) -> None:
        self._show(run)

    def _show(self, run: Run) -> None:
        note = f"loss {run.loss:.4g}" + ("" if run.validation is None else f"  validation {run.validation:.4g}")
        self._display.update(self._task, completed=run.step if self._by_step else run.epoch, note=note)
        self._next = time.perf_counter() + 0.05  # a bar redrawn every step would cost more than the step
