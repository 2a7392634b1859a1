"""A folder of checkpoints: numbered in the order of saving, the last few kept, the newest whole one found again."""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt.checkpoint import content, files
from fastopt.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer

_NAME = re.compile(r"checkpoint-(\d{6,18})-step-(\d{1,18})\.safetensors")


class Manager:
    """Saves checkpoints into a folder and finds them again.

    Args:
        folder: made if it is not there.
        keep: how many to keep; older ones are deleted when a new one is on the disk. None: all.
        background: `save` copies the state and returns; a thread writes the file. The next save waits for it, as do
            `wait()`, the end of a `with` block and the end of the program. An error is raised by the first two.

    Names are checkpoint-NUMBER-step-T.safetensors. The number tells their order, not T: a run that went back to step
    500 goes on from what it saved then, even if a file of step 1,000 lies beside it.
    """

    def __init__(self, folder: Any, keep: int | None = 3, *, background: bool = False):
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise ConfigError(f"Manager: `keep` is {keep!r}; expected an int >= 1, or None to keep all.")
        if not isinstance(background, bool):
            raise ConfigError(f"Manager: `background` is {background!r}; expected True or False.")
        self.folder, self.keep, self.background = files.location(folder), keep, background
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot make the folder {self.folder!s}: {error}.") from error
        self._writing: list[_Writer] = []  # the one at work, or whose end nobody has heard of
        weakref.finalize(self, _report, self._writing)

    def __repr__(self) -> str:
        return f"Manager({str(self.folder)!r}, keep={self.keep}, background={self.background})"

    @property
    def files(self) -> list[Path]:
        """The checkpoints there are, whole or not, oldest first."""
        try:
            found = [(m, p) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name))]
        except OSError as error:
            raise CheckpointError(f"cannot read the folder {self.folder}: {error}.") from error
        return [p for _, p in sorted(((int(m[1]), int(m[2])), p) for m, p in found)]

    def save(self, opt: Optimizer, *, params: bool = True, extra: Any = None) -> Path:
        """Save, as `opt.save` does, under the next number, and delete what is too old. Returns the path."""
        self.wait()
        pieces, t = content.captured(opt, params, extra), opt.t
        last = int(_NAME.fullmatch(there[-1].name)[1]) if (there := self.files) else 0  # type: ignore[index]
        path = self.folder / f"checkpoint-{last + 1:06d}-step-{t}.safetensors"
        if not self.background:
            self._write(path, pieces)
            return path
        (writer := _Writer(lambda: self._write(path, pieces))).start()
        self._writing.append(writer)
        return path

    def _write(self, path: Path, pieces: Iterator[memoryview]) -> None:
        files.write(path, pieces)
        if self.keep is not None:
            for old in self.files[: -self.keep]:
                if old != path:
                    with suppress(OSError):  # another process was faster
                        old.unlink()

    def wait(self) -> None:
        """Until the last save is on the disk. Raises the `CheckpointError` of one that failed in the background."""
        if self._writing:
            self._writing[0].join()
            if error := self._writing.pop().error:
                raise CheckpointError(f"a save in the background failed: {error}") from error

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None if there are none.

        Damaged ones are skipped with a `RuntimeWarning`; if all are, that is a `CheckpointError`.
        """
        return self._first(lambda path: (content.check(path), path)[1])

    def load(self, opt: Optimizer, *, params: bool | None = None, rule_changed: bool = False) -> Any:
        """`opt.load` of the newest whole checkpoint; returns its `extra`, `{}` if it has none. None: nothing to load.

        Damaged files are skipped as `latest` does. One that is whole but does not fit is a `CheckpointError`.
        """
        return self.restore(opt, lambda extra: None, params=params, rule_changed=rule_changed)

    def restore(self, opt: Optimizer, accept: Callable[[Any], None], **options: Any) -> Any:
        """`load`, where `accept` is given `extra` before anything is changed, and may raise."""

        def load(path: Path) -> Any:
            extra = content.load(opt, path, accept=accept, **options)
            return {} if extra is None else extra

        return self._first(load)

    def _first(self, use: Callable[[Path], Any]) -> Any:
        self.wait()
        bad: list[str] = []
        for path in reversed(self.files):
            try:
                return use(path)
            except files.Damaged as error:
                if not path.exists():  # another process has deleted it: it has a newer one
                    return self._first(use)
                bad.append(str(error))
                warnings.warn(f"{error} Skipped; trying an older checkpoint.", RuntimeWarning, stacklevel=4)
        if bad:
            raise CheckpointError(f"none of the {len(bad)} checkpoints in {self.folder} is whole: {' '.join(bad)}")
        return None


class _Writer(threading.Thread):
    """Not a daemon: Python ends when it has ended."""

    def __init__(self, work: Callable[[], None]):
        super().__init__(name="fastopt-checkpoint", daemon=False)
        self.error: BaseException | None = None
        self._work: Callable[[], None] | None = work

    def run(self) -> None:
        work, self._work = self._work, None  # with which the copies go, and the reference to the manager
        try:
            assert work is not None
            work()
        except BaseException as error:  # raised by `wait`
            self.error = error.with_traceback(None)


def _report(writing: list[_Writer]) -> None:
    """At the end of a manager or of the program: an error that nobody has waited for."""
    for writer in writing:
        writer.join()
        if writer.error is not None:
            warnings.warn(f"a save in the background failed: {writer.error}", RuntimeWarning, stacklevel=1)
