"""The optimisation process: what it does to parameters, when it stops, and what it reports."""

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt.callbacks import Target
from fastopt.errors import ConfigError, GradientError

A = np.array([[3.0, 1.0], [1.0, 2.0]])


def bowl(w):
    """(w - 1) A (w - 1) / 2, minimum 0 at (1, 1)."""
    d = w - 1
    return 0.5 * d @ A @ d, A @ d


def regression(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.01 * rng.standard_normal(n)


def squares(params, x, y):
    r = x @ params["w"] + params["b"] - y
    return float(r @ r / len(y) / 2), {"w": x.T @ r / len(y), "b": np.array([r.mean()])}


def line():
    return {"w": np.zeros(3), "b": np.zeros(1)}


# ---- descent ---------------------------------------------------------------------------------------------------------


def test_full_batch_equals_a_loop_written_by_hand():
    w, v = np.array([4.0, -3.0]), np.array([4.0, -3.0])
    result = fo.minimize(bowl, w, rule=fo.adam, lr=0.1, steps=50)
    optimizer, losses = fo.adam(v, lr=0.1), []
    for _ in range(50):
        optimizer.step(bowl(v)[1])
        losses.append(bowl(v)[0])
    assert np.array_equal(w, v)
    assert result.history["loss"] == losses and result.loss == losses[-1] == bowl(result.params)[0]
    assert (result.steps, result.epochs, result.reason) == (50, 50, "steps")
    assert result.params is w and result.optimizer.t == 50


def test_mini_batches_equal_a_loop_written_by_hand():
    x, y = regression()
    a, b = line(), line()
    result = fo.minimize(squares, a, (x, y), rule=fo.adam, lr=0.05, batch_size=10, epochs=3, seed=4)
    optimizer, batches, losses = fo.adam(b, lr=0.05), fo.minibatches(x, y, batch_size=10, seed=4), []
    for _ in range(3):
        total = 0.0
        for bx, by in batches:
            loss, grads = squares(b, bx, by)
            optimizer.step(grads)
            total += loss * len(bx)
        losses.append(total / 64)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert result.history["loss"] == losses and result.loss == losses[-1]
    assert (result.steps, result.epochs, result.reason) == (21, 3, "epochs")


@pytest.mark.parametrize("batch_size", [None, 64, 16, 7, 1])
def test_every_batch_size_finds_the_regression(batch_size):
    x, y = regression()
    params = line()
    epochs = {None: 200, 64: 200, 16: 60, 7: 40, 1: 10}[batch_size]
    result = fo.minimize(squares, params, (x, y), rule=fo.sgd, lr=0.1, batch_size=batch_size, epochs=epochs)
    np.testing.assert_allclose(params["w"], [1, -2, 0.5], atol=0.02)  # the noise in y is 0.01
    assert result.epochs == epochs and result.steps == epochs * math.ceil(64 / (batch_size or 64))


def test_a_minibatches_object_and_plain_batches():
    x, y = regression()
    a, b, c = line(), line(), line()
    kinds = (
        (x, y),
        fo.minibatches(x, y, batch_size=16, shuffle=False),
        [(x[k : k + 16], y[k : k + 16]) for k in (0, 16, 32, 48)],
    )
    for params, data in zip((a, b, c), kinds, strict=True):
        options = {"batch_size": 16, "shuffle": False} if isinstance(data, tuple) else {}
        fo.minimize(squares, params, data, rule=fo.sgd, lr=0.1, epochs=3, **options)
    assert np.array_equal(a["w"], b["w"]) and np.array_equal(a["w"], c["w"])


def test_one_array_of_data_nested_and_packed_parameters():
    x = regression()[0]

    def mean(params, batch):
        d = params[0]["centre"] - batch.mean(axis=0)
        return float(d @ d / 2), [{"centre": d}]

    for params in ([{"centre": np.zeros(3)}], fo.pack([{"centre": np.zeros(3)}])):
        fo.minimize(mean, params, x, rule=fo.sgd, lr=0.5, epochs=30)
        np.testing.assert_allclose(params[0]["centre"], x.mean(axis=0), atol=1e-6)


def test_packed_parameters_may_fill_their_own_gradients():
    packed = fo.pack({"w": np.array([4.0, -3.0])})

    def fill(params):
        loss, params.grads["w"][:] = bowl(params["w"])
        return loss, None

    assert fo.minimize(fill, packed, rule=fo.adam, lr=0.1, steps=300).loss < 1e-4


def test_steps_cut_an_epoch_short():
    x, y = regression()
    result = fo.minimize(squares, line(), (x, y), rule=fo.sgd, batch_size=16, steps=6)
    assert (result.steps, result.epochs, result.reason, len(result.history["loss"])) == (6, 2, "steps", 2)


def test_nothing_to_do():
    w = np.array([4.0, -3.0])
    result = fo.minimize(bowl, w, rule=fo.sgd, steps=0)
    assert (result.steps, result.loss, w.tolist()) == (0, bowl(w)[0], [4.0, -3.0])
    assert fo.minimize(squares, line(), regression(), rule=fo.sgd, batch_size=8, epochs=0).steps == 0


def test_groups_schedules_and_history():
    params = {"w": np.array([4.0, -3.0]), "fixed": np.ones(2)}

    def both(p):
        loss, g = bowl(p["w"])
        return loss, {"w": g, "fixed": np.ones(2)}

    groups = [fo.Group("fixed", frozen=True)]
    result = fo.minimize(both, params, rule=fo.sgd, lr=lambda t: 0.1 / t, steps=4, groups=groups)
    assert params["fixed"].tolist() == [1, 1]
    assert result.history["lr"] == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025], rel=1e-12)
    assert set(result.history) == {"loss", "lr", "seconds"} and all(len(v) == 4 for v in result.history.values())
    assert sorted(result.history["seconds"]) == result.history["seconds"]


def test_schedules_are_not_asked_beyond_the_last_step():
    rates = {1: 0.1, 2: 0.2, 3: 0.3}
    result = fo.minimize(bowl, np.array([4.0, -3.0]), rule=fo.sgd, lr=lambda t: rates[t], steps=3)
    assert result.history["lr"] == [0.1, 0.2, 0.3]


def test_plateau_is_fed_and_reset_for_every_run():
    plateau = fo.schedules.Plateau(0.1, factor=0.5, patience=1)
    flat = [np.zeros(2)]

    def constant(params):
        return 1.0, [np.zeros(2)]

    result = fo.minimize(constant, flat, rule=fo.sgd, lr=plateau, steps=7)
    assert result.history["lr"][0] == 0.1 and result.history["lr"][-1] < 0.05
    after = plateau.value
    again = fo.minimize(
        constant, flat, rule=fo.sgd, lr=fo.schedules.Plateau(0.1, factor=0.5, patience=1), steps=7,
        callbacks=[fo.Restarts(2, perturb=0.1)],
    )  # fmt: skip
    assert again.history["lr"] == result.history["lr"] and plateau.value == after


def test_plateau_inside_a_warmup_and_a_group():
    inner = fo.schedules.Plateau(0.1, factor=0.5, patience=0)
    grouped = fo.schedules.Plateau(0.2, factor=0.5, patience=0)
    fo.minimize(
        lambda p: (1.0, {"a": np.zeros(1), "b": np.zeros(1)}),
        {"a": np.zeros(1), "b": np.zeros(1)},
        rule=fo.sgd,
        lr=fo.schedules.warmup(inner, steps=2),
        groups=[fo.Group("b", lr=grouped)],
        steps=5,
    )
    assert inner.value < 0.1 and grouped.value < 0.2


# ---- validation and overfitting --------------------------------------------------------------------------------------


def test_validation_may_be_a_number_or_a_dict():
    w = np.array([4.0, -3.0])
    result = fo.minimize(bowl, w, rule=fo.sgd, lr=0.1, steps=5, validation=lambda p: float(np.abs(p).sum()))
    assert result.validation == result.history["validation"][-1] == np.abs(w).sum()
    result = fo.minimize(bowl, w, rule=fo.sgd, steps=2, validation=lambda p: {"loss": np.float32(2), "accuracy": 0.5})
    assert result.history["validation.accuracy"] == [0.5, 0.5] and result.metric == 2
    with pytest.raises(ConfigError, match="key `loss` is missing"):
        fo.minimize(bowl, w, rule=fo.sgd, steps=2, validation=lambda p: {"accuracy": 0.5})
    with pytest.raises(ConfigError, match="`loss` of `validation` is 'low'"):
        fo.minimize(bowl, w, rule=fo.sgd, steps=2, validation=lambda p: "low")


def u_turn(best_at):
    """Training loss falls for ever; validation is best when the parameter passes `best_at`."""
    return (lambda p: (float(-p[0]), [-np.ones(1)][0])), (lambda p: abs(float(p[0]) - best_at))


def test_early_stopping_and_keep_best():
    train, validation = u_turn(best_at=5.0)
    callbacks = [fo.EarlyStopping(patience=3), fo.KeepBest()]
    for order in (callbacks, callbacks[::-1]):
        p = np.zeros(1)
        result = fo.minimize(train, p, rule=fo.sgd, lr=1.0, steps=100, validation=validation, callbacks=order)
        assert (result.reason, result.steps, result.best_epoch) == ("early stopping", 8, 5)
        assert p.tolist() == [5.0] and result.best_params.tolist() == [5.0] and result.best_params is not p
        assert result.best_loss == result.validation == 0 and result.loss == -5
        assert "3 epochs" in result.message


def test_early_stopping_alone_keeps_the_last_parameters():
    train, validation = u_turn(best_at=5.0)
    p = np.zeros(1)
    result = fo.minimize(
        train, p, rule=fo.sgd, lr=1.0, steps=100, validation=validation, callbacks=[fo.EarlyStopping(3)]
    )
    assert p.tolist() == [8.0] and result.best_params is None and result.best_loss == 0


def test_min_delta_counts_small_improvements_as_none():
    losses = iter([1.0, 0.9, 0.89, 0.88, 0.87, 0.5])
    result = fo.minimize(
        lambda p: (next(losses), np.zeros(1)), np.zeros(1), rule=fo.sgd, steps=5,
        callbacks=[fo.EarlyStopping(patience=2, min_delta=0.05)],
    )  # fmt: skip
    assert (result.reason, result.steps) == ("early stopping", 3)


def test_keep_best_against_overfitting_on_real_noise():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((30, 25)), rng.standard_normal(30)
    y += x[:, 0]
    x_test, y_test = x[20:], y[20:]

    def fit(params, x, y):
        r = x @ params - y
        return float(r @ r / len(y)), 2 * x.T @ r / len(y)

    def test_loss(params):
        return fit(params, x_test, y_test)[0]

    ends = []
    for callbacks in ([], [fo.KeepBest()]):
        w = np.zeros(25)
        result = fo.minimize(
            fit,
            w,
            (x[:20], y[:20]),
            rule=fo.adam,
            lr=0.02,
            batch_size=5,
            epochs=100,
            validation=test_loss,
            callbacks=callbacks,
        )
        ends.append(test_loss(w))
        assert result.validation == ends[-1]
    assert ends[1] < 0.9 * ends[0] and ends[1] == result.best_loss


def test_keep_best_without_validation_belongs_to_the_parameters_exactly():
    w = np.array([4.0, -3.0])
    result = fo.minimize(bowl, w, rule=fo.sgd, lr=0.9, momentum=0.5, steps=30, callbacks=[fo.KeepBest()])
    assert result.best_loss == result.loss == bowl(w)[0] == min(bowl(np.array([4.0, -3.0]))[0], *result.history["loss"])


def test_target():
    w = np.array([4.0, -3.0])
    result = fo.minimize(bowl, w, rule=fo.sgd, lr=0.1, steps=1000, callbacks=[Target(0.01)])
    assert result.reason == "target" and bowl(w)[0] == result.loss <= 0.01 < result.history["loss"][-2]
    again = fo.minimize(bowl, w, rule=fo.sgd, lr=0.1, steps=1000, callbacks=[Target(0.01)])
    assert (again.reason, again.steps) == ("target", 0)


def test_own_callbacks():
    heard = []

    class Ear:
        def on_start(self, run):
            heard.append("start")

        def on_step(self, run):
            heard.append(run.step)
            run.optimizer.set(lr=0.2)

        def on_end(self, run):
            heard.append("end")

    def second_epoch(run):
        return "seen enough" if run.epoch == 2 else None

    x, y = regression(8)
    result = fo.minimize(squares, line(), (x, y), rule=fo.sgd, batch_size=4, epochs=9, callbacks=[second_epoch, Ear()])
    assert heard == ["start", 1, 2, 3, 4, "end"] and result.reason == result.message == "seen enough"
    assert result.history["lr"] == [1e-3, 0.2]


# ---- local minima ----------------------------------------------------------------------------------------------------


def rastrigin(x):
    """Global minimum 0 at 0, a local one near every grid point."""
    value = 10 * x.size + np.sum(x * x - 10 * np.cos(2 * np.pi * x))
    return float(value), 2 * x + 20 * np.pi * np.sin(2 * np.pi * x)


def test_restarts_beat_a_single_run_on_rastrigin():
    single, many, drawn = (np.array([3.2, -2.7]) for _ in range(3))
    options = dict(rule=fo.adam, lr=0.05, steps=150)
    alone = fo.minimize(rastrigin, single, **options)
    result = fo.minimize(rastrigin, many, callbacks=[fo.Restarts(20, perturb=2.0, seed=1)], **options)
    redraw = fo.Restarts(20, redraw=lambda rng: rng.uniform(-5, 5, 2), seed=1)
    other = fo.minimize(rastrigin, drawn, callbacks=[redraw], **options)
    for better, x in ((result, many), (other, drawn)):
        assert better.loss < 0.5 * alone.loss and len(better.runs) == 21
        assert better.loss == min(better.runs) == rastrigin(x)[0] and np.array_equal(better.best_params, x)
        assert better.steps == 150 == better.optimizer.t and "best of 21 runs" in better.message
    assert result.runs[0] == alone.loss


def test_restarts_are_repeatable_leave_frozen_parameters_and_survive_bad_runs():
    def f(p):
        loss, g = rastrigin(p["x"])
        return (math.nan if p["x"][0] > 4 else loss), {"x": g, "fixed": np.ones(1)}

    ends = []
    for _ in range(2):
        params = {"x": np.array([3.2, -2.7]), "fixed": np.ones(1)}
        result = fo.minimize(
            f, params, rule=fo.adam, lr=0.05, steps=40, groups=[fo.Group("fix*", frozen=True)],
            callbacks=[fo.Restarts(6, perturb=2.0), fo.KeepBest()],
        )  # fmt: skip
        ends.append(params["x"])
        assert params["fixed"].tolist() == [1.0] and result.reason == "steps"
    assert np.array_equal(*ends)


def test_restarts_interrupted_keep_the_best_run_so_far():
    calls = 0

    def f(x):
        nonlocal calls
        calls += 1
        if calls == 120:
            raise KeyboardInterrupt
        return rastrigin(x)

    x = np.array([3.2, -2.7])
    result = fo.minimize(f, x, rule=fo.adam, lr=0.05, steps=50, callbacks=[fo.Restarts(20, perturb=2.0)])
    assert result.reason == "interrupted" and len(result.runs) == 3
    assert rastrigin(x)[0] == min(result.runs)


def test_redraw_of_other_shapes_is_refused():
    with pytest.raises(ConfigError, match=r"`redraw` returned: `params` has shape \(3,\); the parameter has \(2,\)"):
        fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=1, callbacks=[fo.Restarts(1, redraw=lambda rng: np.ones(3))])


# ---- endings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_stops_before_its_gradient(bad):
    x, y = regression()
    params, seen = line(), []

    def f(params, x, y):
        loss, grads = squares(params, x, y)
        seen.append((loss, {k: v.copy() for k, v in params.items()}))
        return (bad if len(seen) == 7 else loss), grads

    result = fo.minimize(f, params, (x, y), rule=fo.sgd, lr=0.1, batch_size=16, epochs=5)
    assert (result.reason, result.steps, result.epochs) == ("non-finite loss", 6, 1)
    assert all(np.array_equal(params[k], seen[6][1][k]) for k in params)
    assert f"{bad} at step 7, epoch 2" in result.message and f"{seen[5][0]:.6g}" in result.message
    assert len(result.history["loss"]) == 1


def test_divergence_with_keep_best_returns_the_best():
    w = np.array([4.0, -3.0])
    with np.errstate(all="ignore"):
        result = fo.minimize(bowl, w, rule=fo.sgd, lr=10.0, steps=5000, callbacks=[fo.KeepBest()])
    assert result.reason == "non-finite loss" and w.tolist() == [4.0, -3.0] and result.loss == bowl(w)[0]
    assert result.best_epoch == 0
    x, y = regression()
    params = line()
    result = fo.minimize(
        lambda p, x, y: (math.nan, p), params, (x, y), rule=fo.sgd, batch_size=9, epochs=2, callbacks=[fo.KeepBest()]
    )
    assert result.steps == 0 and not params["w"].any() and result.best_loss == math.inf


@pytest.mark.parametrize("where", ["loss", "validation", "callback"])
def test_ctrl_c_returns_what_there_is(where):
    x, y = regression()
    params, calls = line(), dict.fromkeys(("loss", "validation", "callback"), 0)

    def count(name, limit):
        calls[name] += 1
        if name == where and calls[name] == limit:
            raise KeyboardInterrupt

    def f(params, x, y):
        count("loss", 7)
        return squares(params, x, y)

    def validation(params):
        count("validation", 2)
        return squares(params, x, y)[0]

    result = fo.minimize(
        f, params, (x, y), rule=fo.adam, lr=0.01, batch_size=16, epochs=5, validation=validation,
        callbacks=[lambda run: count("callback", 2), fo.KeepBest()],
    )  # fmt: skip
    assert result.reason == "interrupted" and "interrupted after step" in result.message
    assert (result.steps, result.epochs) == {"loss": (6, 1), "validation": (8, 1), "callback": (8, 2)}[where]
    assert result.optimizer.t == result.steps and result.best_epoch in (1, 2)
    result.optimizer.step(squares(params, x, y)[1])  # goes on from here


def test_an_interrupt_inside_a_step_is_counted_by_the_kernel():
    """Ctrl-C is raised after the kernel, before Python counts."""
    w = np.array([4.0, -3.0])

    class Late:
        def on_start(self, run):
            step = run.optimizer.step

            def late(grads):
                step(grads)
                if run.optimizer.t == 3:
                    raise KeyboardInterrupt

            run.optimizer.step = late

    result = fo.minimize(bowl, w, rule=fo.sgd, lr=0.1, steps=9, callbacks=[Late()])
    assert (result.reason, result.steps) == ("interrupted", 3) and "cut in two" not in result.message


def test_a_torn_optimizer_is_named():
    def tear(run):
        if run.epoch == 2:
            run.optimizer._clock[1] = 1  # what an interrupt between two kernels leaves
            raise KeyboardInterrupt

    result = fo.minimize(bowl, np.array([4.0, -3.0]), rule=fo.sgd, lr=0.1, steps=9, callbacks=[tear])
    assert "step 3 was cut in two" in result.message
    with pytest.raises(fo.TornStateError):
        result.optimizer.step(np.ones(2))


def test_other_exceptions_pass_through():
    with pytest.raises(ZeroDivisionError):
        fo.minimize(lambda p: 1 / 0, np.ones(2), rule=fo.sgd, steps=3)
    with pytest.raises(GradientError, match="shape"):
        fo.minimize(lambda p: (1.0, np.ones(3)), np.ones(2), rule=fo.sgd, steps=3)


def test_result_is_frozen_and_readable():
    result = fo.minimize(bowl, np.array([4.0, -3.0]), rule=fo.adam, lr=0.1, steps=20, validation=lambda p: 0.5)
    with pytest.raises(AttributeError):
        result.loss = 0.0  # type: ignore[misc]
    text = repr(result)
    assert (
        all(part in text for part in ("reason='steps'", "validation=0.5", "steps=20", "rule=adam")) and len(text) < 250
    )


def test_progress_draws_a_bar_and_gives_the_terminal_back(capsys):
    x, y = regression()
    fo.minimize(squares, line(), (x, y), rule=fo.sgd, batch_size=16, epochs=3, progress=True)
    assert "3/3" in capsys.readouterr().out
    fo.minimize(bowl, np.ones(2) * 4, rule=fo.sgd, steps=7, progress=True, validation=lambda p: 0.25)
    out = capsys.readouterr().out
    assert "7/7" in out and "0.25" in out
    with pytest.raises(ZeroDivisionError):
        fo.minimize(lambda p: 1 / 0, np.ones(2), rule=fo.sgd, steps=7, progress=True)
    fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=7, progress=True)  # a second live display would be refused


def test_progress_without_rich_says_what_to_install(monkeypatch):
    import sys

    for name in ("rich", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    w = np.ones(2)
    with pytest.raises(ConfigError, match=r'needs rich.*pip install "fastopt\[demo\]"'):
        fo.minimize(bowl, w, rule=fo.sgd, steps=7, progress=True)
    assert w.tolist() == [1, 1]


BAD = [
    (dict(), "give `epochs=` or `steps=`"),
    (dict(steps=-1), "`steps` is -1"),
    (dict(steps=True), "`steps` is True"),
    (dict(epochs=1.5), "`epochs` is 1.5"),
    (dict(steps=1, rule="adam"), "`rule` is 'adam'"),
    (dict(steps=1, epoch=3), "`epoch` is no option.*Did you mean `epochs`"),
    (dict(steps=1, beta3=3), "`beta3` is no option.*Did you mean"),
    (dict(steps=1, maximize=True), "`maximize` is no option"),
    (dict(steps=1, lr=-1.0), "`lr` is -1.0"),
    (dict(steps=1, batch_size=4), "`batch_size` is for `data`"),
    (dict(steps=1, data=(np.ones(3), np.ones(4))), r"hold \[3, 4\] examples"),
    (dict(steps=1, data=np.ones((0, 3))), r"hold \[0\] examples"),
    (dict(steps=1, data=np.ones(3), batch_size=0), "`batch_size` is 0"),
    (dict(steps=1, data=[np.ones(3), np.ones(3)]), "write a tuple"),
    (dict(steps=1, data=iter([1])), "empty after one epoch"),
    (dict(steps=1, data=([1], [2])), "`data` is a tuple"),
    (dict(steps=1, data=3), "`data` is a int"),
    (dict(steps=1, callbacks=[fo.KeepBest]), r"write KeepBest\(...\)"),
    (dict(steps=1, callbacks=["x"]), "'x' is not a callback"),
    (dict(steps=1, callbacks=[fo.Restarts(1, perturb=1.0)] * 2), "more than one `Restarts`"),
]


@pytest.mark.parametrize("options, words", BAD, ids=[words for _, words in BAD])
def test_bad_calls_are_refused_before_anything_happens(options, words):
    w = np.ones(2)
    with pytest.raises(ConfigError, match=words):
        fo.minimize(lambda p, *batch: pytest.fail("called"), w, **{"rule": fo.adam, **options})
    assert w.tolist() == [1, 1]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: fo.EarlyStopping(0), "`patience` is 0"),
        (lambda: fo.EarlyStopping(3, min_delta=-1), "`min_delta` is -1"),
        (lambda: Target(math.nan), "`loss` is nan"),
        (lambda: fo.Restarts(0, perturb=1), "`n` is 0"),
        (lambda: fo.Restarts(3), "either `perturb`"),
        (lambda: fo.Restarts(3, perturb=-1.0), "`perturb` is -1.0"),
        (lambda: fo.Restarts(3, perturb=1.0, redraw=lambda rng: 0), "either `perturb`"),
    ],
)
def test_callbacks_check_their_settings(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "answer, words",
    [
        (3.0, "float; expected"),
        ((1, 2, 3), "tuple; expected"),
        (("a", 1), "loss .* is 'a'"),
        ((1j, np.ones(2)), "is 1j"),
        ((np.ones(2), np.ones(2)), "array of shape"),
    ],
)
def test_a_wrong_answer_of_the_loss_is_named(answer, words):
    with pytest.raises(ConfigError, match=words):
        fo.minimize(lambda p: answer, np.ones(2), rule=fo.sgd, steps=1)


@pytest.mark.parametrize("loss", [np.float32(0.5), np.array(0.5), np.array([0.5]), 1, np.array([[0.5]])])
def test_losses_may_be_any_real_scalar(loss):
    assert fo.minimize(lambda p: (loss, np.zeros(2)), np.ones(2), rule=fo.sgd, steps=1).loss == float(np.sum(loss))


def test_no_batches_is_an_error_and_no_endless_loop():
    with pytest.raises(ConfigError, match="no batch"):
        fo.minimize(squares, line(), [], rule=fo.sgd, steps=3)


def test_gradients_of_none_still_end():
    assert fo.minimize(lambda p: (1.0, [None]), [np.ones(2)], rule=fo.sgd, steps=3).epochs == 3
