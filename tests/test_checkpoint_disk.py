"""Kill -9 at every stage of a save, full disks, failing calls, two writers, files that change while they are read."""

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoints import content, small

import fastopt as fo
from fastopt.checkpoint import files, format

HERE = Path(__file__).parent
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def process(name, folder, **env):
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    command = [sys.executable, "-W", "error", HERE / "checkpoint_processes.py", name, folder]
    environment = {**os.environ, "PYTHONPATH": paths, **env}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# ---- killed ----------------------------------------------------------------------------------------------------------
@posix
def test_killed_at_120_random_moments_of_a_save(tmp_path):
    found = process("killed", tmp_path)
    assert found["trials"] == 120 and found["saves"] > 20 and 0 < found["stale"] < 40


@posix
def test_killed_before_in_and_after_every_call_of_a_save(tmp_path):
    found = process("stages", tmp_path)
    assert found["deaths"] > 30 and found["old"] > 20 and found["new"] > 3
    assert found["stale"] > 20 and found["left"] == 0  # the next save has swept them


# ---- failing ---------------------------------------------------------------------------------------------------------
@posix
def test_a_full_disk_and_a_read_only_folder():
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: another user must be able to look into it
        os.chmod(folder, 0o755)
        found = process("full", folder)
    assert found["limits"] > 40 and found["failed"] == 0 and found["readonly"] == 0


class Failing:
    """`os`, but the k-th call of `name` (and with `ever` all later ones) fails, or does less than asked."""

    def __init__(self, name, k, error, ever):
        self.name, self.k, self.error, self.ever, self.calls = name, k, error, ever, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name != self.name:
            return real

        def call(*args, **options):
            self.calls += 1
            if self.calls == self.k or (self.ever and self.calls > self.k):
                if self.error == "short":
                    return real(args[0], args[1][:1])
                if name == "close":
                    real(*args)
                raise OSError(self.error, os.strerror(self.error))
            return real(*args, **options)

        return call


@pytest.mark.parametrize("ever", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace", "close", "unlink"])
def test_every_call_that_can_fail(name, error, ever, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 64)
    old, new = small(), small(seed=1)
    for k in (1, 2, 3):
        old.save(tmp_path / "x", params=True)
        failing = Failing(name, k, error, ever)
        monkeypatch.setattr(files, "os", failing)
        failed = None
        try:
            new.save(tmp_path / "x", params=True)
        except fo.CheckpointError as caught:
            failed = caught
            assert os.strerror(error) in str(caught) and str(tmp_path / "x") in str(caught)
        monkeypatch.setattr(files, "os", os)
        reached = failing.calls >= k
        assert bool(failed) == (reached and name not in ("unlink", "close")), (name, k, failed)
        other = small(seed=2)
        other.load(tmp_path / "x")
        written = failed is None or "is written, but its folder" in str(failed)
        assert content(other) == content(new if written else old)
        if not (ever and name == "unlink"):
            assert os.listdir(tmp_path) == ["x"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    for ever in (False, True):
        monkeypatch.setattr(files, "os", Failing("write", 1, "short", ever))
        opt = small()
        opt.save(tmp_path / "x", params=True)
        other = small(seed=1)
        other.load(tmp_path / "x")
        assert content(other) == content(opt)


def test_a_folder_that_cannot_be_flushed_by_its_file_system_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "os", Failing("fsync", 2, errno.EINVAL, True))
    small().save(tmp_path / "x")


def test_the_file_and_its_folder_are_flushed_in_this_order(tmp_path, monkeypatch):
    calls = []

    class Watch:
        def __getattr__(self, name):
            real = getattr(os, name)
            if name not in ("fsync", "replace"):
                return real

            def call(*args):
                calls.append((name, stat.S_ISDIR(os.fstat(args[0]).st_mode) if name == "fsync" else None))
                return real(*args)

            return call

    monkeypatch.setattr(files, "os", Watch())
    small().save(tmp_path / "x")
    assert calls == [("fsync", False), ("replace", None), ("fsync", True)]


def test_an_interrupt_while_it_is_written(tmp_path, monkeypatch):
    old, new = small(), small(seed=1)
    old.save(tmp_path / "x", params=True)

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path / "x", params=True)
    assert os.listdir(tmp_path) == ["x"]
    new.load(tmp_path / "x")
    assert content(new) == content(old)


# ---- paths -----------------------------------------------------------------------------------------------------------
def test_paths_that_are_no_files(tmp_path):
    opt = small()
    before = content(opt)
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    bad = {
        tmp_path / "no": "No such file", tmp_path / "folder": "is a folder", tmp_path / "loop": "symbolic links",
        "\0": "null", tmp_path / ("x" * 300): "too long", 3: "expected a str or a Path", None: "expected a str",
    }  # fmt: skip
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        bad |= {tmp_path / "fifo": "a pipe", "/dev/zero": "a device", "/dev/null": "a device"}
    for path, says in bad.items():
        with pytest.raises(fo.CheckpointError) as error:
            opt.load(path)
        assert says in str(error.value), (path, str(error.value))
    assert content(opt) == before
    bad = {tmp_path / "no" / "x": "No such file", tmp_path / "folder": "is a folder", 3: "a str", "\0": "null"}
    for path, says in bad.items():
        with pytest.raises(fo.CheckpointError) as error:
            opt.save(path)
        assert says in str(error.value), (path, str(error.value))
    assert not [p for p in os.listdir(tmp_path) if p.endswith(files.PART)]


@posix
def test_modes_and_links(tmp_path):
    opt = small()
    before = os.umask(0o027)
    try:
        opt.save(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    (tmp_path / "x").chmod(0o600)
    os.symlink("x", tmp_path / "link")
    opt.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "x").is_symlink()
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    opt.load(tmp_path / "link")
    opt.save(Path(os.path.relpath(tmp_path / "x")))


def test_abandoned_files_are_swept_and_others_left_alone(tmp_path):
    old, locked, fresh = (tmp_path / f".{k}{files.PART}" for k in "abc")
    for path in (old, locked, fresh, tmp_path / "keep", tmp_path / ".hidden"):
        path.write_bytes(b"x")
        os.utime(path, None if path == fresh else (1, 1))
    os.symlink("keep", link := tmp_path / f".d{files.PART}")
    with open(locked) as held:
        assert files._lock(held.fileno())
        small().save(tmp_path / "x")
    assert not old.exists() and all(p.exists() for p in (locked, fresh, link, tmp_path / "keep", tmp_path / ".hidden"))


def test_a_save_that_takes_long_is_not_taken_for_an_abandoned_one(tmp_path, monkeypatch):
    real, deep = files._sync, []

    def slow(handle):
        if not deep:
            deep.append(1)
            for name in os.listdir(tmp_path):
                os.utime(tmp_path / name, (1, 1))
            small(seed=1).save(tmp_path / "y")  # another save sweeps meanwhile
        real(handle)

    monkeypatch.setattr(files, "_sync", slow)
    small().save(tmp_path / "x")
    assert deep and sorted(os.listdir(tmp_path)) == ["x", "y"]
    small(seed=2).load(tmp_path / "x")


# ---- two at once -----------------------------------------------------------------------------------------------------
@posix
def test_two_writers_and_a_reader(tmp_path):
    found = process("writers", tmp_path)
    assert found["one"] and found["two"] and found["left"] == 0 and 2 <= found["kept"] <= 4


def test_a_file_that_grows_while_it_is_read(tmp_path):
    right, opt = content(small()), small(seed=1)
    small().save(tmp_path / "x", params=True)
    raw = (tmp_path / "x").read_bytes()
    done = threading.Event()

    def grow():
        while not done.is_set():
            with open(tmp_path / "x", "r+b") as file:
                for n in range(0, len(raw), 97):
                    file.truncate(n)
                    file.seek(0)
                    file.write(raw[: n + 97])

    thread = threading.Thread(target=grow)
    thread.start()
    outcomes = {"loaded": 0, "refused": 0}
    try:
        for _ in range(300):
            before = content(opt)
            try:
                opt.load(tmp_path / "x")
                assert content(opt) == right
                outcomes["loaded"] += 1
            except fo.CheckpointError:
                assert content(opt) == before
                outcomes["refused"] += 1
    finally:
        done.set()
        thread.join()
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("change", ["grown", "cut", "replaced", "deleted"])
def test_a_file_that_changes_after_its_header_was_read(change, tmp_path, monkeypatch):
    small().save(path := tmp_path / "x", params=True)
    header = format.header

    def meanwhile(file):
        found = header(file)
        if change == "grown":
            with open(path, "ab") as more:
                more.write(b"x" * 1000)
        elif change == "cut":
            os.truncate(path, found.start + 100)
        elif change == "replaced":
            small(seed=5).save(path, params=True)
        else:
            path.unlink()
        return found

    monkeypatch.setattr(format, "header", meanwhile)
    opt = small(seed=1)
    before = content(opt)
    if change == "cut":
        with pytest.raises(fo.CheckpointError, match="it ends early"):
            opt.load(path)
        assert content(opt) == before
    else:  # all that was saved is read, from the file that was opened
        opt.load(path)
        assert content(opt) == content(small())


def test_arrays_that_change_after_the_save_has_begun(tmp_path):
    opt = small()
    right = content(opt)
    losses = np.zeros(3)
    pieces = fo.checkpoint.captured(opt, True, {"losses": losses})
    opt.step({"w": np.ones((7, 3)), "b": np.ones(5)})
    losses[:] = 7
    fo.checkpoint.write(tmp_path / "x", pieces)
    other = small(seed=1)
    assert other.load(tmp_path / "x")["losses"].tolist() == [0, 0, 0]
    assert content(other) == right
