"""The compiler's front: what a rule may say, what it becomes, and what is refused, with file, line and reason."""

import re

import numpy as np
import pytest

import fastopt as fo
from fastopt import views
from fastopt.lower import check, lower
from fastopt.math import sqrt
from fastopt.rules import CATALOGUE
from fastopt.rules.readings import READINGS
from fastopt.schema import MATRIX

DECAY = 0.25


@fo.rule
def everything(p, g, m, n, k1, *, lr, beta=0.9, on=False, gain=0.0, t):
    """One of each: locals that clash with the kernel's words, augmented and tuple assignment, selects, powers."""
    c = 1 - beta  # staged: no statement of the kernel
    i = g * c
    i += 0.5 * p
    hi, lo = p, g
    hi, lo = lo, hi
    m = beta * m + i**2 if on else m
    n = fo.math.maximum(n, abs(lo)) + g**3 / 7 + abs(hi) ** 0.5 * (1 if t > 2 else 0)
    k1 = fo.math.where(g > 0 and p < 1, k1 + DECAY, min(k1, 2))
    if gain:
        k1 = k1 * gain
    return p - lr / (1 - beta**t) * (n + k1) / sqrt(2.0), m, n, k1


def chosen(rule, **on):
    return lower(rule, tuple((n, on.get(n, False)) for n in rule.switches))


def test_what_everything_becomes():
    assert everything.switches == ("on", "gain") and everything.timed
    assert everything.state == ("m", "n", "k1")
    low = chosen(everything)
    assert low.state == ("n", "k1"), "m is only read when `on`"
    columns = {c.name: c.expression for c in low.columns}
    assert "1 - beta" in columns.values() and "lr / bias_correction_(beta, t)" in columns.values()
    assert [c.timed for c in low.columns] == sorted(c.timed for c in low.columns)
    text = "\n".join(low.passes[0].body)
    assert "i_ = " in text and "lo_ = " in text and "k1_ = " in text, "the kernel's own words are left to it"
    assert "**" not in text, "small powers are products"
    assert "real(0.25)" in text, "a global number is taken at its value"
    assert chosen(everything, on=True).state == ("m", "n", "k1")
    assert "gain" not in {c.name for c in low.columns}
    assert "gain" in {c.name for c in chosen(everything, gain=True).columns}


@pytest.mark.parametrize("name", ["i", "hi", "scale", "k1", "i_"])
def test_a_hyperparameter_may_have_the_name_of_a_word_of_the_kernel(name):
    """A kernel that took `i` for its own would be wrong without a sign of it."""
    rule = fo.rule(f"def f(p, g, *, {name}=0.5):\n    i = p - {name} * (g + (1 - {name}))\n    return i")
    p = np.ones(5, np.float32)
    rule(p).step(np.arange(5, dtype=np.float32))
    assert p.tolist() == [1 - 0.5 * (k + 0.5) for k in range(5)]


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("gain", [0.0, 1.5])
def test_the_kernel_of_everything_computes_what_the_function_does(on, gain):
    rng = np.random.default_rng(3)
    p = rng.uniform(0.5, 1.5, 100)
    reference, state = p.copy(), [np.zeros(100) for _ in range(3)]
    opt = everything(p, lr=0.01, on=on, gain=gain)
    for t in range(1, 5):
        g = rng.standard_normal(100)
        opt.step(g)
        for j in range(100):
            new = everything.formula(
                float(reference[j]), float(g[j]), *(float(s[j]) for s in state), lr=0.01, on=on, gain=gain, t=t
            )
            reference[j] = new[0]
            for s, x in zip(state, new[1:], strict=True):
                s[j] = x
    # float64 both times; a reciprocal column and the order of a product cost a few units in the last place
    np.testing.assert_allclose(p, reference, rtol=1e-13, atol=0)
    np.testing.assert_allclose(opt.state["n"], state[1], rtol=1e-13, atol=0)


HEAD = "def bad(p, g, m, *, lr, on=False):\n    "
REFUSED = {
    "m = [x for x in g]\n    return p - lr * g, m": "contains `[x for x in g]`",
    "for k in range(3):\n        m = m + g\n    return p, m": "contains a loop",
    "while on:\n        m = g\n    return p, m": "contains a loop",
    "print(g)\n    return p - lr * g, m + g": "an expression whose value is not used",
    "m = helper(g)\n    return p - lr * m, m": "calls `helper`, which is not defined here",
    "m = sqr(m)\n    return p - lr * m, m": "Did you mean `sqrt`?",
    "return p - lr * g": "returns 1 value; expected 2: p, m",
    "m = m + g\n    return p - lr * g, m, g": "returns 3 values; expected 2",
    "m = m + g": "has no return",
    "return p - lr * g, g": "never reads its state `m`",
    "if g > 0:\n        m = m + g\n    return p - lr * m, m": "`if` chooses by switches only",
    "if m:\n        g = g\n    return p - lr * m, m": "`if` chooses by switches only",
    "m = m + g if m else g\n    return p - lr * m, m": "write a comparison",
    "m[0] = g\n    return p, m": "assigns to plain names",
    "m = m % 2\n    return p - m, m": "uses the operator in `m % 2`",
    "m = m @ g\n    return p - m, m": "uses the operator",
    "m = 'x'\n    return p - m, m": "only numbers belong in a formula",
    "m = m + t\n    return p - m, m": "add `t` behind the `*`",
    "m = m + nothing\n    return p - m, m": "uses `nothing`, which is not defined",
    "m = sqrt(m, g)\n    return p - m, m": "calls `sqrt` with 2 arguments; it takes 1",
    "m = maximum(a=m, b=g)\n    return p - m, m": "with keywords or a star",
    "m = m + 1 / 0\n    return p - m, m": "cannot be evaluated: division by zero",
    "import os\n    return p - m, m": "contains an import",
    "m: float = g\n    return p - m, m": "contains an annotated assignment",
    "with open('x'):\n        m = g\n    return p - m, m": "contains a `with` block",
    "m = (lambda x: x)(g)\n    return p - m, m": "is not defined here",
    "m = g if g is p else m\n    return p - m, m": "compares with `Is`",
    "m, g = g\n    return p - m, m": "assigns to plain names",
    "m = ~m\n    return p - m, m": "uses the operator",
    "m = m + g.mean()\n    return p - m, m": "a rule sees one element, so methods and reductions have no place in it",
    "return p - lr * m, m": "never changes its state `m`, which starts at 0",
    "m = m + grad\n    return p - lr * m, m": "not defined",
    "lr = lr * g\n    m = lr(g)\n    return p - m, m": "calls `lr`, which is a number here",
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda b: re.sub(r"\W+", " ", b)[:30])
def test_what_is_no_formula_is_refused_where_it_is_declared(body):
    with pytest.raises(fo.RuleError) as error:
        fo.rule(HEAD + body)
    assert REFUSED[body] in str(error.value)
    assert re.match(r"<rule bad>:\d+: rule `bad` ", str(error.value)), error.value


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("(p, m, *, lr)", "the first two must be `p` and `g`"),
        ("(p, g, lr=1.0)", "gives `lr` a default; put hyperparameters behind a `*`"),
        ("(p, g, *args, lr)", "takes `*args`"),
        ("(p, g, *, lr, **other)", "takes `*other`"),
        ("(p, g, *, lr, t=1)", "gives `t` a default"),
        ("(p, g, *, lr='a')", "expected a number or a bool"),
        ("(p, g, *, clip)", "has a hyperparameter `clip`, a function of fastopt.math; rename it"),
        ("(p, g, *, lr=-1.0)", "gives `lr` the default -1.0; expected a finite number >= 0"),
        ("(p, g, *, beta=1.0, lr)", "gives `beta` the default 1.0; expected a number in [0, 1)"),
        ("(p, g, *, groups, lr)", "names something `groups`"),
        ("(p, g, lr, *, beta)", "takes `lr` as a state; hyperparameters stand behind the `*`"),
        ("(p, g, *, lr, beta)", "never reads its hyperparameter `beta`"),
        ("(p, g, *, maximize=False, lr)", "names something `maximize`"),
    ],
)
def test_a_signature_that_is_no_schema_is_refused(signature, reason):
    with pytest.raises(fo.RuleError, match=re.escape(reason)):
        fo.rule(f"def bad{signature}:\n    return p - lr * g")


def test_states_returned_in_the_wrong_order_are_refused():
    body = "    m, v = m + g, v + g * g\n    return p - lr * m / v, "
    with pytest.raises(fo.RuleError, match="returns its states as v, m; the order is p, m, v"):
        fo.rule("def swapped(p, g, m, v, *, lr):\n" + body + "v, m")
    fo.rule("def shifted(p, g, new, old, *, lr):\n    return p - lr * (new - old), g, new")  # a history is no swap


def test_numbers_of_numpy_around_a_rule_are_numbers():
    half = np.float32(0.5)

    @fo.rule
    def halved(p, g, *, lr):
        return p - lr * half * g

    p = np.ones(2)
    halved(p, lr=1.0).step(np.ones(2))
    assert (p == 0.5).all()


def test_the_parameters_alone_are_positional_and_names_of_other_libraries_are_known():
    with pytest.raises(TypeError, match=r"adamw\(\) takes the parameters alone by position; name the rest: lr=\.\.\."):
        fo.adamw(np.ones(2), 0.1)
    for given, meant in {"betas": "beta1", "learning_rate": "lr", "epsilon": "eps", "wd": "weight_decay"}.items():
        with pytest.raises(fo.ConfigError, match=f"Did you mean `{meant}`"):
            fo.adamw(np.ones(2), **{given: 0.1})
    with pytest.raises(fo.ConfigError, match="`lr` is cosine itself; call it"):
        fo.adamw(np.ones(2), lr=fo.schedules.cosine)


def test_signatures_can_be_inspected():
    import inspect

    assert list(inspect.signature(fo.sgd).parameters)[:3] == ["params", "lr", "momentum"]
    assert "formula" in inspect.signature(fo.Rule).parameters


def test_init_is_checked():
    text = "def rule_with_start(p, g, s, *, lr, s0=1.0):\n    return p - lr * s, s + s0 * g"
    with pytest.raises(fo.RuleError, match="gives a start for `z`"):
        fo.rule(text, init={"z": 0.0})
    with pytest.raises(fo.RuleError, match="starts `s` at 'nothing'"):
        fo.rule(text, init={"s": "nothing"})
    for init, expected in ({"s": 2.5}, 2.5), ({"s": "s0"}, 0.75), ({"s": "p"}, 3.0):
        opt = fo.rule(text, init=init)(np.full(3, 3.0), lr=0.1, s0=0.75)
        assert (opt.state["s"] == expected).all()


def test_a_rule_without_source_says_what_to_do():
    scope = {}
    exec("def ghost(p, g, *, lr):\n    return p - lr * g", scope)
    with pytest.raises(fo.RuleError, match=r"its source text is not available.*pass its text: fo\.rule"):
        fo.rule(scope["ghost"])
    with pytest.raises(fo.RuleError, match="a lambda has no body to read"):
        fo.rule(lambda p, g, *, lr: p - lr * g)
    with pytest.raises(fo.RuleError, match="takes a function written with `def`"):
        fo.rule(3)
    for text in "x = 1", "def (", "":
        with pytest.raises(fo.RuleError, match="must be one `def`"):
            fo.rule(text)


def test_a_rule_from_text_is_a_rule():
    made = fo.rule(
        """
        def sign_momentum(p, g, m, *, lr, beta=0.9):
            m = beta * m + (1 - beta) * g
            return p - lr * sign(m), m
        """
    )
    p = np.ones(4, np.float32)
    opt = made(p, lr=0.5)
    opt.step(np.array([1, -1, 0, 2], np.float32))
    assert p.tolist() == [0.5, 1.5, 1.0, 0.5]
    assert made.formula(1.0, 2.0, 0.0, lr=0.5) == (0.5, pytest.approx(0.2))


def test_a_rule_in_a_closure_takes_the_values_of_its_scope():
    factor = 3.0

    @fo.rule
    def scaled(p, g, *, lr):
        return p - lr * factor * g

    p = np.ones(2)
    scaled(p, lr=0.1).step(np.ones(2))
    assert p == pytest.approx(np.full(2, 0.7))
    assert scaled.hyper == {"lr": ...} and "scaled" in repr(scaled)


def test_a_required_hyperparameter_is_asked_for():
    rule = fo.rule("def plain(p, g, *, lr):\n    return p - lr * g")
    with pytest.raises(fo.ConfigError, match="`plain` needs a value for `lr`"):
        rule(np.ones(2))
    assert rule({"a": np.ones(2)}, groups=[fo.Group("a", lr=1.0)]).hyper("a")["lr"] == 1.0


def test_a_switch_without_effect_is_refused():
    with pytest.raises(fo.ConfigError, match=r"`nesterov=True` has no effect with momentum=0\.0"):
        fo.sgd(np.ones(2), nesterov=True)


@pytest.mark.parametrize("name", {**CATALOGUE, **READINGS})
def test_every_rule_of_the_catalogue_is_a_formula(name):
    rule = {**CATALOGUE, **READINGS}[name]
    check(rule)
    views.check(rule)


@pytest.mark.parametrize("name", CATALOGUE)
def test_source_reads_like_the_formula(name):
    text = fo.source(CATALOGUE[name])
    compile(text, name, "exec")
    rule = CATALOGUE[name]
    lowered = lower(rule, tuple((s, s == MATRIX or bool(rule.hyper.get(s))) for s in rule.switches))
    assert "prange" in text and (lowered.slots or "float64" not in text.replace("in float64", ""))
    # the expressions of columns are as long as the formula makes them
    assert max(len(line) for line in text.splitlines() if not line.startswith("#")) <= 140
    for buffer, value in (store for q in lowered.passes for store in q.stores if store[0] != "p"):
        assert f"{buffer}_at[i] = flush({value})" in text


def test_source_is_refused_for_what_is_not_there():
    with pytest.raises(fo.ConfigError, match="is not a switch of `adamw`; its switches are: amsgrad"):
        fo.source(fo.adamw, nesterov=True)
    with pytest.raises(fo.DeviceError, match="target is 'tpu'"):
        fo.source(fo.adamw, "tpu")
    with pytest.raises(fo.ConfigError, match="dtype int32"):
        fo.source(fo.adamw, dtype=np.int32)
    with pytest.raises(fo.ConfigError, match="expected a rule"):
        fo.source("adamw")
    assert "vmax_at" in fo.source(fo.adamw, amsgrad=True) and "vmax_at" not in fo.source(fo.adamw)
    assert "float64_at" in fo.source(fo.adamw, gradient=np.float64)
