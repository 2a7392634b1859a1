"""Processes that are killed: one interpreter that forks a child for each moment, so that a death costs milliseconds.

`python checkpoint_processes.py NAME FOLDER` runs a function of this file, which prints what it found as JSON.
"""

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

import fastopt as fo
from fastopt.checkpoint import files


def model(size=30_000):
    params = {"w": np.zeros(size, np.float32), "b": np.zeros(7)}
    return fo.sgd(params, lr=0.0, momentum=0.9)


def fill(opt, t):
    """Every number of the parameters and of the state is t."""
    for name in opt.names:
        opt.params[name][...] = t
        opt.state["b"][name][...] = t


def held(path) -> int:
    """The number that the whole file holds; an error if it holds two, or is damaged."""
    saved = fo.checkpoint.read(path)
    found = {float(x) for a in [*saved.params.values(), *saved.state["state"]["b"].values()] for x in np.unique(a)}
    assert found == {float(saved.extra["t"])}, found
    return saved.extra["t"]


def parts(folder):
    return [p for p in os.listdir(folder) if p.endswith(files.PART)]


def child(work) -> int:
    """Fork; the child runs `work` and ends without a trace of Python's own."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def killed(folder: Path, trials=120) -> dict:
    """Saves in a row, killed at a random moment; the file is the last one acknowledged or the one under way."""
    rng, path, opt = random.Random(1), folder / "x", model()
    last, stale = 0, 0
    begin = time.perf_counter()
    for _ in range(5):
        opt.save(folder / "y", params=True)
    usual = (time.perf_counter() - begin) / 5
    for trial in range(trials):
        seen, told = os.pipe()

        def work(last=last, told=told):
            for t in range(last + 1, 10**9):
                fill(opt, t)
                opt.save(path, params=True, extra={"t": t})
                os.write(told, t.to_bytes(8, "little"))

        pid = child(work)
        os.close(told)
        said = b"" if trial % 3 else os.read(seen, 8)  # however busy the machine is, some saves end
        time.sleep(rng.uniform(0.0, 3 * usual))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(seen, 1 << 16):
            said += more
        os.close(seen)
        acknowledged = int.from_bytes(said[-8:], "little") if said else last
        if acknowledged or path.exists():
            now = held(path)
            assert now in (acknowledged, acknowledged + 1), (now, acknowledged)
            last = now
        stale = max(stale, len(parts(folder)))
        if len(parts(folder)) > 20:  # as they would be swept a minute later
            for name in parts(folder):
                os.utime(folder / name, (0, 0))
    return {"trials": trials, "saves": last, "stale": stale}


CALLS = ("open", "write", "fsync", "replace", "close", "fchmod", "lseek")


class Killer:
    """`os`, but the process dies before, in the middle of or after the k-th call."""

    def __init__(self, k, when):
        self.left, self.when = k, when

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args, **options):
            self.left -= 1
            mine = self.left == 0
            if mine and self.when == "middle" and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if mine and self.when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **options)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def stages(folder: Path) -> dict:
    """Killed before, in and after every call of the operating system that a save makes."""
    path, opt = folder / "x", model(size=20_000)
    files.PIECE = 1 << 16
    deaths, found = 0, []
    for when in ("before", "middle", "after"):
        for k in range(1, 99):
            fill(opt, 1)
            opt.save(path, params=True, extra={"t": 1})

            def work(k=k, when=when):
                files.os = Killer(k, when)
                fill(opt, 2)
                opt.save(path, params=True, extra={"t": 2})

            _, status = os.waitpid(child(work), 0)
            found.append(held(path))
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0 and found[-1] == 2
                break
            deaths += 1
    for name in parts(folder):
        os.utime(folder / name, (0, 0))
    stale = len(parts(folder))
    opt.save(path, params=True, extra={"t": 2})
    return {"deaths": deaths, "old": found.count(1), "new": found.count(2), "stale": stale, "left": len(parts(folder))}


def full(folder: Path) -> dict:
    """A disk that is full after any number of bytes (here: a limit of the process), and a folder that is read-only."""
    path, opt = folder / "x", model(size=20_000)
    fill(opt, 1)
    opt.save(path, params=True, extra={"t": 1})
    size = path.stat().st_size
    texts = []
    for limit in [0, 1, 8, 100, *range(0, size, size // 40), size - 1]:

        def work(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            fill(opt, 2)
            try:
                opt.save(path, params=True, extra={"t": 2})
            except fo.CheckpointError as error:
                assert error.__cause__.errno == errno.EFBIG and "What was there is unchanged" in str(error)
                return
            raise AssertionError("it was saved")

        _, status = os.waitpid(child(work), 0)
        texts.append(status)
        assert held(path) == 1 and not parts(folder)

    def unprivileged():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            opt.save(path, params=True, extra={"t": 2})
        except fo.CheckpointError as error:
            assert "Permission denied" in str(error) and str(path) in str(error)
            assert held(path) == 1
            opt.load(path)
            return
        raise AssertionError("it was saved")

    folder.chmod(0o555)
    path.chmod(0o444)
    _, status = os.waitpid(child(unprivileged), 0)
    folder.chmod(0o755)
    assert held(path) == 1
    return {"limits": len(texts), "failed": sum(s != 0 for s in texts), "readonly": status}


def writers(folder: Path) -> dict:
    """Two processes save to one name and into one folder, a third reads: always a whole file of one of the two."""
    path = folder / "x"
    ends = []
    for who in (1, 2):

        def work(who=who):
            opt = model()
            manager = fo.checkpoint.Manager(folder / "many", keep=2)
            fill(opt, who)
            for _ in range(40):
                opt.save(path, params=True, extra={"t": who})
                manager.save(opt, extra={"t": who})

        ends.append(child(work))
    seen, opt, manager = [], model(), fo.checkpoint.Manager(folder / "many", keep=2)
    left = set(ends)
    while left:
        if path.exists():
            seen.append(held(path))
            opt.load(path)
            extra = manager.load(opt)
            seen += [extra["t"]] if extra else []
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                left.discard(pid)
    return {"one": seen.count(1), "two": seen.count(2), "kept": len(manager.files), "left": len(parts(folder))}


def train(folder: Path, every=7, background=True) -> "fo.checkpoint.Saved":
    """A run of `minimize` with everything that has a state; saves itself, and goes on when it is started again."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6)).astype(np.float32)
    y = x @ rng.standard_normal(6).astype(np.float32)

    def loss_and_grad(params, x, y):
        time.sleep(float(os.environ.get("PAUSE", "0")))
        r = x @ params["w"] + params["b"] - y
        return (r @ r) / len(y), {"w": 2 * (x.T @ r) / len(y), "b": np.float32(2 * r.mean())}

    params = {"w": np.zeros(6, np.float32), "b": np.zeros((), np.float32)}
    manager = fo.checkpoint.Manager(folder, keep=2, background=background)
    return fo.minimize(
        loss_and_grad, params, (x, y), rule=fo.adam, batch_size=16, epochs=12, seed=5,
        lr=fo.schedules.Plateau(0.05, patience=1, factor=0.5), validation=lambda p: loss_and_grad(p, x, y)[0],
        callbacks=[fo.Checkpoint(manager, every=every), fo.EarlyStopping(patience=4, min_delta=1e-5), fo.KeepBest()],
    )  # fmt: skip


def ending(result) -> list:
    """What two runs must have in common, exactly; seconds are not."""
    history = {k: v for k, v in result.history.items() if k != "seconds"}
    numbers = [result.loss, result.validation, result.best_loss, result.best_epoch, result.steps, result.epochs]
    arrays = [a.tobytes().hex() for a in [*result.params.values(), *result.best_params.values()]]
    state = {s: [a.tobytes().hex() for a in d.values()] for s, d in result.optimizer.state_dict()["state"].items()}
    return [history, numbers, arrays, state, result.reason, result.optimizer.t]


def trained(folder: Path, moments=40) -> dict:
    """Killed again and again at random moments and started again, till it ends."""
    rng, deaths = random.Random(3), 0
    os.environ["PAUSE"] = "0.002"
    while True:

        def work():
            end = ending(train(folder / "many"))
            (folder / "end.json").write_text(json.dumps(end))

        pid = child(work)
        if deaths < moments:
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return {"deaths": deaths, "end": json.loads((folder / "end.json").read_text())}
        deaths += 1


def resumed(folder: Path) -> dict:
    """A process of its own: goes on with what lies in the folder."""
    return {"end": ending(train(folder / "many"))}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
