"""FTRL where it comes from: a linear model of categories learnt example by example, against the paper's own loop."""

import math

import numpy as np
import pytest
import scipy.sparse

import fastopt as fo

FIELDS, VALUES = 4, 50  # an example has one of 50 values in each of 4 fields
N = FIELDS * VALUES


def clicks(n, seed=0):
    """Features (n, FIELDS), the more frequent the smaller, and clicks; every second field says nothing."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(42).normal(scale=2.0, size=(FIELDS, VALUES))
    weights[1::2] = 0
    values = np.minimum(rng.zipf(1.3, (n, FIELDS)) - 1, VALUES - 1)
    score = np.take_along_axis(weights, values.T, axis=1).sum(0)
    return values + VALUES * np.arange(FIELDS), rng.random(n) < 1 / (1 + np.exp(-score))


class Algorithm1:
    """McMahan et al. 2013, Algorithm 1, line by line: per-coordinate FTRL-Proximal for logistic regression."""

    def __init__(self, alpha, beta, l1, l2):
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        self.z, self.n = [0.0] * N, [0.0] * N

    def weight(self, i):
        if abs(self.z[i]) <= self.l1:
            return 0.0
        return -(self.z[i] - math.copysign(self.l1, self.z[i])) / (
            (self.beta + math.sqrt(self.n[i])) / self.alpha + self.l2
        )

    def predict(self, x):
        return 1 / (1 + math.exp(-sum(self.weight(i) * count for i, count in x.items())))

    def learn(self, x, y):
        p, w = self.predict(x), {i: self.weight(i) for i in x}
        for i, count in x.items():
            g = (p - y) * count
            sigma = (math.sqrt(self.n[i] + g * g) - math.sqrt(self.n[i])) / self.alpha
            self.z[i] += g - sigma * w[i]
            self.n[i] += g * g


def test_online_steps_are_the_papers():
    features, y = clicks(1500)
    features[::7, 3] = features[::7, 1]  # the same feature twice: its count is 2
    paper = Algorithm1(alpha=0.3, beta=0.5, l1=0.7, l2=0.2)
    w = np.zeros(N)
    opt = fo.ftrl(w, lr=0.3, beta=0.5, l1=0.7, l2=0.2)
    for at, clicked in zip(features, y, strict=True):
        x = {int(i): int((at == i).sum()) for i in at}
        p = 1 / (1 + np.exp(-w[at].sum()))
        assert p == pytest.approx(paper.predict(x), abs=1e-12)
        opt.step(fo.rows(at, np.full(FIELDS, p - clicked)))
        paper.learn(x, clicked)
    # 1500 float64 steps in another order of operations
    np.testing.assert_allclose(w, [paper.weight(i) for i in range(N)], rtol=0, atol=1e-12)
    np.testing.assert_allclose(opt.state["z"], paper.z, rtol=0, atol=1e-11)
    np.testing.assert_allclose(opt.state["n"], paper.n, rtol=1e-12)
    assert 0 < np.count_nonzero(w) < np.count_nonzero(opt.state["n"]), "l1 keeps some that were seen at exactly 0"


@pytest.mark.parametrize("hyper", [{}, {"l1": 0.5, "l2": 0.1}, {"initial_accumulator_value": 0.1, "beta": 0.0}])
def test_lazy_rows_are_whole_gradients_from_a_start_at_zero(hyper):
    features, y = clicks(64 * 30)
    w, dense = np.zeros((N, 1), np.float32), np.zeros((N, 1), np.float32)
    sparse, whole = fo.ftrl(w, lr=0.2, **hyper), fo.ftrl(dense, lr=0.2, **hyper)
    for at, clicked in zip(features.reshape(30, 64, FIELDS), y.reshape(30, 64), strict=True):
        error = 1 / (1 + np.exp(-w[at, 0].sum(1))) - clicked
        entries = np.repeat(error, FIELDS).astype(np.float32)
        sparse.step(fo.rows(at.ravel(), entries[:, None]))
        g = np.zeros((N, 1), np.float32)
        np.add.at(g[:, 0], at.ravel(), entries)  # in the order given, as fastopt adds
        whole.step(g)
        assert w.tobytes() == dense.tobytes()


def test_a_start_elsewhere_needs_the_steps_of_each_row():
    start = np.linspace(0.5, 2.0, N)
    moved = {}
    for reading in ("lazy", "row", "exact"):
        w = start.copy()
        opt = fo.ftrl(w, lr=0.1, sparse=reading)
        opt.step(fo.rows([0], np.ones(1)))
        opt.step(fo.rows([7], np.zeros(1)))
        moved[reading] = w[7] - start[7]  # after a gradient of 0
    assert abs(moved["row"]) < 1e-15 and abs(moved["exact"]) < 1e-15
    assert moved["lazy"] == -start[7], "its z is 0 still, so the row falls to 0: docs/sparse.md says so"


def test_it_learns_one_hot_data_like_batch_regression():
    linear = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    at, y = clicks(6000)
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore")
    train, test = encoder.fit_transform(at[:4000]), encoder.transform(at[4000:])
    w = np.zeros((train.shape[1], 1))
    opt = fo.ftrl(w, lr=0.5, l1=5.0)
    for _ in range(3):
        for first in range(0, 4000, 20):
            x = train[first : first + 20]
            error = 1 / (1 + np.exp(-(x @ w)[:, 0])) - y[first : first + 20]
            opt.step(scipy.sparse.csr_array(x.multiply(error[:, None]).sum(0).T))
    batch = linear.LogisticRegression().fit(train, y[:4000])
    ours = np.mean(((test @ w)[:, 0] > 0) == y[4000:])
    assert ours > batch.score(test, y[4000:]) - 0.02, "two standard errors of 2000 examples"
    silent = np.concatenate([np.full(len(c), k % 2) for k, c in enumerate(encoder.categories_)]).astype(bool)
    assert (w[silent] == 0).mean() > (w[~silent] == 0).mean() + 0.3, "l1 drops what says nothing"
