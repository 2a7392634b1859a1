"""The models' hand-written gradients, the data, and that every rule learns the digits."""

import warnings

import numpy as np
import pytest

import fastopt as fo
from fastopt.commands import picture
from fastopt.commands import train as contest
from fastopt.commands.models import Dataset, Network, digits, from_file, split
from fastopt.errors import ConfigError

NETWORKS = [Network((6, 4)), Network((6, 5, 4)), Network((6, 5, 4), "tanh"), Network((6, 5, 3, 4), "tanh")]


def examples(n=9, features=6, classes=4, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, features)).astype(dtype), rng.integers(0, classes, n)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_are_the_central_differences_of_the_loss(network):
    x, y = examples()
    params = network.init(1, np.float64)
    for p in params.values():
        p += 0.1 * np.random.default_rng(2).standard_normal(p.shape)  # biases off zero
    _, grads = network.loss_and_grad(params, x, y)
    h = 1e-6
    for name, p in params.items():
        for k in np.ndindex(p.shape):
            kept = p[k]
            p[k] = kept + h
            above = network.loss(params, x, y)
            p[k] = kept - h
            below = network.loss(params, x, y)
            p[k] = kept
            # error of the difference: h**2 = 1e-12 and rounding 1e-16 / h = 1e-10; no ReLU kink lies within h here
            assert grads[name][k] == pytest.approx((above - below) / (2 * h), abs=2e-9), (name, k)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_float32_agrees_with_float64(network):
    x, y = examples()
    params = network.init(1, np.float64)
    loss, grads = network.loss_and_grad(params, x, y)
    wide = {k: g.copy() for k, g in grads.items()}
    narrow = {k: p.astype(np.float32) for k, p in params.items()}
    loss32, grads32 = network.loss_and_grad(narrow, x.astype(np.float32), y)
    assert loss32 == pytest.approx(loss, rel=1e-5)  # a dozen float32 roundings of 6e-8
    for name, g in grads32.items():
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, wide[name], rtol=1e-4, atol=1e-6)  # sums of a few terms that may cancel


def test_loss_is_the_textbook_cross_entropy():
    network, (x, y) = Network((6, 4)), examples()
    params = network.init(3, np.float64)
    z = x @ params["w1"] + params["b1"]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = -np.log(p[np.arange(len(y)), y]).mean()
    assert network.loss(params, x, y) == pytest.approx(expected, rel=1e-12)
    assert network.loss_and_grad(params, x, y)[0] == pytest.approx(expected, rel=1e-12)
    assert network.accuracy(params, x, y) == np.mean(z.argmax(axis=1) == y)


def test_huge_logits_do_not_overflow_and_diverged_parameters_do_not_warn():
    network, (x, y) = Network((6, 4)), examples()
    params = network.init(0, np.float64)
    params["b1"][:] = [1e300, 0, -1e300, 5]
    loss, grads = network.loss_and_grad(params, x, np.zeros(9, int))
    assert loss == 0 and all(np.isfinite(g).all() for g in grads.values())
    params["w1"][:] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(network.loss_and_grad(params, x, y)[0])


def test_gradient_arrays_are_the_same_objects_every_step_also_after_a_shorter_batch():
    network, (x, y) = Network((6, 5, 4)), examples(dtype=np.float32)
    params = network.init(0)
    first = network.loss_and_grad(params, x, y)[1]
    again = network.loss_and_grad(params, x[:4], y[:4])[1]
    assert list(first) == list(params)
    assert all(first[name] is again[name] for name in params)


def test_network_refuses_what_it_cannot_be():
    with pytest.raises(ConfigError, match=r"`sizes` is \(6,\)"):
        Network((6,))
    with pytest.raises(ConfigError, match="`sizes` is"):
        Network((6, 0))
    with pytest.raises(ConfigError, match="`activation` is 'gelu'"):
        Network((6, 4), "gelu")  # type: ignore[arg-type]


def test_initial_parameters_depend_on_the_seed_alone():
    a, b, c = (Network((6, 5, 4)).init(seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[k], b[k]) and a[k].dtype == np.float32 for k in a)
    assert not np.array_equal(a["w1"], c["w1"])


# ---- data ------------------------------------------------------------------------------------------------------------


def test_digits_are_split_the_same_way_every_time_and_standardised():
    data = digits()
    assert (data.x.shape, data.x_test.shape, data.features, data.classes) == ((1438, 64), (359, 64), 64, 10)
    assert data.x.dtype == np.float32 and data.y.dtype == np.int64
    assert np.allclose(data.x.mean(axis=0), 0, atol=1e-5)
    deviation = data.x.std(axis=0)
    assert np.all(np.isclose(deviation, 1, atol=1e-4) | (deviation == 0))  # some pixels are always empty
    again = digits()
    assert np.array_equal(data.x_test, again.x_test) and np.array_equal(data.y, again.y)
    assert set(data.y_test) == set(range(10))


def save(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def test_data_from_a_file_images_and_string_labels(tmp_path):
    rng = np.random.default_rng(0)
    y = np.array(["cat", "dog"])[rng.integers(0, 2, 50)]
    data = from_file(save(tmp_path, X=rng.integers(0, 255, (50, 4, 4)), y=y))
    assert data.x.shape == (40, 16) and data.labels == ("cat", "dog") and data.name == "data.npz"


X, Y = np.zeros((20, 3)), np.arange(20) % 2


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(x=X, y=Y), "no key 'X'"),
        (dict(X=X), "no key 'y'"),
        (dict(X=X[:, 0], y=Y), r"`X` is float64 of shape \(20,\)"),
        (dict(X=X.astype(str), y=Y), "`X` is <U"),
        (dict(X=X, y=Y[:19]), r"`y` is int64 of shape \(19,\)"),
        (dict(X=X, y=X[:, 0]), "`y` is float64"),
        (dict(X=X * np.nan, y=Y), "NaN"),
        (dict(X=X, y=Y * 0), "one label only"),
        (dict(X=X[:5], y=Y[:5]), "at least 10"),
        (dict(X=np.zeros((20, 0)), y=Y), "one feature"),
        (dict(X=np.array([[1], [None]] * 10), y=Y), "readable .npz"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, arrays, words):
    with pytest.raises(ConfigError, match=words):
        from_file(save(tmp_path, **arrays))


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.npz"):
        from_file(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ConfigError, match="readable"):
        from_file(tmp_path / "text.npz")
    whole = save(tmp_path, X=np.random.default_rng(0).random((200, 9)), y=np.arange(200) % 2).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="readable"):
        from_file(tmp_path / "cut.npz")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(ConfigError, match="one array"):
        from_file(tmp_path / "one.npy")


def test_split_keeps_every_example_once():
    x = np.arange(50.0).reshape(50, 1)
    data = split("numbers", x, np.arange(50) % 3)
    assert len(data.x) == 40 and len(data.x_test) == 10
    assert len({*data.x[:, 0].tolist(), *data.x_test[:, 0].tolist()}) == 50


# ---- the contest -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_rows() -> "list[contest.Row]":
    from fastopt.rules import CATALOGUE

    return contest.contest(digits(), ("softmax", "mlp"), list(CATALOGUE.values()))


def test_every_rule_reaches_95_percent_on_both_models(all_rows):
    assert {(row.model, row.rule) for row in all_rows} == {(m, r) for m in contest.HIDDEN for r in fo.rules.CATALOGUE}
    assert not contest.failures(all_rows), [(row.model, row.rule, row.accuracy) for row in contest.failures(all_rows)]
    for row in all_rows:
        assert row.reason == "epochs" and len(row.losses) == contest.EPOCHS
        assert row.losses[-1] < row.losses[0] and 0 < row.step < 1 and row.faster > 0


def test_table_and_plot(all_rows, tmp_path):
    from rich.console import Console

    data = digits()
    console = Console(width=120, record=True, file=open(tmp_path / "out.txt", "w", encoding="utf-8"))
    console.print(contest.table(all_rows, data))
    text = console.export_text()
    console.file.close()
    assert all(word in text for word in ("softmax", "mlp", "lion", "held-out accuracy", " us", "1438"))
    path = tmp_path / "curves.png"
    picture.check(str(path))
    contest.plot(all_rows, str(path))
    assert all(f"{row.losses[-1]:.2g}" in text for row in all_rows)  # the table shows where the curves end
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_diverging_rule_is_reported_plotted_and_fails(tmp_path):
    rng = np.random.default_rng(0)
    small = split("small", 1e3 * rng.standard_normal((60, 3)), rng.integers(0, 2, 60))
    rows = contest.contest(small, ["mlp"], [fo.sgd], epochs=3, lr=1e30)
    assert rows[0].reason == "non-finite loss" and contest.failures(rows) == rows
    contest.plot(rows, str(tmp_path / "curves.png"))
    contest.table(rows, small)


def test_plot_paths_are_checked_before_the_training(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        picture.check(str(tmp_path / "no" / "curves.png"))
    with pytest.raises(ConfigError, match="ends in 'gnp'"):
        picture.check(str(tmp_path / "curves.gnp"))


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_epochs_are_whole_numbers_on_the_axis(monkeypatch, epochs):
    drawn = []
    monkeypatch.setattr(picture, "save", lambda figure, path: drawn.append(figure))
    contest.plot([contest.Row("mlp", "sgd", 0.1, 0.9, 1e-5, 4.0, tuple(np.linspace(2, 1, epochs)), "epochs")], "x")
    drawn[0].canvas.draw()
    assert all(tick == int(tick) for tick in drawn[0].axes[0].get_xticks())


def test_dataset_is_frozen():
    with pytest.raises(AttributeError):
        digits().name = "other"  # type: ignore[misc]
    assert Dataset is type(digits())
