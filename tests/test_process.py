"""How a run ends: limits, a loss that is not finite, Ctrl-C, errors; and its progress bar."""

import math
import sys

import numpy as np
import pytest
from problems import bowl, line, regression, squares

import fastopt as fo
from fastopt.errors import ConfigError, GradientError


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

            object.__setattr__(run.optimizer, "step", late)  # an optimizer refuses plain assignment

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
    for name in ("rich", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    w = np.ones(2)
    with pytest.raises(ConfigError, match=r'needs rich.*pip install "\.\[demo\]" in a checkout'):
        fo.minimize(bowl, w, rule=fo.sgd, steps=7, progress=True)
    assert w.tolist() == [1, 1]
