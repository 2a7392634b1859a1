"""Wrappers: one formula of two. Against the same steps one after another, unfused, on float64 arrays."""

import ast
import inspect

import numpy as np
import pytest
from layers import LAYERS, Grok, unfused, within

import fastopt as fo
from fastopt.lower import lower
from fastopt.math import maximum, mean, norm, sign, sqrt
from fastopt.matrices import matrix_function
from fastopt.rules import CATALOGUE
from fastopt.wrap import before, behind


@matrix_function()
def cubed(x):
    """A function of a whole matrix."""
    return x @ x.T @ x


@fo.rule
def trust(p, g, m, n, *, lr=1e-2, beta=0.9):
    """Totals, one after another, and a state that is one number."""
    m = beta * m + g / (norm(g) + 1e-8)
    n = beta * n + (1 - beta) * mean(m * m)
    return p - lr * (m - mean(m)) / (sqrt(n) + 1e-8), m, n


@fo.rule
def factored(p, g, r, c, h, *, lr=1e-2, beta=0.9, alpha=0.5):
    """A number per row and per column, names that wrappers have as well, and two returns."""
    r = beta * r + (1 - beta) * mean(g * g, "row")
    c = beta * c + (1 - beta) * mean(g * g, "column")
    u = g / maximum(sqrt(r * c / mean(r)), 1e-6)
    h = alpha * h + u
    new = p - lr * h
    if alpha:
        return new, r, c, h
    return p - lr * u, r, c, h


@fo.rule
def matrices(p, g, m, *, lr=1e-2, beta=0.9, matrix):
    """A function of matrices, for those that are; others get a sign."""
    m = beta * m + g
    u = cubed(m) if matrix else sign(m)
    return p - lr * u, m


RULES = {
    "sgd": (fo.sgd, dict(lr=0.1, weight_decay=0.1)),
    "momentum": (fo.sgd, dict(lr=0.1, momentum=0.9, nesterov=True)),
    "adamw": (fo.adamw, dict(lr=0.1, weight_decay=0.1)),
    "nadam": (fo.keras.nadam, dict(lr=0.1, weight_decay=0.1)),
    "schedule_free": (fo.schedule_free_adamw, dict(lr=0.1, weight_decay=0.1)),
    "trust": (trust, {}),
    "factored": (factored, {}),
    "matrices": (matrices, {}),
}


def layered(*names):
    """(the wrapped rule, what makes its layers) of wrappers as layers.py has them, the outermost first."""

    def wrap(rule):
        for name in reversed(names):
            rule = LAYERS[name][0](rule)
        return rule

    return wrap, lambda: [LAYERS[name][1]() for name in names]


WRAPPED = {
    "clip_norm": layered("clip_norm"),
    "agc": layered("agc"),
    "centralized unit": layered("centralize", "normalize"),
    "by rms, then lookahead": layered("lookahead", "by_rms"),
    "grokfast": layered("grokfast"),
    "clip_value": layered("clip_value"),
    "cautious": layered("cautious"),
    "nested": (  # the outermost sees the gradient first, and the new parameter last
        lambda rule: fo.cautious(fo.clip_value(fo.grokfast(fo.grokfast(rule, 0.5), 0.9, 0.5), limit=2.0)),
        lambda: [LAYERS["cautious"][1](), within(2.0)(), Grok(0.9, 0.5), Grok(0.5, 2.0)],
    ),
}


def settings(rule, hyper):
    return {**rule.hyper, **hyper}


def drawn(shape=(6, 9), steps=4):
    rng = np.random.default_rng(1)
    return rng.normal(size=shape), [rng.normal(size=shape) for _ in range(steps)]


LAYERED = ("grokfast", "clip_value", "cautious", "nested")
PAIRS = [(n, w) for w in WRAPPED for n in (RULES if w in LAYERED else ("momentum", "factored", "matrices"))]


@pytest.mark.parametrize(("name", "wrapper"), PAIRS)
def test_one_kernel_does_what_the_steps_do_one_after_another(name, wrapper):
    (rule, hyper), (wrap, layers) = RULES[name], WRAPPED[wrapper]
    p, gradients = drawn()
    expected = unfused(rule, hyper, layers(), p, gradients)
    opt = wrap(rule)(p, **hyper)
    for g in gradients:
        opt.step(g)
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-12)  # float64 both times: another order of roundings


@pytest.mark.parametrize("name", RULES)
def test_the_whole_formula_is_an_ordinary_function(name):
    (rule, hyper), (wrap, layers) = RULES[name], WRAPPED["nested"]
    p, gradients = drawn()
    expected, whole = unfused(rule, hyper, layers(), p, gradients), wrap(rule)
    state = [p.copy() if whole.init.get(s) == "p" else whole.init.get(s, 0.0) for s in whole.state]
    for t, g in enumerate(gradients, 1):
        supplied = {"t": t, **({"matrix": True} if "matrix" in whole.switches else {})}
        p, *state = whole.formula(p, g, *state, **settings(whole, hyper), **supplied)
    np.testing.assert_allclose(p, expected, rtol=1e-13, atol=1e-13)
    assert [*inspect.signature(whole.formula).parameters][: 2 + len(state)] == ["p", "g", *whole.state]


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_rule_of_the_catalogue_can_be_wrapped(name):
    """Each choice of switches is compiled to text: what cannot be spliced would raise."""
    rule = CATALOGUE[name]
    for wrapped, kind in ((fo.grokfast(rule), "grokfast"), (fo.cautious(rule), "cautious")):
        assert wrapped.name == f"{kind}({name})" and (wrapped.view is None) == (rule.view is None)
        assert {*rule.schema} < {*wrapped.schema} and {*rule.state} <= {*wrapped.state}


def test_a_wrapper_that_changes_nothing_changes_no_bit():
    p, gradients = drawn()
    results = []
    for rule in (fo.adamw, fo.clip_value(fo.adamw, 1e30), fo.grokfast(fo.adamw, lamb=0.0)):
        q = p.astype(np.float32)
        opt = rule(q, lr=0.1)
        for g in gradients:
            opt.step(g)
        results.append(q.tobytes())
    assert len(set(results)) == 1


def test_it_is_one_kernel_with_one_buffer_more():
    rule = fo.grokfast(fo.clip_value(fo.adamw, 1.0))
    lowered = lower(rule, (("amsgrad", False),))
    assert lowered.state == ("m", "v", "h") and len(lowered.passes) == 1
    assert fo.source(rule).count("_at[i]\n") == 2 + 3  # loads: p, g, and the three states
    assert lower(fo.cautious(fo.sgd), (("momentum", False), ("nesterov", False))).state == ()
    assert len(lower(fo.cautious(fo.adamw), (("amsgrad", False),)).passes) == 2  # a mean must be known before the end


def test_clip_norm_is_torchs_over_all_parameters():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    shapes = [(3, 4), (5,), (), (2, 3, 2)]
    p = [rng.normal(size=s) for s in shapes]
    theirs = [torch.tensor(x) for x in p]
    opt = fo.clip_norm(fo.adamw, 0.7)(p, lr=0.1, groups=[fo.Group("1", lr=0.01)])
    twin = torch.optim.AdamW([{"params": [x], "lr": 0.01 if k == 1 else 0.1} for k, x in enumerate(theirs)])
    for t in range(20):
        g = [rng.normal(size=s) * (0.05 if t % 3 == 0 else 1.0) for s in shapes]  # some need no clipping
        for x, y in zip(theirs, g, strict=True):
            x.grad = torch.tensor(y)
        torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        twin.step()
        opt.step(g)
    for x, y in zip(p, theirs, strict=True):
        np.testing.assert_allclose(x, y.numpy(), rtol=0, atol=1e-12)


def test_clip_norm_reads_the_gradients_once_more_and_writes_nothing():
    lowered = lower(fo.clip_norm(fo.adamw, 1.0), (("amsgrad", False),))
    first, second = lowered.passes
    assert [b for _, b in first.loads] == ["g"] and not first.stores
    assert len(second.loads) == 4 and len(second.stores) == 3


def test_noise_has_the_variance_of_its_schedule():
    p = np.zeros(1 << 20)
    opt = fo.noisy(fo.sgd, eta=0.5, gamma=0.5)(p, lr=1.0)
    for t in (1, 2, 3):
        p[...] = 0
        opt.step(np.zeros_like(p))
        assert abs(p.var() / (0.5 / t**0.5) - 1) < 0.01  # seven standard errors of 2**20 squares


def test_names_that_the_rule_has_as_well_get_the_wrappers_in_front():
    rule = fo.grokfast(fo.grokfast(factored))
    assert rule.name == "grokfast(grokfast(factored))"
    assert rule.state == ("r", "c", "h", "grokfast_h", "grokfast_grokfast_h")
    assert [*rule.schema][3:] == ["grokfast_alpha", "lamb", "grokfast_grokfast_alpha", "grokfast_lamb"]
    assert fo.clip_value(fo.adam, 0.5).hyper["limit"] == 0.5
    assert fo.clip_value(fo.adam).hyper["limit"] is ...
    with pytest.raises(fo.ConfigError, match=r"`clip_value\(adam\)` needs a value for `limit`"):
        fo.clip_value(fo.adam)(np.ones(3))


def test_hyperparameters_of_a_wrapper_are_like_any_other():
    """Schedules, groups, set, state_dict; a group may have a wrapped rule."""
    p, q = {"a": np.ones(4), "b": np.ones(4)}, {"a": np.ones(4), "b": np.ones(4)}
    groups = [fo.Group("b", lamb=0.0)]
    opt = fo.grokfast(fo.sgd)(p, lr=0.1, lamb=lambda t: 1.0 * t, alpha=0.5, groups=groups)
    opt.step({n: np.ones(4) for n in p})
    np.testing.assert_allclose(p["a"], 0.8)
    np.testing.assert_allclose(p["b"], 0.9)
    for n in p:
        q[n][...] = p[n]
    again = fo.grokfast(fo.sgd)(q, lr=0.1, lamb=lambda t: 1.0 * t, alpha=0.5, groups=groups)
    again.load_state_dict(opt.state_dict())
    for held, o in ((p, opt), (q, again)):
        o.set("b", lamb=3.0)
        o.step({n: np.ones(4) for n in held})
    assert [x.tobytes() for x in p.values()] == [x.tobytes() for x in q.values()]
    with pytest.raises(fo.ConfigError, match=r"`grokfast\(sgd\)`: `alpha` is 2.0; expected a number in \[0, 1\)"):
        opt.set(alpha=2.0)
    mixed = fo.sgd(p, lr=0.1, groups=[fo.Group("b", rule=fo.cautious(fo.lion), lr=0.1)])
    mixed.step(q)


def test_a_wrapped_rule_keeps_its_average():
    p, gradients = drawn()
    opt = fo.clip_value(fo.grokfast(fo.schedule_free_sgd), 0.1)(p, lr=0.5)
    for g in gradients:
        opt.step(g)
    y = p.copy()
    with opt.averaged():
        np.testing.assert_allclose(p, y + (1 - 1 / 0.9) * (opt.state["z"] - y), rtol=1e-12)
    assert p.tobytes() == y.tobytes()


def test_a_moving_average_of_any_rule():
    """As torch.optim.swa_utils: the first average is a copy. Training does not notice; the outer average shows."""
    p, gradients = drawn(steps=6)
    q, e = p.copy(), None
    opt, twin = (
        fo.clip_value(fo.ema(fo.ema(fo.adamw, 0.5), 0.8), 1.0)(p, lr=0.1),
        fo.clip_value(fo.adamw, 1.0)(q, lr=0.1),
    )
    assert opt.rule.state[3:] == ("e", "ema_e") and [*opt.rule.schema][-7:] == [
        *("decay", "warmup", "every"),
        *("ema_decay", "ema_warmup", "ema_every", "limit"),
    ]
    for g in gradients:
        opt.step(g)
        twin.step(g)
        e = q.copy() if e is None else 0.8 * e + 0.2 * q
    assert p.tobytes() == q.tobytes()
    with opt.averaged() as shown:
        np.testing.assert_allclose(shown, e, rtol=1e-13)
    assert p.tobytes() == q.tobytes()


def shown(p, e, *, decay):
    ten = 10
    return p + ten * e + decay


@behind(view=shown)
def anchored(p, g, new, e, *, decay=0.5):
    """Its state and its hyperparameter have the names of another wrapper's."""
    return new, e + new * decay


def test_a_view_is_renamed_with_its_wrapper():
    p = np.ones(3)
    opt = anchored(fo.ema(fo.sgd))(p, lr=0.1, anchored_decay=0.25)
    opt.step(np.ones(3))
    with opt.averaged():
        np.testing.assert_allclose(p, 0.9 + 10 * 0.9 * 0.25 + 0.25)


def halved(p, g, *, gain=0.5):
    """A wrapper of the user's."""
    x = gain * g
    return x


x = 2.0


@fo.rule
def outer(p, g, *, lr):
    """Reads an `x` of its module, which the wrapper's local of that name must not shadow."""
    return p - lr * x * g


@fo.rule
def inner(p, g, *, lr, x):
    return p - lr * x * g


@before
def scaled(p, g):
    return x * g


def test_locals_of_one_formula_are_not_those_of_the_other():
    p = np.ones(3)
    before(halved)(outer)(p, lr=0.1).step(np.ones(3))
    np.testing.assert_allclose(p, 0.9)
    with pytest.raises(fo.RuleError, match=r"uses `x` from outside, but `inner` has a name like it; rename it"):
        scaled(inner)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: fo.grokfast(fo.adamw, beta=1), "unknown hyperparameter `beta` for `grokfast`; it has alpha, lamb."),
        (lambda: fo.grokfast(fo.adamw, alhpa=0.5), "Did you mean `alpha`?"),
        (lambda: fo.grokfast(fo.adamw, 1.5), "`grokfast`: `alpha` is 1.5; expected a number in [0, 1)"),
        (lambda: fo.grokfast(fo.adamw, 0.5, 1, 2), "3 values for its hyperparameters; it has alpha, lamb"),
        (lambda: fo.grokfast(fo.adamw, 0.5, alpha=0.5), "`alpha` is given by position and by name"),
        (
            lambda: fo.grokfast(fo.adamw, lamb=lambda t: t),
            "give schedules to the optimizer: grokfast(rule)(params, lam",
        ),
        (lambda: fo.grokfast(np.ones(3)), "rule is a ndarray; expected a rule"),
    ],
)
def test_wrong_calls_are_refused(call, reason):
    with pytest.raises(fo.ConfigError) as caught:
        call()
    assert reason in str(caught.value)


BAD = {
    "def w(p, g, h):\n    return g": "returns 1 value; expected 2: g, h",
    "def w(p, g):\n    p = p + g\n    return g": "assigns to `p`",
    "def w(p, g):\n    x = g\n    return helper(x)": "calls `helper`, which is not defined here",
    "def w(p, g, *, on):\n    return g": "never reads its hyperparameter `on`",
    "def w(g, p):\n    return g": "the first two must be `p` and `g`",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_wrapper_is_refused_where_it_is_declared(text):
    with pytest.raises(fo.RuleError) as caught:
        before(text)
    assert BAD[text] in str(caught.value)
    with pytest.raises(fo.RuleError, match=r"takes \(p, g, new, states, \*, hyperparameters\)"):
        behind("def w(p, g, h):\n    return h")


def test_an_error_points_to_the_line_of_the_formula_it_is_in():
    with pytest.raises(fo.RuleError, match=r"^<rule w>:3: rule `w\(plain\)` calls `helper`"):
        before("def w(p, g):\n    y = g\n    return helper(y)")
    source = fo.cautious(fo.adamw).source
    lines = {(n.origin.file.rsplit("/", 1)[-1], n.lineno) for n in walk(source.tree)}
    first = inspect.getsourcelines(fo.adamw.formula)[1]
    assert {f for f, _ in lines} == {"adam.py", "moves.py"}
    assert min(line for f, line in lines if f == "adam.py") > first


def walk(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
