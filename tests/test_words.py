"""Skip-gram: its gradients against the equation, the corpus, and that related words end up near each other."""

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt import cli
from fastopt.commands import corpus as texts
from fastopt.commands import words
from fastopt.commands.skipgram import Batches
from fastopt.errors import ConfigError

WINDOW, NEGATIVES, DIM = 3, 5, 20


def two_worlds(n=6000, seed=0):
    """Sentences of words of one of two kinds, each word as frequent as the others."""
    rng = np.random.default_rng(seed)
    kinds = "cat dog horse cow sheep goat hen pig".split(), "red blue green pink white black grey brown".split()
    return " ".join(" ".join(rng.choice(kinds[k], 8)) for k in rng.integers(0, 2, n // 8))


def small():
    rng = np.random.default_rng(3)
    text = np.minimum(rng.zipf(1.4, 90) - 1, 11).astype(np.int32)
    params = {name: (0.5 * rng.standard_normal((12, DIM))).astype(np.float32) for name in ("in", "out")}
    drawn = np.arange(12, dtype=np.int32)
    return text, params, drawn


def summed(rows, n):
    g = np.zeros((n, rows.values.shape[1]))
    np.add.at(g, rows.indices, rows.values)
    return g


def loss_of(batch, params, text, begin, end):
    """Equation 4, term by term in float64, for the windows and negatives that the batch drew."""
    loss, scores = 0.0, 0
    w_in, w_out = (params[name].astype(np.float64) for name in ("in", "out"))
    for i in range(begin, end):
        lo, hi = batch._spans[i - begin]
        for j in range(lo, hi):
            if j != i:
                for k, word in enumerate(batch._targets[i - begin, :, 1]):
                    if k == 0 or word != text[i]:
                        z = w_in[text[j]] @ w_out[word] * (1 if k == 0 else -1)
                        loss += math.log1p(math.exp(-z))
                        scores += 1
    return loss, scores


def test_gradients_are_the_central_differences_of_the_equation():
    text, params, drawn = small()
    batch = Batches(12, DIM, WINDOW, NEGATIVES, drawn, 64)
    for begin, end in ((0, 64), (64, 90), (3, 4)):  # the buffers of one batch leave nothing behind for the next
        grads, loss, scores = batch.gradients(params, text, begin, end, seed=7)
        expected, count = loss_of(batch, params, text, begin, end)
        assert scores == count and loss == pytest.approx(expected, rel=1e-5)  # dots of 20 float32 products
        rng = np.random.default_rng(5)
        for name in ("in", "out"):
            g = summed(grads[name], 12)
            for row, column in zip(rng.integers(0, 12, 25), rng.integers(0, DIM, 25), strict=True):
                wide = {k: p.astype(np.float64) for k, p in params.items()}
                wide[name][row, column] += 1e-5
                above, _ = loss_of(batch, wide, text, begin, end)
                wide[name][row, column] -= 2e-5
                below, _ = loss_of(batch, wide, text, begin, end)
                # sums of up to some hundred float32 terms of size 1, which may cancel
                assert g[row, column] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=2e-5), (name, row)


def test_windows_and_negatives_are_drawn_as_they_should_be():
    text, params, drawn = small()
    text = np.tile(text, 40)
    batch = Batches(12, DIM, WINDOW, NEGATIVES, drawn, len(text))
    batch.gradients(params, text, 0, len(text), seed=1)
    inner = np.arange(WINDOW, len(text) - WINDOW)
    reach = inner - batch._spans[inner, 0]
    assert (batch._spans[inner, 1] - inner - 1 == reach).all() and batch._spans.min() == 0
    assert batch._spans.max() == len(text)
    # 3,600 draws: a share of a third has deviation 0.008, one of a twelfth of 18,000 has 0.002; four deviations
    np.testing.assert_allclose(np.bincount(reach)[1:] / len(inner), 1 / WINDOW, atol=0.032)
    shares = np.bincount(batch._targets[:, 1:, 1].ravel()) / batch._targets[:, 1:, 1].size
    np.testing.assert_allclose(shares, 1 / 12, atol=0.0085)
    assert (batch._targets[:, 0, 1] == text).all()


def test_the_same_bits_for_any_number_of_threads_and_others_for_another_seed():
    corpus = texts.corpus("two worlds", [two_worlds()])
    settings = words.Settings(epochs=1, batch_size=500, dim=DIM, window=WINDOW, negatives=NEGATIVES)
    try:
        fo.set_num_threads(1)
        one = words.train(corpus, settings)
    finally:
        fo.set_num_threads(None)
    assert one.vectors.tobytes() == words.train(corpus, settings).vectors.tobytes()
    other = words.Settings(epochs=1, batch_size=500, dim=DIM, window=WINDOW, negatives=NEGATIVES, seed=1)
    assert one.vectors.tobytes() != words.train(corpus, other).vectors.tobytes()


@pytest.mark.parametrize("rule, lr, epochs", [(fo.adagrad, 0.2, 5), (fo.adam, 0.03, 20)], ids=["adagrad", "adam"])
def test_words_that_occur_together_become_neighbours(rule, lr, epochs):
    corpus, seen = texts.corpus("two worlds", [two_worlds()]), []
    settings = words.Settings(batch_size=250, dim=DIM, window=WINDOW, lr=lr, epochs=epochs)
    result = words.train(corpus, settings, rule, seen.append)
    assert [s.tokens for s in seen] == sorted(s.tokens for s in seen) and seen[-1].tokens == epochs * corpus.read
    assert seen[-1].loss < 0.95 * seen[0].loss and seen[-1] == result.state
    animals = {"cat", "dog", "horse", "cow", "sheep", "goat", "hen", "pig"}
    for word in corpus.words:
        near = {other for other, _ in result.nearest(word, 7)}
        assert near == (animals if word in animals else set(corpus.words) - animals) - {word}


def test_a_corpus_counts_words_and_leaves_rare_ones_out():
    greek = "alpha beta gamma delta eta zeta kappa lambda " * 12
    found = texts.corpus("x", ["The cat_sat; THE 42 é, rare " * 4 + "the cat sat", greek], 5)
    assert found.words == (*sorted(greek.split()[:8]), "the", "cat", "sat")
    assert dict(zip(found.words, found.counts.tolist(), strict=True))["the"] == 9
    assert np.array_equal(np.bincount(found.tokens), found.counts) and (np.diff(found.counts) <= 0).all()
    assert found.number("CAT") == found.words.index("cat")


def test_frequent_words_are_thinned_and_negatives_follow_the_three_quarter_power():
    counts = np.array([90_000, 9_000, 900, 100], np.int64)
    share = texts.keep_share(counts, 1e-3)
    f = counts / counts.sum()
    np.testing.assert_allclose(share, np.minimum(1, np.sqrt(1e-3 / f) + 1e-3 / f), rtol=1e-6)  # float32
    drawn = np.bincount(texts.negatives_table(counts)) / len(texts.negatives_table(counts))
    np.testing.assert_allclose(drawn, counts**0.75 / (counts**0.75).sum(), atol=1e-4)  # whole entries of 2**17
    tokens = np.repeat(np.arange(4, dtype=np.int32), counts)
    batch = Batches(4, DIM, WINDOW, NEGATIVES, texts.negatives_table(counts), 8)
    kept = np.bincount(batch.thinned(tokens, share, 5), minlength=4) / counts
    assert (np.abs(kept - share) <= 4 * np.sqrt(share * (1 - share) / counts)).all()  # four deviations


def test_the_standard_library_s_text_is_its_docstrings_and_comments(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left.py").write_text("# forgotten " * 9)
    alphabet = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omega "
    (tmp_path / "a.py").write_text(f'"""{alphabet * 9}"""\nname = "# quoted"  # remark {alphabet}\n' * 3)
    found = texts.standard_library(3, folder=str(tmp_path))
    assert {"alpha", "omega", "remark"} <= set(found.words)
    assert not {"name", "quoted", "forgotten"} & set(found.words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"sources are not in .*empty; give a text: --text FILE"):
        texts.standard_library(folder=str(tmp_path / "empty"))


def test_the_command_shows_neighbours_and_draws_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "worlds.txt").write_text(two_worlds())
    argv = ["train", "--task", "words", "--text", str(tmp_path / "worlds.txt"), "--words", "Cat", "red"]
    argv += ["--dim", str(DIM), "--epochs", "2", "--batch-size", "250", "--plot", str(tmp_path / "w.png")]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("6,000 words", "tokens/s", "nearest", "cat", "red", "w.png"))
    assert (tmp_path / "w.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "content, extra, told",
    [
        (None, [], "--text: cannot read .*nothing.txt: No such file"),
        (b"  \n", [], "t.txt is empty"),
        (b"one two three", [], "t.txt has 3 words, and 0 different ones occur 5 times"),
        (b"caf\xe9 " * 99, [], "is not UTF-8 text: byte 3"),
        ("ok", ["--words", "cat", "unicorn"], "--words: 'unicorn' is not among the 16 words of t.txt"),
        ("ok", ["--window", "99"], "--window: got 99; expected 1 to 20"),
        ("ok", ["--rule", "adagrad", "adam"], "--task words trains with one rule"),
        ("ok", ["--rule", "lamb"], "`lamb` cannot take a gradient of rows"),
        ("ok", ["--model", "mlp"], "--model belongs to --task digits; this is --task words"),
        ("ok", ["--data", "x.csv"], "--data belongs to --task digits or ratings"),
        ("ok", ["--plot", "no/folder/x.png"], "does not exist"),
        ("ok", ["--rule", "sgd", "--lr", "1e38"], "try a lower --lr"),
    ],
)
def test_wrong_calls_say_why_in_one_line(content, extra, told, tmp_path, capsys):
    import re

    path = tmp_path / ("nothing.txt" if content is None else "t.txt")
    if content is not None:
        path.write_bytes(two_worlds().encode() if content == "ok" else content)
    assert cli.main(["train", "--task", "words", "--text", str(path), "--epochs", "3", *extra]) == 2
    err = capsys.readouterr().err
    assert re.search(told, err) and err.startswith("fastopt train: ") and err.count("\n") == 1


def test_other_tasks_refuse_its_options(capsys):
    assert cli.main(["train", "--text", "x.txt"]) == 2
    assert "--text belongs to --task words; this is --task digits" in capsys.readouterr().err
