"""L-BFGS: the recursion against the textbook's, the line search's promises, whole runs against scipy and torch."""

import math

import numpy as np
import pytest
from conftest import run_python
from problems import bowl, line, regression, squares

import fastopt as fo
from fastopt.lbfgs import Search
from fastopt.linesearch import Trial, cubic, strong_wolfe


def quadratic(n, condition=1e4):
    curve = np.logspace(0, math.log10(condition), n)
    return lambda x: (0.5 * float(x @ (curve * x)), curve * x), np.random.default_rng(0).standard_normal(n)


def rosenbrock(n):
    def function(x):
        a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        g = np.zeros_like(x)
        g[:-1] = -400 * x[:-1] * a - 2 * b
        g[1:] += 200 * a
        return float(100 * a @ a + b @ b), g

    return function, np.array([-1.2, 1.0]) if n == 2 else np.zeros(n)


def logistic():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)

    def function(w):
        z = (2 * y - 1) * (x @ w)
        return float(np.logaddexp(0, -z).mean() + 5e-4 * w @ w), x.T @ ((1 - 2 * y) / (1 + np.exp(z))) / len(
            x
        ) + 1e-3 * w

    return function, np.zeros(x.shape[1])


PROBLEMS = {
    "quadratic": quadratic(100),
    "quadratic 1000": quadratic(1000),
    "rosenbrock": rosenbrock(2),
    "rosenbrock 1000": rosenbrock(1000),
    "logistic": logistic(),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_as_low_as_scipy_in_as_many_evaluations(name):
    from scipy.optimize import minimize

    function, start = PROBLEMS[name]
    options = dict(maxcor=10, gtol=1e-7, ftol=0.0, maxiter=20_000, maxfun=40_000)
    theirs = minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    x = start.copy()
    ours = fo.minimize(function, x, rule=fo.lbfgs(history=10, gtol=1e-7, ftol=0.0), steps=20_000)
    assert ours.reason == "converged" and np.abs(function(x)[1]).max() <= 1e-7
    # both end somewhere below gtol, where the loss is within g H^-1 g of its minimum, 1e-14 with a curvature of 1
    assert ours.loss <= theirs.fun + 1e-11
    assert ours.optimizer.evaluations <= 1.3 * theirs.nfev
    assert ours.loss == function(x)[0]


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "logistic"])
def test_as_low_as_torch(name):
    import torch

    function, start = PROBLEMS[name]
    theirs, calls = torch.tensor(start.copy(), requires_grad=True), [0]
    opt = torch.optim.LBFGS(
        [theirs],
        max_iter=20_000,
        max_eval=40_000,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=0.0,
    )

    def closure():
        calls[0] += 1
        loss, grad = function(theirs.detach().numpy())
        theirs.grad = torch.tensor(grad)
        return torch.tensor(loss)

    opt.step(closure)
    x = start.copy()
    ours = fo.minimize(function, x, rule=fo.lbfgs(history=10, gtol=1e-7, ftol=0.0), steps=20_000)
    assert ours.loss <= function(theirs.detach().numpy())[0] + 1e-11
    assert ours.optimizer.evaluations <= 1.3 * calls[0]


class Textbook:
    """Nocedal & Wright 2006, algorithms 7.4 and 7.5, on lists of vectors."""

    def __init__(self, history):
        self.history, self.pairs = history, []

    def direction(self, g):
        q, alpha = g.astype(float), []
        for s, y in reversed(self.pairs):
            alpha.append(s @ q / (s @ y))
            q = q - alpha[-1] * y
        if self.pairs:
            s, y = self.pairs[-1]
            q = q * (s @ y) / (y @ y)
        for (s, y), a in zip(self.pairs, reversed(alpha), strict=True):
            q = q + s * (a - y @ q / (s @ y))
        return -q

    def remember(self, s, y):
        self.pairs = [*self.pairs, (s, y)][-self.history :]


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-9), ("float32", 1e-3)])
def test_directions_are_the_textbooks(dtype, bound):
    """Step by step on Rosenbrock's function; conditions of about 1e3 stretch the rounding of the gradients."""
    n, m = 5001, 4  # several chunks, the last one ragged, and more steps than pairs
    target, curve = np.linspace(-1, 1, n), np.logspace(0, 3, n)

    def function(x):
        d = x.astype(float) - target
        return float(np.sum(curve * d**2 / 2 + d**4)), (curve * d + 4 * d**3).astype(x.dtype)

    x = np.zeros(n, dtype)
    search, book = Search(fo.lbfgs(history=m), x), Textbook(m)
    search.begin(*function(x))
    for _ in range(12):
        before, g = x.astype(float), function(x)[1].astype(float)
        want = book.direction(g)
        assert search.step(lambda: function(x))
        moved = x - before
        np.testing.assert_allclose(moved, search.length * want, atol=bound * np.abs(moved).max())
        book.remember(moved, function(x)[1] - g)
    assert search.t == 12 and len(search._pairs) == m


@pytest.mark.parametrize("c1, c2, most", [(1e-4, 0.9, 20), (1e-4, 0.1, 20), (1e-3, 0.5, 20)])
def test_lengths_satisfy_the_strong_wolfe_conditions(c1, c2, most):
    """On More & Thuente's three hard functions, from first lengths over six decades."""

    def hard(k):
        if k == 0:
            return lambda a: (-a / (a * a + 2), (a * a - 2) / (a * a + 2) ** 2)
        if k == 1:
            return lambda a: ((a + 0.004) ** 5 - 2 * (a + 0.004) ** 4, 5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3)

        def third(a, beta=0.01, bumps=39):
            turn = bumps * math.pi / 2
            if a <= 1 - beta:
                base, slope = 1 - a, -1.0
            elif a >= 1 + beta:
                base, slope = a - 1, 1.0
            else:
                base, slope = (a - 1) ** 2 / (2 * beta) + beta / 2, (a - 1) / beta
            factor = 2 * (1 - beta) / (bumps * math.pi)
            return base + factor * math.sin(turn * a), slope + (1 - beta) * math.cos(turn * a)

        return third

    for k in range(3):
        f, calls = hard(k), []

        def evaluate(a, f=f, calls=calls):
            calls.append(a)
            return Trial(a, *f(a))

        start = Trial(0.0, *f(0.0))
        for first in 10.0 ** np.arange(-3, 4):
            calls.clear()
            found = strong_wolfe(evaluate, start, first, c1=c1, c2=c2, most=most, rounding=0.0)
            assert found is not None and len(calls) <= most, (k, first)
            assert found.loss <= start.loss + c1 * found.length * start.slope
            assert abs(found.slope) <= -c2 * start.slope, (k, first, found)


def test_the_cubic_is_exact_for_cubics_and_nan_where_there_is_no_minimum():
    def trial(a):
        return Trial(a, a**3 - 3 * a, 3 * a * a - 3)

    assert math.isclose(cubic(trial(0.2), trial(3.0)), 1.0) and math.isclose(cubic(trial(3.0), trial(0.2)), 1.0)
    assert math.isnan(cubic(Trial(0.0, 0.0, 1.0), Trial(1.0, math.inf, math.nan)))
    assert math.isnan(cubic(Trial(0.0, 0.0, -1.0), Trial(1.0, -1.0, -1.0)))


def test_infinite_losses_shorten_the_step():
    def barrier(x):
        if np.any(x >= 1):
            return math.inf, np.zeros_like(x)
        return float(-np.log(1 - x).sum() - 50 * x.sum()), 1 / (1 - x) - 50

    x = np.zeros(3)
    result = fo.minimize(barrier, x, rule=fo.lbfgs(gtol=1e-6, ftol=0.0), steps=100)
    assert result.reason == "converged"
    np.testing.assert_allclose(x, 0.98, rtol=1e-6)


def test_every_layout_takes_the_same_steps():
    x, y = regression()
    data = {"dict": line(), "packed": fo.pack(line())}
    flat = np.zeros(4)

    def joined(p, x, y):
        loss, g = squares({"w": p[:3], "b": p[3:]}, x, y)
        return loss, np.concatenate([g["w"], g["b"]])

    def filled(p, x, y):
        loss, g = squares(p, x, y)
        p.grads["w"], p.grads["b"] = g["w"], g["b"]
        return loss, None

    ends = [fo.minimize(joined, flat, (x, y), rule=fo.lbfgs(), steps=50)]
    ends += [fo.minimize(squares, data["dict"], (x, y), rule=fo.lbfgs(), steps=50)]
    ends += [fo.minimize(filled, data["packed"], (x, y), rule=fo.lbfgs(), steps=50)]
    assert {e.reason for e in ends} == {"converged"} and len({e.loss for e in ends}) == 1
    for p in data.values():
        assert np.concatenate([p["w"], p["b"]]).tobytes() == flat.tobytes()
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    np.testing.assert_allclose(flat, exact, atol=1e-5)


def test_the_same_bits_for_any_thread_count():
    code = """
import numpy as np, fastopt as fo
ends = []
for n in (1, 2, 3):
    fo.set_num_threads(n)
    x = np.zeros(60_001, np.float32)
    curve = np.logspace(0, 2, x.size, dtype=np.float32)
    f = lambda x: (float(np.sum(curve * (x - 1.0) ** 2, dtype=np.float64)), 2 * curve * (x - 1))
    result = fo.minimize(f, x, rule=fo.lbfgs(history=10, ftol=0.0, gtol=0.0), steps=12)
    assert n == 1 or result.optimizer._tables.parallel
    ends.append((x.tobytes(), result.optimizer.evaluations))
assert len(set(ends)) == 1
"""
    run_python(code)


def test_a_run_reports_what_other_rules_report():
    w, seen = np.zeros(2), []
    result = fo.minimize(
        bowl, w, rule=fo.lbfgs(), steps=30, callbacks=[fo.KeepBest(), lambda run: seen.append(run.loss)]
    )
    assert result.reason == "converged" and "gradient" in result.message and result.steps == result.epochs == len(seen)
    assert result.history["loss"] == seen and result.history["lr"][-1] == result.optimizer.length
    assert result.best_params.tobytes() == w.tobytes() and "rule=lbfgs" in repr(result)
    assert result.optimizer.t == result.steps <= result.optimizer.evaluations
    np.testing.assert_allclose(w, 1, atol=1e-5)
    assert fo.minimize(bowl, w, rule=fo.lbfgs(), steps=30).steps == 0
    stopped = fo.minimize(bowl, np.zeros(2), rule=fo.lbfgs(), steps=30, callbacks=fo.Target(0.5))
    assert stopped.reason == "target" and 0 < stopped.steps < result.steps


def test_a_gradient_that_is_not_the_losss_ends_the_run_where_it_was():
    w = np.array([3.0, 4.0])
    result = fo.minimize(lambda p: (float(p @ p), -p), w, rule=fo.lbfgs(), steps=30)
    assert result.reason == "line search" and "check_grad" in result.message and result.steps == 0
    assert w.tolist() == [3.0, 4.0] and result.loss == 25.0


def test_what_is_raised_in_a_line_search_leaves_the_parameters_where_the_step_began():
    for error in (ValueError("mine"), KeyboardInterrupt()):
        w, calls, ends = np.zeros(2), [0], []

        def function(p, error=error, calls=calls):
            calls[0] += 1
            if calls[0] == 4:
                raise error
            return bowl(p)

        watch = [lambda run, ends=ends: ends.append(run.params.copy())]
        if isinstance(error, KeyboardInterrupt):
            result = fo.minimize(function, w, rule=fo.lbfgs(), steps=30, callbacks=watch)
            assert result.reason == "interrupted" and result.steps == len(ends) and result.loss == bowl(w)[0]
        else:
            with pytest.raises(ValueError, match="mine"):
                fo.minimize(function, w, rule=fo.lbfgs(), steps=30, callbacks=watch)
        assert ends and w.tobytes() == ends[-1].tobytes()


def test_a_start_without_a_finite_loss_is_reported():
    result = fo.minimize(lambda p: (math.nan, p), np.ones(2), rule=fo.lbfgs(), steps=3)
    assert result.reason == "non-finite loss" and result.steps == 0


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(batch_size=10), "all data at every step"),
        (dict(data=fo.minibatches(np.ones((4, 2)), batch_size=2)), "all data at every step"),
        (dict(groups=[fo.Group("w")]), "without `groups`"),
        (dict(history=5), r"rule=fastopt.lbfgs\(history=...\)"),
        (dict(lr=0.1), "`lr` is no option, and no hyperparameter of `lbfgs`"),
        (dict(rule=fo.lbfgs), r"call it, with its settings: rule=fastopt.lbfgs\(\)"),
        (dict(device="cuda"), "device is 'cuda'"),
    ],
)
def test_what_does_not_fit_is_refused(options, says):
    x, y = regression()
    params = line()
    given = {"data": (x, y), "rule": fo.lbfgs(), "steps": 3, **options}
    with pytest.raises(fo.ConfigError, match=says):
        fo.minimize(squares, params, **given)
    assert not params["w"].any()


def test_checkpoints_are_refused(tmp_path):
    keep = fo.Checkpoint(fo.checkpoint.Manager(tmp_path))
    with pytest.raises(fo.ConfigError, match="no state to save"):
        fo.minimize(bowl, np.zeros(2), rule=fo.lbfgs(), steps=3, callbacks=keep)


def test_settings_and_parameters_are_checked():
    for wrong in (dict(history=0), dict(history=2.5), dict(gtol=-1), dict(c1=0.95), dict(c2=1.0), dict(ftol=math.nan)):
        with pytest.raises(fo.ConfigError, match="lbfgs"):
            fo.lbfgs(**wrong)
    mixed = {"a": np.zeros(2), "b": np.zeros(2, np.float32)}
    with pytest.raises(fo.ConfigError, match="two dtypes"):
        fo.minimize(lambda p: (0.0, p), mixed, rule=fo.lbfgs(), steps=1)
    with pytest.raises(fo.GradientError, match="`b` is None"):
        fo.minimize(lambda p: (0.0, {"w": p["w"], "b": None}), line(), rule=fo.lbfgs(), steps=1)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "packed", "tensors"])
def test_parameters_in_16_bits(name):
    """Its vectors are float32; the loss is that of the rounded parameters, and about as low as those can be."""
    import ml_dtypes
    import torch

    function, start = PROBLEMS["logistic"]
    best = start.astype("f4")
    fo.minimize(lambda w: function(w.astype("f8")), best, rule=fo.lbfgs(), steps=100)
    half = np.float16 if name == "float16" else ml_dtypes.bfloat16
    if name == "packed":
        params = fo.pack([start[:20].astype(half), start[20:].astype(half)])
    elif name == "tensors":
        params = [torch.zeros(20, dtype=torch.bfloat16), torch.zeros(10, dtype=torch.bfloat16)]
    else:
        params = start.astype(half)

    def evaluate(given):
        leaves = [given] if isinstance(given, np.ndarray) else list(given)
        w = np.concatenate([x.double().numpy() if name == "tensors" else x.astype("f8") for x in leaves])
        loss, g = function(w)
        pieces = np.split(g.astype("f4"), np.cumsum([len(x) for x in leaves])[:-1])
        if name == "packed":
            given.grads[0][...], given.grads[1][...] = pieces
            return loss, given.grads
        return loss, pieces if len(leaves) > 1 else pieces[0]

    result = fo.minimize(evaluate, params, rule=fo.lbfgs(), steps=100)
    rounded = function(best.astype(half).astype("f8"))[0]
    assert result.loss == evaluate(params)[0]
    # the nearest numbers to the minimum are not the best ones
    assert result.loss < rounded + 1e-5 < function(start)[0] / 5
