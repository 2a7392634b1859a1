"""Any rule as a method of `scipy.optimize.minimize`."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.callbacks import Run, finite
from fastopt.errors import ConfigError, hint
from fastopt.minimize import minimize
from fastopt.process import number
from fastopt.schema import Rule

OPTIONS = ("maxiter", "gtol", "disp")
STATUS = {  # reason -> (status, message), the numbers of scipy's own methods
    "converged": (0, "Optimization terminated successfully: the gradient's largest element is at most gtol."),
    "steps": (1, "Maximum number of iterations has been exceeded."),
    "non-finite loss": (3, "NaN or infinite result encountered."),
    "callback": (99, "`callback` raised `StopIteration`."),
}


def scipy_method(rule: Rule, **hyper: Any) -> Callable[..., Any]:
    """A callable for `scipy.optimize.minimize(fun, x0, jac=True, method=scipy_method(fastopt.adam, lr=0.05), ...)`.

    `jac` is True or a function. Options: `maxiter` (steps, default 10 000), `gtol` (stop when the largest |gradient|
    element is at most this; default 1e-5; `tol` sets it too), `disp`. `callback` is called as by scipy's own methods:
    `callback(xk)` or `callback(intermediate_result=...)`; StopIteration stops. The result holds the last point, not the
    best: x, fun, jac, nit, nfev, njev, success, status, message. Ctrl-C passes through, as in scipy.

    Raises `ConfigError` for bounds, constraints, a missing gradient or an unknown option.
    """
    if not isinstance(rule, Rule):
        raise ConfigError(f"scipy_method: `rule` is {rule!r}; expected a rule such as fastopt.adam.")
    for name in hyper.keys() - rule.schema.keys():
        raise ConfigError(f"scipy_method: no hyperparameter `{name}` of `{rule.name}`.{hint(name, rule.schema)}")

    def method(
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...] = (),
        jac: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        maxiter: int | None = None,
        gtol: float | None = None,
        tol: float | None = None,
        disp: bool = False,
        hess: Any = None,
        hessp: Any = None,
        **unknown: Any,
    ) -> Any:
        from scipy.optimize import OptimizeResult

        who = f"scipy_method({rule.name})"
        for name in unknown:
            raise ConfigError(f"{who}: no option `{name}`; it has {', '.join(OPTIONS)}.{hint(name, OPTIONS)}")
        if bounds is not None or len(np.atleast_1d(np.asarray(constraints, object))):
            raise ConfigError(f"{who}: takes no bounds and no constraints; use L-BFGS-B or SLSQP for them.")
        if not callable(jac):
            raise ConfigError(f"{who}: needs a gradient: jac=True for a `fun` that returns (f, g), or jac=function.")
        tolerance = gtol if gtol is not None else tol if tol is not None else 1e-5
        finite(who, "gtol", tolerance, 0.0)
        x = np.array(x0, np.float32 if np.asarray(x0).dtype == np.float32 else np.float64)
        watch = _Watch(callback, tolerance, OptimizeResult)

        def loss_and_grad(params: np.ndarray) -> tuple[float, np.ndarray]:
            point = params.copy()  # `fun` may keep what it is given
            value = number(fun(point, *args), f"{who}: what `fun` returned")
            watch.calls, watch.gradient = watch.calls + 1, np.asarray(jac(point, *args), params.dtype)
            return value, watch.gradient

        steps = 10_000 if maxiter is None else maxiter
        result = minimize(loss_and_grad, x, rule=rule, steps=steps, callbacks=[watch], **hyper)
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        status, message = STATUS[result.reason]
        if status == 3:
            message = f"{message} {result.message}."
        answer = OptimizeResult(
            x=x,
            fun=result.loss,
            jac=watch.gradient,
            nit=result.steps,
            nfev=watch.calls,
            njev=watch.calls,
            success=status == 0,
            status=status,
            message=message,
        )
        if disp:
            print(f"{message}\n  value {answer.fun:.6g}, iterations {answer.nit}, evaluations {answer.nfev}")
        return answer

    return method


class _Watch:
    """A callback of `minimize` that stops on a small gradient and passes iterations on to scipy's kind of callback."""

    def __init__(self, callback: Callable[..., Any] | None, gtol: float, result: type) -> None:
        self.calls = 0
        self.gradient: Any = None
        self._callback, self._gtol, self._result = callback, gtol, result
        if callback is not None:
            names = set(inspect.signature(callback).parameters)
            self._keyword = names == {"intermediate_result"}

    def on_start(self, run: Run) -> str | None:
        return self._converged(run)

    def on_epoch(self, run: Run) -> str | None:
        if self._callback is not None:
            x = run.params.copy()
            try:
                if self._keyword:
                    self._callback(intermediate_result=self._result(x=x, fun=run.loss))
                else:
                    self._callback(x)
            except StopIteration:
                return "callback"
        return self._converged(run)

    def _converged(self, run: Run) -> str | None:
        return "converged" if np.max(np.abs(run.grads), initial=0.0) <= self._gtol else None
