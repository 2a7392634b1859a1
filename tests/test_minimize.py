"""What `minimize` does to parameters and data, what it returns, what it refuses."""

import math

import numpy as np
import pytest
from problems import bowl, line, regression, squares

import fastopt as fo
from fastopt.errors import ConfigError


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


def test_result_is_frozen_and_readable():
    result = fo.minimize(bowl, np.array([4.0, -3.0]), rule=fo.adam, lr=0.1, steps=20, validation=lambda p: 0.5)
    with pytest.raises(AttributeError):
        result.loss = 0.0  # type: ignore[misc]
    text = repr(result)
    assert (
        all(part in text for part in ("reason='steps'", "validation=0.5", "steps=20", "rule=adam")) and len(text) < 250
    )


BAD = [
    (dict(), "give `epochs=` or `steps=`"),
    (dict(steps=-1), "`steps` is -1"),
    (dict(steps=True), "`steps` is True"),
    (dict(epochs=1.5), "`epochs` is 1.5"),
    (dict(steps=1, rule="adam"), "`rule` is 'adam'"),
    (dict(steps=1, epoch=3), "`epoch` is no option.*Did you mean `epochs`"),
    (dict(steps=1, beta3=3), "`beta3` is no option.*Did you mean"),
    (dict(epoch=3), "`epoch` is no option.*Did you mean `epochs`"),
    (dict(max_iter=3), "`max_iter` is no option.*`epochs`, `steps`.*`lr`"),
    (dict(steps=1, maximize=True), "minimises; negate the loss and its gradient"),
    (dict(steps=1, validation=(np.ones(3), np.ones(3))), "`validation` is of type tuple; expected a function"),
    (dict(steps=1, lr=-1.0), "`lr` is -1.0"),
    (dict(steps=1, batch_size=4), "`batch_size` is for `data`"),
    (dict(steps=1, data=(np.ones(3), np.ones(4))), r"hold \[3, 4\] examples"),
    (dict(steps=1, data=np.ones((0, 3))), r"hold \[0\] examples"),
    (dict(steps=1, data=np.ones(3), batch_size=0), "`batch_size` is 0"),
    (dict(steps=1, data=[np.ones(3), np.ones(3)]), "write a tuple"),
    (dict(steps=1, data=iter([1])), "empty after one epoch"),
    (dict(steps=1, data=([1], [2])), r"element 0 of `data` is a list.*numpy\.asarray"),
    (dict(steps=1, data=(np.ones(1), [2]), batch_size=1), r"element 1 of `data` is a list.*numpy\.asarray"),
    (dict(steps=1, data=(np.ones(1), np.array(2))), r"element 1 of `data` .*shape \(\)"),
    (dict(steps=1, data=()), "`data` is a tuple"),
    (dict(steps=1, data=3), "`data` is a int"),
    (dict(steps=1, callbacks=[fo.KeepBest]), r"write KeepBest\(...\)"),
    (dict(steps=1, callbacks=["x"]), "'x' is not a callback"),
    (dict(steps=1, callbacks=None), "None is not a callback"),
    (dict(steps=1, callbacks=object()), "an object of class object is not a callback"),
    (dict(steps=1, groups=3), "`groups` is 3; expected a list of fastopt.Group"),
    (dict(steps=1, callbacks=[fo.Restarts(1, perturb=1.0)] * 2), "more than one `Restarts`"),
]


@pytest.mark.parametrize("options, words", BAD, ids=[words for _, words in BAD])
def test_bad_calls_are_refused_before_anything_happens(options, words):
    w = np.ones(2)
    with pytest.raises(ConfigError, match=words):
        fo.minimize(lambda p, *batch: pytest.fail("called"), w, **{"rule": fo.adam, **options})
    assert w.tolist() == [1, 1]


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(ConfigError, match="`loss_and_grad` is of type tuple; expected a function"):
        fo.minimize((1.0, np.ones(2)), np.ones(2), rule=fo.adam, steps=1)  # type: ignore[arg-type]


def test_a_single_callback_and_a_single_group_need_no_list():
    w = {"w": np.ones(2), "b": np.ones(2)}
    result = fo.minimize(
        lambda p: (1.0, {"w": np.ones(2), "b": np.ones(2)}), w, rule=fo.sgd, lr=0.5, steps=1,
        callbacks=fo.KeepBest(), groups=fo.Group("b", frozen=True),
    )  # fmt: skip
    assert result.best_params is not None and w["b"].tolist() == [1, 1]
    seen = []
    fo.minimize(bowl, np.ones(2), rule=fo.sgd, steps=2, callbacks=lambda run: seen.append(run.epoch))
    assert seen == [1, 2]


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


def test_a_rule_that_asks_for_the_loss_is_told_it():
    w, v = np.array([4.0, -3.0]), np.array([4.0, -3.0])
    fo.minimize(bowl, w, rule=fo.polyak, steps=5)
    for _ in range(5):
        loss, g = bowl(v)
        v -= loss / (g @ g) * g
    np.testing.assert_allclose(w, v, rtol=1e-12)
    with pytest.raises(ConfigError, match="`loss` of `polyak` is set at every step"):
        fo.minimize(bowl, w, rule=fo.polyak, steps=5, loss=1.0)
