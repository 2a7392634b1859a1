"""Manager: numbers, keep, latest, damage, background; Checkpoint: a killed run of minimize ends with the same bits."""

import gc
import json
import os
import threading

import numpy as np
import pytest
from checkpoint_processes import ending, train
from checkpoints import content, small
from problems import bowl, line, regression, squares
from test_checkpoint_disk import posix, process

import fastopt as fo
from fastopt.checkpoint import Manager, files


def names(folder):
    return sorted(os.listdir(folder))


def step(opt):
    opt.step({"w": np.ones((7, 3)), "b": np.ones(5)})


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


# ---- Manager ---------------------------------------------------------------------------------------------------------
def test_the_last_few_are_kept_and_the_newest_is_found(tmp_path):
    opt, manager = small(), Manager(tmp_path / "a" / "b", keep=2)
    assert manager.latest() is None and manager.load(opt) is None
    for k in range(4):
        step(opt)
        path = manager.save(opt, extra={"k": k})
        assert manager.latest() == path
    assert names(tmp_path / "a" / "b") == [f"checkpoint-00000{k + 1}-step-{k + 4}.safetensors" for k in (2, 3)]
    other = small(seed=1)
    assert Manager(tmp_path / "a" / "b").load(other) == {"k": 3} and content(other) == content(opt)
    manager.save(opt)
    assert manager.load(other) == {}
    assert repr(manager) == f"Manager({str(tmp_path / 'a' / 'b')!r}, keep=2, background=False)"


def test_the_order_is_that_of_saving_and_not_of_steps(tmp_path):
    opt, manager = small(), Manager(tmp_path, keep=2)
    first = small()
    for _ in range(3):
        step(opt)
    manager.save(opt)
    late = manager.save(first)  # a run that went back
    assert manager.latest() == late and manager.load(opt) == {} and opt.t == 3
    for name in ("notes.txt", "checkpoint-9-step-1.safetensors", "checkpoint-000009-step-1.safetensors.bak"):
        (tmp_path / name).write_text("mine")
    for _ in range(3):
        manager.save(opt)
    assert len(names(tmp_path)) == 5, "what has another name is not ours"


def test_damaged_ones_are_skipped_and_named(tmp_path):
    opt, manager = small(), Manager(tmp_path, keep=None)
    paths = []
    for _ in range(4):
        step(opt)
        paths.append(manager.save(opt, extra={"t": opt.t}))
    damage(paths[3])
    paths[2].write_bytes(paths[2].read_bytes()[:700])
    for use in (manager.latest, lambda: manager.load(small(seed=1))):
        with pytest.warns(RuntimeWarning) as told:
            found = use()
        assert found in (paths[1], {"t": 5})
        texts = [str(w.message) for w in told]
        assert len(texts) == 2 and paths[3].name in texts[0] and "checksum of `state/v/w`" in texts[0]
        assert paths[2].name in texts[1] and "is damaged" in texts[1] and "trying an older" in texts[1]
    damage(paths[1])
    damage(paths[0])
    before = content(opt)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(fo.CheckpointError, match=r"none of the 4 checkpoints in .* is whole"),
    ):
        manager.load(opt)
    assert content(opt) == before


def test_one_that_does_not_fit_is_an_error_and_no_reason_to_go_back(tmp_path):
    manager = Manager(tmp_path)
    manager.save(small())
    other = fo.sgd({"w": np.ones(3)})
    with pytest.raises(fo.CheckpointError, match="does not fit"):
        manager.load(other)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": True}, {"keep": 1.5}, {"background": 1}])
def test_wrong_settings(options, tmp_path):
    with pytest.raises(fo.ConfigError, match=r"Manager: `(keep|background)` is"):
        Manager(tmp_path, **options)
    with pytest.raises(fo.CheckpointError, match="expected a str or a Path"):
        Manager(3)
    (tmp_path / "file").write_text("x")
    with pytest.raises(fo.CheckpointError, match="cannot make the folder"):
        Manager(tmp_path / "file")


# ---- background ------------------------------------------------------------------------------------------------------
@pytest.fixture
def gate(monkeypatch):
    """Holds the thread that writes until it is opened."""
    event, real = threading.Event(), files.write

    def held(path, pieces):
        if threading.current_thread() is not threading.main_thread():
            assert event.wait(30)
        real(path, pieces)

    monkeypatch.setattr(files, "write", held)
    yield event
    event.set()


def test_the_background_writes_what_was_there_when_save_was_called(tmp_path, gate):
    opt, losses = small(), np.zeros(3)
    right = content(opt)
    manager = Manager(tmp_path, background=True)
    path = manager.save(opt, extra={"losses": losses})
    assert not path.exists()
    for _ in range(5):  # the run goes on meanwhile
        step(opt)
        losses += 1
    gate.set()
    manager.wait()
    other = small(seed=1)
    assert other.load(path)["losses"].tolist() == [0, 0, 0] and content(other) == right


def test_the_next_save_the_end_of_a_block_and_a_search_wait(tmp_path, gate):
    opt = small()
    manager = Manager(tmp_path, keep=1, background=True)
    first = manager.save(opt)
    threading.Timer(0.05, gate.set).start()
    second = manager.save(opt)
    manager.wait()
    assert not first.exists() and manager.files == [second]
    gate.clear()
    threading.Timer(0.05, gate.set).start()
    with manager:
        third = manager.save(opt)
    assert manager.files == [third]
    gate.clear()
    fourth = manager.save(opt)
    threading.Timer(0.05, gate.set).start()
    assert manager.latest() == fourth


def test_an_error_in_the_background_is_raised_once_by_the_next_call(tmp_path, monkeypatch):
    opt = small()
    manager = Manager(tmp_path, background=True)
    good = manager.save(opt)
    manager.wait()

    def full(path, pieces):
        raise fo.CheckpointError("cannot save: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", full)
        for call in (Manager.wait, lambda m: m.save(opt), Manager.latest, lambda m: m.load(opt)):
            manager.save(opt)
            with pytest.raises(fo.CheckpointError, match=r"in the background failed.*No space left"):
                call(manager)
        manager.save(opt)
        with pytest.raises(fo.CheckpointError, match="No space left"), manager:
            pass
        manager.save(opt)
        with pytest.warns(RuntimeWarning, match="No space left"):  # nobody waits any more
            del manager
            gc.collect()
    assert Manager(tmp_path).latest() == good


def test_content_that_cannot_be_saved_is_refused_before_the_thread_starts(tmp_path):
    manager = Manager(tmp_path, background=True)
    for extra in ({"f": print}, {"z": np.ones(2, complex)}):
        with pytest.raises(fo.CheckpointError, match="extra/"):
            manager.save(small(), extra=extra)
    assert not names(tmp_path)


# ---- Checkpoint ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of a run that nobody killed."""
    result = train(tmp_path_factory.mktemp("whole"))
    assert result.reason == "early stopping" and result.epochs < 12
    return json.loads(json.dumps(ending(result)))


@posix
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(whole, tmp_path):
    found = process("trained", tmp_path)
    assert found["deaths"] > 5
    assert found["end"] == whole
    # started again after its end it is still at its end
    assert process("resumed", tmp_path)["end"] == whole
    assert len(names(tmp_path / "many")) == 2


def test_a_run_that_a_callback_has_stopped_stays_stopped(tmp_path):
    calls = []

    def uphill(w):
        calls.append(w.copy())
        return float(len(calls)), -np.ones(2)  # never better than at the start

    def go():
        callbacks = [fo.KeepBest(), fo.EarlyStopping(patience=2), fo.Checkpoint(Manager(tmp_path))]
        w = np.zeros(2)
        return fo.minimize(uphill, w, rule=fo.sgd, lr=0.1, steps=50, callbacks=callbacks), w

    first, _ = go()
    assert first.reason == "early stopping" and first.steps == 3 and len(calls) == 4
    again, w = go()
    assert (again.reason, again.message, again.steps) == (first.reason, first.message, 3)
    assert again.history["loss"] == first.history["loss"] and w.tolist() == [0, 0]
    assert len(calls) == 5, "minimize asks for the loss of the start before a callback can load another place"


class Stop(Exception):
    pass


def stopping(at):
    def on_step(run):
        if run.step == at:
            raise Stop

    return type("Stopping", (), {"on_step": staticmethod(on_step)})()


@pytest.mark.parametrize("every", [1, 7, 25, None])
def test_a_run_broken_off_at_any_step_ends_with_the_same_bits(every, tmp_path):
    """Batches of 50 make 8 an epoch; 1 saves at every step, 25 inside epochs, None between them."""
    x, y = regression()
    n = len(x)

    def go(folder, *callbacks):
        params = line()
        result = fo.minimize(
            squares, params, (x, y), rule=fo.adam, lr=0.05, batch_size=-(-n // 8), epochs=5,
            callbacks=[fo.Checkpoint(Manager(folder), every), fo.KeepBest(), *callbacks],
        )  # fmt: skip
        return ending(result)

    right = go(tmp_path / "right")
    for at in (1, 7, 8, 9, 15, 16, 17, 26, 40):
        with pytest.raises(Stop):
            go(tmp_path / str(at), stopping(at))
        assert go(tmp_path / str(at)) == right, at


@pytest.mark.parametrize("every", [1, 4, None])
def test_a_full_batch_run_goes_on_too(every, tmp_path):
    def go(folder, *callbacks):
        w = np.array([4.0, -3.0])
        saved = [fo.Checkpoint(Manager(folder), every), fo.KeepBest()]
        return ending_of(fo.minimize(bowl, w, rule=fo.adam, lr=0.1, steps=15, callbacks=[*saved, *callbacks]))

    def ending_of(result):
        history = {k: v for k, v in result.history.items() if k != "seconds"}
        return history, result.params.tolist(), result.steps, result.epochs, result.best_epoch, result.loss

    right = go(tmp_path / "right")
    for at in (1, 4, 5, 14, 15):
        with pytest.raises(Stop):
            go(tmp_path / str(at), stopping(at))
        assert go(tmp_path / str(at)) == right, at


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    x, y = regression()

    def go(folder, **limits):
        params = line()
        result = fo.minimize(
            squares,
            params,
            (x, y),
            rule=fo.adam,
            lr=0.05,
            batch_size=9,
            callbacks=fo.Checkpoint(Manager(folder)),
            **limits,
        )
        return ending_without_best(result)

    def ending_without_best(result):
        history = {k: v for k, v in result.history.items() if k != "seconds"}
        return history, [a.tolist() for a in result.params.values()], result.steps, result.epochs

    go(tmp_path / "a", epochs=2)
    assert go(tmp_path / "a", epochs=5) == go(tmp_path / "b", epochs=5)
    seconds = fo.minimize(
        squares,
        line(),
        (x, y),
        rule=fo.adam,
        lr=0.05,
        batch_size=9,
        epochs=7,
        callbacks=fo.Checkpoint(Manager(tmp_path / "a")),
    ).history["seconds"]
    assert len(seconds) == 7 and seconds == sorted(seconds)


def test_data_of_ones_own_is_saved_between_epochs(tmp_path):
    x, y = regression()

    class Batches:
        """Knows how many epochs it gave, and no position inside."""

        def __init__(self):
            self.epoch = 0

        def __iter__(self):
            order = np.random.default_rng(self.epoch).permutation(len(x))
            for k in range(0, len(x), 9):
                yield x[order[k : k + 9]], y[order[k : k + 9]]
            self.epoch += 1

        def state_dict(self):
            return {"epoch": self.epoch}

        def load_state_dict(self, state):
            self.epoch = state["epoch"]

    def go(folder, *callbacks):
        result = fo.minimize(
            squares, line(), Batches(), rule=fo.adam, lr=0.05, epochs=4,
            callbacks=[fo.Checkpoint(Manager(folder), every=5), fo.KeepBest(), *callbacks],
        )  # fmt: skip
        return ending(result)

    right = go(tmp_path / "right")
    for at in (3, len(x) // 9 + 5):
        with pytest.raises(Stop):
            go(tmp_path / str(at), stopping(at))
        assert go(tmp_path / str(at)) == right


def test_what_does_not_belong_is_refused_before_anything_changes(tmp_path):
    x, y = regression()
    saved = [fo.Checkpoint(Manager(tmp_path))]
    fo.minimize(squares, line(), (x, y), rule=fo.adam, batch_size=9, epochs=1, callbacks=saved)

    def go(says, **options):
        params = line()
        before = [a.copy() for a in params.values()]
        options = {"data": (x, y), "rule": fo.adam, "batch_size": 9, "epochs": 3, "callbacks": saved} | options
        with pytest.raises(fo.FastoptError) as error:
            fo.minimize(squares, params, **options)
        assert says in str(error.value), str(error.value)
        assert all(map(np.array_equal, before, params.values()))

    go("`seed` was 0 when", seed=3)
    go("`batch_size` was 9 when", batch_size=8)
    go("is of rule `adam`", rule=fo.sgd)
    go("here are `EarlyStopping`", callbacks=[*saved, fo.EarlyStopping()])
    go("other data", batch_size=None)
    go("`Restarts`", callbacks=[*saved, fo.Restarts(2, perturb=0.1)])
    go("another", callbacks=[*saved, *saved])
    batches = fo.minibatches(x, y, batch_size=9)
    next(iter(batches))
    place = batches.state_dict()
    go("here are `EarlyStopping`", data=batches, batch_size=None, callbacks=[*saved, fo.EarlyStopping()])
    assert batches.state_dict() == place
    Manager(tmp_path).save(fo.adam(line()))
    go("was not saved by a `Checkpoint`")
    for bad in (lambda: fo.Checkpoint(tmp_path), lambda: fo.Checkpoint(Manager(tmp_path), every=0)):
        with pytest.raises(fo.ConfigError, match=r"Checkpoint: `(manager|every)` is"):
            bad()


def test_an_error_of_the_disk_leaves_minimize(tmp_path, monkeypatch):
    manager = Manager(tmp_path, background=True)

    def full(path, pieces):
        raise fo.CheckpointError("cannot save: No space left on device.")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(fo.CheckpointError, match="No space left"):
        fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=1, callbacks=fo.Checkpoint(manager))
