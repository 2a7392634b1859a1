"""Matrix factorisation: its gradients, what it learns of synthetic ratings, and what a bad file is told."""

import re

import numpy as np
import pytest

import fastopt as fo
from fastopt import cli
from fastopt.commands import ratings as job


def test_gradients_are_the_central_differences_of_the_loss():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 5, 30), rng.integers(0, 4, 30)
    ratings = rng.standard_normal(30).astype(np.float32)
    x, y = (rng.standard_normal((n, 4)).astype(np.float32) for n in (5, 4))
    gx, gy, penalty = np.empty((30, 4), np.float32), np.empty((30, 4), np.float32), 0.25

    def errors(x, y):
        return np.float64(0.5) + x[users, 0] + y[items, 0] + (x[users, 1:] * y[items, 1:]).sum(1) - ratings

    def loss(x, y):
        return 0.5 * (errors(x, y) ** 2).sum() + 0.5 * penalty * ((x[users] ** 2).sum() + (y[items] ** 2).sum())

    wide = x.astype(np.float64), y.astype(np.float64)
    total = job._kernels().gradients(users, items, ratings, x, y, np.float32(0.5), np.float32(penalty), gx, gy)
    assert total == pytest.approx((errors(*wide) ** 2).sum(), rel=1e-5)  # a few float32 roundings each
    for k, (rows, values) in enumerate(((users, gx), (items, gy))):
        g = np.zeros_like(wide[k])
        np.add.at(g, rows, values)
        for place in np.ndindex(g.shape):
            moved = [w.copy() for w in wide]
            moved[k][place] += 1e-5
            above = loss(*moved)
            moved[k][place] -= 2e-5
            # sums of some ten float32 terms of size 1, which may cancel
            assert g[place] == pytest.approx((above - loss(*moved)) / 2e-5, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("rule, lr", [(fo.adagrad, job.LR), (fo.adam, 0.01)], ids=["adagrad", "adam"])
def test_it_comes_near_the_noise_and_far_below_what_biases_reach(rule, lr):
    data, seen = job.synthetic(300, 200, 20_000), []
    result = job.train(data, rule=rule, lr=lr, epochs=15, watch=lambda *epoch: seen.append(epoch))
    assert data.noise is not None and result.biases < result.mean
    # no reading of the ratings does better than the noise but by chance: 2,000 held-out ratings, 1.6 % a deviation
    assert 0.93 * data.noise < result.held_out[-1] < 0.75 * result.biases
    assert seen == list(zip(range(1, 16), result.training, result.held_out, strict=True))
    again = job.train(data, rule=rule, lr=lr, epochs=15)
    assert again == result


def test_biases_are_found_where_there_is_nothing_else():
    rng = np.random.default_rng(1)
    users, items = np.repeat(np.arange(40), 30), np.tile(np.arange(30), 40)
    ratings = rng.standard_normal(40)[users] + rng.standard_normal(30)[items]
    result = job.train(job.split("additive", users, items, ratings), epochs=1)
    assert result.biases < 0.1 < 1 < result.mean  # shrinking by 1 / 27 of a user's or item's bias leaves that much


def written(tmp_path, text):
    path = tmp_path / "r.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def lines(n=40):
    return [f"u{k % 7},item {k % 5},{k % 4 + 0.5}" for k in range(n)]


@pytest.mark.parametrize("heading", ["", "user,item,rating\n", "\ufeffuser,item,stars,when\n\n"])
def test_a_file_with_or_without_a_heading(heading, tmp_path):
    data = job.from_file(written(tmp_path, heading + "\n".join(line + ",99" for line in lines())))
    assert (data.n_users, data.n_items, len(data.ratings), data.held_out.sum()) == (7, 5, 40, 4)
    assert data.ratings[:3].tolist() == [0.5, 1.5, 2.5] and data.users[7] == data.users[0]


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "holds 0 ratings; expected at least 20"),
        ("\n".join(lines(5)), "r.csv holds 5 ratings"),
        ("\n".join([*lines(7), "u,i"]), "r.csv, line 8 has 2 columns; expected user,item,rating"),
        ("\n".join([*lines(7), "u,i,good"]), "r.csv, line 8, column 3: 'good' is no number"),
        ("\n".join([*lines(7), "u,i,nan"]), "r.csv, line 8, column 3: the rating is nan"),
        ("\n".join([*lines(7), "u,i,1e99"]), "r.csv, line 8, column 3: the rating is 1e99"),
        ("\n".join([*lines(7), "u, ,2"]), "r.csv, line 8, column 2: the item is empty"),
        ("\n".join([*lines(7), 'u,"i"x,2']), "r.csv, line 8: "),
        (b"u,caf\xe9,3\n", "is not UTF-8 text: byte 5"),
    ],
)
def test_a_bad_file_is_told_line_and_column(text, told, tmp_path, capsys):
    assert cli.main(["train", "--task", "ratings", "--data", written(tmp_path, text)]) == 2
    err = capsys.readouterr().err
    assert re.search(told, err) and err.count("\n") == 1


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main(["train", "--task", "ratings", "--data", "missing.csv"]) == 2
    assert "cannot read missing.csv: No such file" in capsys.readouterr().err
    plot, path = tmp_path / "r.png", written(tmp_path, "\n".join(lines(60)))
    argv = ["train", "--task", "ratings", "--epochs", "2", "--dim", "3", "--seed", "2", "--plot", str(plot)]
    assert cli.main([*argv, "--data", path]) == 0
    out = capsys.readouterr().out
    assert "r.csv: 7 users, 5 items, 60 ratings" in out and "factorisation" in out and "noise" not in out
    assert plot.stat().st_size > 5000
    assert cli.main(["train", "--task", "ratings", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "synthetic ratings (made up" in out and "the noise that was put in" in out
    assert cli.main(["train", "--task", "ratings", "--lr", "1e30", "--rule", "sgd"]) == 2
    assert "try a lower --lr than 1e+30" in capsys.readouterr().err
