"""Rules as methods of scipy.optimize.minimize, beside scipy's own."""

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der

import fastopt as fo
from fastopt.errors import ConfigError

X0 = np.array([-1.2, 1.0])


def both(x):
    return rosen(x), rosen_der(x)


@pytest.mark.parametrize(
    "rule, hyper",
    [(fo.adam, dict(lr=0.05)), (fo.adamw, dict(lr=0.05, weight_decay=0.0)), (fo.sgd, dict(lr=1e-3, momentum=0.9))],
    ids=lambda v: getattr(v, "name", ""),
)
def test_rosenbrock_agrees_with_scipy(rule, hyper):
    own = minimize(both, X0, jac=True, method="BFGS")
    result = minimize(both, X0, jac=True, method=fo.scipy_method(rule, **hyper))
    # a gradient of 1e-5 over Rosenbrock's flattest curvature at the minimum, 0.4: off by 2.5e-5 along the valley
    np.testing.assert_allclose(result.x, own.x, atol=1e-4)
    assert result.success and result.status == 0 and np.abs(result.jac).max() <= 1e-5
    assert X0.tolist() == [-1.2, 1.0]
    assert result.fun == rosen(result.x) and np.array_equal(result.jac, rosen_der(result.x))
    assert result.nfev == result.njev == result.nit + 1
    assert own.keys() - {"hess_inv"} <= result.keys()


@pytest.mark.parametrize("rule, lr", [(fo.adagrad, 1.0), (fo.rmsprop, fo.schedules.cosine(0.02, total=4000))], ids=str)
def test_rules_without_momentum_come_near(rule, lr):
    result = minimize(both, X0, jac=True, method=fo.scipy_method(rule, lr=lr), options={"maxiter": 4000})
    np.testing.assert_allclose(result.x, 1, atol=0.1)  # they creep along the valley, or hop across it
    assert result.fun < 1e-3 * rosen(X0) and (result.status, result.nit) == (1, 4000)


def test_a_separate_gradient_args_and_tol():
    def f(x, a, b):
        return a * float(((x - b) ** 2).sum())

    def g(x, a, b):
        return (2 * a * (x - b)).tolist()  # a list is as good

    result = minimize(f, np.zeros(3), args=(2.0, 5.0), jac=g, method=fo.scipy_method(fo.sgd, lr=0.1), tol=1e-8)
    assert result.success and np.abs(result.jac).max() <= 1e-8
    np.testing.assert_allclose(result.x, 5, atol=1e-8)


def test_maxiter():
    result = minimize(both, X0, jac=True, method=fo.scipy_method(fo.adam), options={"maxiter": 7})
    assert (result.nit, result.nfev, result.status, result.success) == (
        7,
        8,
        1,
        False,
    ) and "iterations" in result.message
    at_start = minimize(both, np.ones(2), jac=True, method=fo.scipy_method(fo.adam))
    assert (at_start.nit, at_start.nfev, at_start.success) == (0, 1, True)
    none = minimize(both, X0, jac=True, method=fo.scipy_method(fo.adam), options={"maxiter": 0})
    assert (none.nit, none.status, none.x.tolist()) == (0, 1, X0.tolist())


def test_callbacks_of_both_kinds_and_stop_iteration():
    seen = []

    def positional(xk):
        seen.append(xk.copy())
        xk[:] = np.nan  # a copy: no harm

    def keyword(*, intermediate_result):
        seen.append((intermediate_result.x, intermediate_result.fun))
        if len(seen) == 5:
            raise StopIteration

    method = fo.scipy_method(fo.adam, lr=0.1)
    result = minimize(both, X0, jac=True, method=method, callback=positional, options={"maxiter": 3})
    assert len(seen) == 3 and np.array_equal(seen[-1], result.x)
    seen.clear()
    result = minimize(both, X0, jac=True, method=method, callback=keyword)
    assert (result.nit, result.status, result.success) == (5, 99, False) and "StopIteration" in result.message
    assert np.array_equal(seen[-1][0], result.x) and seen[-1][1] == result.fun == rosen(result.x)


def test_a_non_finite_value_ends_it():
    def f(x):
        return (np.nan if x[0] > 0.5 else -x[0]), -np.ones(1)

    result = minimize(f, np.zeros(1), jac=True, method=fo.scipy_method(fo.sgd, lr=0.2))
    assert (result.status, result.success, result.nit) == (3, False, 3) and "step 4" in result.message
    assert result.x[0] == pytest.approx(0.6) and np.isnan(result.fun)
    result = minimize(lambda x: (np.inf, x), np.ones(1), jac=True, method=fo.scipy_method(fo.sgd))
    assert (result.status, result.nit, result.x.tolist()) == (3, 0, [1.0])


def test_ctrl_c_passes_through_as_in_scipy():
    def f(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimize(f, X0, jac=True, method=fo.scipy_method(fo.adam))


def test_dtypes_of_the_start():
    method = fo.scipy_method(fo.adam, lr=0.05)
    assert minimize(both, X0.astype(np.float32), jac=True, method=method, options={"maxiter": 9}).x.dtype == np.float32
    assert minimize(both, [2, 2], jac=True, method=method, options={"maxiter": 9}).x.dtype == np.float64


def test_disp(capsys):
    minimize(both, X0, jac=True, method=fo.scipy_method(fo.adam), options={"maxiter": 3, "disp": True})
    assert "iterations 3, evaluations 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(), "needs a gradient"),
        (dict(jac="2-point"), "needs a gradient"),
        (dict(jac=True, bounds=[(0, 1)] * 2), "no bounds"),
        (dict(jac=True, constraints={"type": "eq", "fun": lambda x: 0}), "no bounds"),
        (dict(jac=True, options={"maxitr": 3}), "no option `maxitr`.*Did you mean `maxiter`"),
        (dict(jac=True, options={"maxiter": -3}), "-3"),
        (dict(jac=True, options={"gtol": -1.0}), "`gtol` is -1.0"),
    ],
)
def test_what_it_cannot_do_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        minimize(both, X0, method=fo.scipy_method(fo.adam), **options)


def test_the_rule_and_its_hyperparameters_are_checked():
    with pytest.raises(ConfigError, match="`rule` is 'adam'"):
        fo.scipy_method("adam")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no hyperparameter `beta3` of `adam`"):
        fo.scipy_method(fo.adam, beta3=0.5)
    with pytest.raises(ConfigError, match="no hyperparameter `epochs` of `adam`"):
        fo.scipy_method(fo.adam, epochs=3)
