"""`opt.eval()` and `opt.train()`: what is shown, and that training never notices."""

import sys
from pathlib import Path

import numpy as np
import pytest
from catalogue import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles_schedule_free import CASES
from test_interrupts import interruptible

import fastopt as fo


@fo.rule(view="ax")
def averaging(p, g, ax, *, lr=0.1, t):
    """The name of a state as its view."""
    p = p - lr * g
    return p, ax + (p - ax) / t


def _corrected(p, e, *, beta, t):
    return e / (1 - beta**t) if beta else p


@fo.rule(view=_corrected)
def with_ema(p, g, e, *, lr=0.1, beta=0.5):
    """A view with `t`, and one that a switch decides."""
    p = p - lr * g
    return p, (beta * e + (1 - beta) * p if beta else e)


def tree(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(5, 7)).astype(dtype), "b": rng.normal(size=3).astype(dtype)}


def bits(params):
    return [x.tobytes() for x in params.values()]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 2e-5)])  # float32: forty steps of roundings,
def test_the_average_is_the_papers_x(case: Case, dtype, bound):  # and 1 - 1/beta stretches those of the last by 1.25
    params = tree(dtype=dtype)
    oracles = {n: case.oracle(p) for n, p in params.items()}
    opt = case.make(params, **case.hyper)
    for t in range(1, 41):
        grads = {n: o.p * np.arange(1, o.p.size + 1).reshape(o.p.shape) / o.p.size for n, o in oracles.items()}
        opt.step({n: g.astype(dtype) for n, g in grads.items()})
        for n, oracle in oracles.items():
            oracle.step(grads[n], **case.full())
        if t % 10 == 1:
            with opt.averaged() as shown:
                for n, oracle in oracles.items():
                    np.testing.assert_allclose(shown[n], oracle.x, rtol=bound, atol=bound, err_msg=n)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    calls=st.lists(st.sampled_from(["step", "eval", "train", "averaged", "none"]), max_size=12),
    scale=st.floats(1e-30, 1e30),
    beta1=st.floats(0.01, 0.99),
)
def test_training_never_notices(calls, scale, beta1):
    """Any order of calls leaves the bits of a run without eval(); eval() twice is eval() once."""
    params, plain = tree(), tree()
    for p in (params, plain):
        p["b"] *= np.float32(scale)
    opt = fo.schedule_free_adamw(params, lr=0.1, beta1=beta1)
    twin = fo.schedule_free_adamw(plain, lr=0.1, beta1=beta1)
    shown = None
    for k, call in enumerate(calls):
        grads = tree(seed=k + 1)
        if call in ("step", "none"):
            opt.train()
            grads["w"] = None if call == "none" else grads["w"]
            opt.step(grads)
            twin.step(grads)
        elif call == "eval":
            opt.eval()
            shown = bits(params)
            opt.eval()
            assert bits(params) == shown
        elif call == "train":
            opt.train()
            assert bits(params) == bits(plain)
        else:
            before = bits(params)
            with opt.averaged(), opt.averaged():
                pass
            assert bits(params) == before
    opt.train()
    opt.train()
    assert bits(params) == bits(plain) and opt.t == twin.t
    assert all(bits(opt.state[s]) == bits(twin.state[s]) for s in twin.state)


def test_views_of_a_state_with_t_and_of_switches():
    params = tree()
    opt = averaging(params)
    seen = []
    for k in range(3):
        opt.step(tree(seed=k))
        seen.append({n: p.copy() for n, p in params.items()})
    with opt.averaged() as shown:
        for n in params:
            np.testing.assert_allclose(shown[n], sum(p[n] for p in seen) / 3, rtol=1e-5, atol=1e-6)
    for beta in (0.5, 0.0):
        params, total = tree(), None
        opt = with_ema(params, beta=beta)
        for k in range(3):
            opt.step({**tree(seed=k), "b": None} if k == 1 else tree(seed=k))
            total = params["w"] * 0.5 ** (2 - k) + (0 if total is None else total)
        with opt.averaged() as shown:
            np.testing.assert_allclose(shown["w"], total / 1.75 if beta else params["w"], rtol=1e-5, atol=1e-6)
    assert with_ema.view.formula(1.0, 2.0, beta=0.5, t=1) == 4.0  # an ordinary function


def test_what_has_no_average_stays_as_it_is():
    """Frozen parameters, groups of another rule, and parameters that have not been stepped yet."""
    params = {n: np.ones(4) for n in ("a", "frozen", "other", "late")}
    groups = [fo.Group("frozen", frozen=True), fo.Group("other", rule=fo.sgd, lr=0.1)]
    opt = fo.schedule_free_sgd(params, lr=0.1, groups=groups)
    opt.eval()  # before the first step everything is its own average
    opt.train()
    for _ in range(3):
        opt.step({n: None if n in ("frozen", "late") else np.ones(4) for n in params})
    before = {n: p.copy() for n, p in params.items()}
    opt.eval()
    assert [n for n in params if (params[n] != before[n]).any()] == ["a"]


def test_rows_that_wait_for_what_they_missed_are_brought_up_to_date_first():
    whole, sparse = tree(dtype=np.float64), tree(dtype=np.float64)
    opt, twin = with_ema(whole), with_ema(sparse, sparse="exact")
    for k in range(4):
        grads = tree(seed=k, dtype=np.float64)
        touched = [0, 3] if k else [1]
        rows = {**grads, "w": fo.rows(touched, grads["w"][touched])}
        grads["w"][[j for j in range(5) if j not in touched]] = 0
        opt.step(grads)
        twin.step(rows)
    with opt.averaged(), twin.averaged():
        for n in whole:
            np.testing.assert_allclose(sparse[n], whole[n], rtol=1e-13)


def test_the_average_is_that_of_the_last_steps_hyperparameters():
    """A schedule of momentum: y was made with that of step t, so x is found with it, too."""
    params, oracle = {"p": np.ones(3)}, CASES[0].oracle(np.ones(3))
    momenta = [0.5, 0.7, 0.9, 0.3]
    opt = fo.schedule_free_sgd(params, lr=0.1, momentum=lambda t: momenta[t - 1])
    opt.step({"p": np.ones(3)})
    oracle.step(np.ones(3), **CASES[0].full(lr=0.1, weight_decay=0.0, momentum=0.5))
    with opt.averaged():
        np.testing.assert_allclose(params["p"], oracle.x, rtol=1e-14)


def refused(call, *says):
    with pytest.raises(fo.ConfigError) as caught:
        call()
    assert [s for s in says if s not in str(caught.value)] == [], str(caught.value)


def test_calls_that_need_the_parameters_of_training_say_so():
    params = tree()
    opt = fo.schedule_free_sgd(params)
    opt.step(tree(1))
    saved, before = opt.state_dict(), bits(params)
    opt.eval()
    shown = bits(params)
    for call in (lambda: opt.step(tree(1)), opt.state_dict, lambda: opt.load_state_dict(saved)):
        refused(call, "opt.train() first")
        assert bits(params) == shown
    assert not opt.torn
    opt.set(lr=0.5)
    opt.train()
    assert bits(params) == before and opt.state_dict()["t"] == 1 and opt.hyper()["lr"] == 0.5
    opt.load_state_dict(saved)
    refused(fo.adamw(tree()).eval, "`adamw` has no average to show", "schedule_free_adamw")
    fo.adamw(tree()).train()  # nothing to do is no error: a loop may call it for every rule
    params["w"] = params["w"].copy()
    refused(opt.eval, "`w` was replaced")


def test_an_exception_inside_of_averaged_brings_the_parameters_back():
    params = tree()
    opt = fo.schedule_free_sgd(params)
    opt.step(tree(1))
    opt.step(tree(2))  # after one step y and x are the same
    before = bits(params)
    with pytest.raises(ZeroDivisionError), opt.averaged():
        assert bits(params) != before
        raise ZeroDivisionError
    assert bits(params) == before
    opt.step(tree(2))


def interrupted_at(call, k):
    """Run `call` with KeyboardInterrupt raised at the k-th point of fastopt's code where a signal may arrive."""
    here, last, count = str(Path(fo.__file__).parent), {}, 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(here):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before, last[frame] = last.get(frame), frame.f_lasti
            if before in interruptible(frame.f_code):
                count += 1
                if count == k:
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("name", ["eval", "train"])
def test_an_interrupt_anywhere_is_never_silent(name):
    """Afterwards the parameters are those of training or the averages, whole, or every call says that they are not."""
    params = {"f": np.ones(100, np.float32), "d": np.ones(5)}  # two dtypes, so two launches
    grads = {n: 2 * p for n, p in params.items()}
    outcomes = set()
    for k in range(1, 100_000):
        for p in params.values():
            p[...] = 1
        opt = fo.schedule_free_sgd(params)
        for _ in range(2):
            opt.step(grads)
        training = bits(params)
        with opt.averaged():
            averages = bits(params)
        if name == "train":
            opt.eval()
        if not interrupted_at(getattr(opt, name), k):
            break
        try:
            opt.state_dict()
        except fo.ConfigError as error:
            turned = "interrupted" not in str(error)
            assert not turned or bits(params) == averages
            outcomes.add("averages" if turned else "half")
        else:
            assert bits(params) == training
            outcomes.add("training")
        opt.train()
        assert bits(params) == training
        opt.eval()
        assert bits(params) == averages
        opt.train()
        opt.step(grads)
    assert k > 5 and {"training", "averages"} <= outcomes


BAD = {
    "def x(p, z, y):\n    return z": "takes `y`, which `base` does not have",
    "def x(z):\n    return z": "takes (p, states, *, hyperparameters)",
    "def x(p, z, *, beta=1.0):\n    return z": "none with a default",
    "def x(p, z, *, bta):\n    return z + bta": "Did you mean `beta`?",
    "def x(p, z):\n    return z, p": "returns 2 values; expected one",
    "def x(p, z):\n    z = z + p\n    return z": "assigns to `z`",
    "def x(p, n):\n    return p + n": "reads the state `n`, which is no buffer of the parameter's shape",
    "def x(p, s):\n    return p + s": "reads the state `s`, which not every switch setting has",
    "y": "takes `y`, which `base` does not have",
}


@pytest.mark.parametrize("view", BAD)
def test_a_view_that_is_no_formula_of_the_rule_is_refused(view):
    text = """def base(p, g, z, n, s, *, lr, beta=0.5, on=False):
        n = n * beta + 1
        z = z + g
        s = s + g if on else s
        return p - lr * (z + n + (s if on else 0)), z, n, s"""
    with pytest.raises(fo.RuleError) as caught:
        fo.rule(text, view=view)
    assert BAD[view] in str(caught.value)


def test_asgd_shows_its_average():
    params = tree()
    opt = fo.asgd(params, lr=0.1, t0=1.0)
    for k in range(5):
        opt.step(tree(seed=k))
    with opt.averaged() as shown:
        for n, p in shown.items():
            assert p.tobytes() == opt.state["ax"][n].tobytes()
