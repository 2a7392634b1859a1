"""Early stopping and keeping the best against overfitting, restarts against local minima, metrics for `Plateau`."""

import math

import numpy as np
import pytest
from problems import bowl, line, regression, squares

import fastopt as fo
from fastopt.callbacks import Target
from fastopt.errors import ConfigError


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


@pytest.mark.parametrize("pack", [False, True])
def test_validation_and_callbacks_may_call_a_loss_that_reuses_its_gradients(pack):
    x, y = regression()
    ends = []
    for options in ({}, {"validation": True}, {"callbacks": True}):
        params = fo.pack(line()) if pack else line()
        reused = params.grads if pack else line()

        def f(params, x, y, reused=reused):
            loss, grads = squares(params, x, y)
            for name, g in grads.items():
                reused[name][:] = g
            return loss, None if pack else reused

        def other(params, f=f):
            return f(params, x[:5], 9 + y[:5])[0]

        given = {
            "validation": other if "validation" in options else None,
            "callbacks": [lambda run, other=other: other(run.params) < 0] if "callbacks" in options else [],
        }
        fo.minimize(f, params, (x, y), rule=fo.adam, lr=0.1, steps=20, **given)
        ends.append(params["w"].copy())
    assert np.array_equal(ends[0], ends[1]) and np.array_equal(ends[0], ends[2])


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
    callbacks = [lambda run: False, second_epoch, Ear()]
    result = fo.minimize(squares, line(), (x, y), rule=fo.sgd, batch_size=4, epochs=9, callbacks=callbacks)
    assert heard == ["start", 1, 2, 3, 4, "end"] and result.reason == result.message == "seen enough"
    assert result.history["lr"] == [1e-3, 0.2]


@pytest.mark.parametrize(
    "answer, reason",
    [(True, "callback"), (np.bool_(True), "callback"), ("enough", "enough"), (np.str_("enough"), "enough")]
    + [(go_on, "steps") for go_on in (None, False, np.bool_(False), "")],
)
def test_what_a_callback_may_answer(answer, reason):
    result = fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=9, callbacks=[lambda run: answer])
    assert result.reason == reason and type(result.reason) is str


@pytest.mark.parametrize("answer", [0, 1, 0.5, [], np.ones(1)])
def test_another_answer_of_a_callback_is_an_error_with_its_name(answer):
    class Ear:
        def on_step(self, run):
            return answer

    def watch(run):
        return answer

    for callback, name in (
        (Ear(), r"Ear\.on_step` returned .* at `on_step`"),
        (watch, "watch` returned .* `on_epoch`"),
    ):
        with pytest.raises(ConfigError, match=f"the callback `.*{name}; expected None"):
            fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=9, callbacks=[callback])


def test_callbacks_and_runs_can_be_read():
    def draw(rng):
        return rng.random(2)

    callbacks = [fo.EarlyStopping(3), fo.KeepBest(), Target(0.5), fo.Restarts(2, redraw=draw), fo.Restarts(2, 0.1)]
    assert [repr(c) for c in callbacks] == [
        "EarlyStopping(patience=3, min_delta=0.0)", "KeepBest()", "Target(loss=0.5)",
        "Restarts(n=2, redraw=draw, seed=0)", "Restarts(n=2, perturb=0.1, seed=0)",
    ]  # fmt: skip
    seen = []
    fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=1, callbacks=lambda run: seen.append(repr(run)))
    assert seen[0].startswith("Run(epoch=1, step=1, loss=") and len(seen[0]) < 120


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
