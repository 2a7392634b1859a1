"""Loss scaling and gradients that are not finite: what a step does, skips, reports, and leaves alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo

RULES = {"one pass": fo.adamw, "looks first": fo.clip_norm(fo.adamw, 1.0), "writes first": fo.lamb}
SHAPES = {"a": (6, 5), "b": (7,), "c": ()}


def tree(rng, dtype=np.float32):
    return {n: np.asarray(rng.normal(size=s), dtype) for n, s in SHAPES.items()}


def bits(opt):
    saved = opt.state_dict()
    return {n: a.tobytes() for s in saved["state"].values() for n, a in s.items()}, saved["t"], saved["steps"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RULES)
def test_a_step_divides_by_the_scale(name, dtype):
    """By a power of 2 without any rounding: the same bits, schedules and maximize included."""
    rng = np.random.default_rng(0)
    p = tree(rng, dtype)
    q = {n: a.copy() for n, a in p.items()}
    hyper = dict(lr=lambda t: 0.1 / t, maximize=True)
    opt, twin = RULES[name](p, **hyper), RULES[name](q, **hyper)
    for scale in (1024.0, 1, 0.25, 2.0**20, 2.0**20, None):
        g = tree(rng, dtype)
        twin.step(g)
        opt.step({n: a * dtype(1 if scale is None else scale) for n, a in g.items()}, scale=scale)
    assert all(p[n].tobytes() == q[n].tobytes() for n in p) and bits(opt) == bits(twin)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", RULES)
def test_skip_leaves_every_bit(name, bad):
    rng = np.random.default_rng(1)
    p = tree(rng)
    opt = RULES[name](p, nonfinite="skip", lr=0.1)
    opt.step(tree(rng))
    before, parameters = bits(opt), {n: a.tobytes() for n, a in p.items()}
    for place in (("a", (5, 4)), ("b", 0), ("c", ())):
        g = tree(rng)
        g[place[0]][place[1]] = bad
        opt.step(g)
        assert opt.last.skipped and opt.last.nonfinite == place[0] and opt.last.norm is None
        assert bits(opt) == before and {n: a.tobytes() for n, a in p.items()} == parameters and not opt.torn
    opt.step(tree(rng))
    assert not opt.last.skipped and opt.last.nonfinite is None and opt.t == 2


def test_the_first_of_several_is_named_in_the_order_of_the_parameters():
    p = {"z": np.ones(3), "b": np.ones(3, np.float32), "a": np.ones(3)}
    opt = fo.adamw(p, nonfinite="raise")
    g = {n: np.full_like(a, np.nan) for n, a in p.items()}
    with pytest.raises(fo.NonFiniteError, match="step 1 of `adamw`: the gradient of `z` is not finite"):
        opt.step(g)
    g["z"] = None
    with pytest.raises(fo.NonFiniteError, match="`b`"):
        opt.step(g)
    assert opt.t == 0 and all((a == 1).all() for a in p.values())
    opt.step({n: np.ones_like(a) for n, a in p.items()})


def test_a_norm_that_overflows_is_no_gradient_that_is_not_finite():
    p = np.ones(3)
    opt = fo.clip_norm(fo.sgd, 1.0)(p, lr=0.1, nonfinite="raise")
    opt.step(np.full(3, 1e200))
    assert opt.t == 1 and opt.last.norm == np.inf


def test_zero_takes_the_elements_for_0():
    rng = np.random.default_rng(2)
    for rule in (fo.adamw, fo.clip_norm(fo.adamw, 0.5)):
        p, g = tree(rng), tree(rng)
        q, h = ({n: a.copy() for n, a in x.items()} for x in (p, g))
        g["a"][0, :2], h["a"][0, :2] = [np.nan, -np.inf], 0
        opt, twin = rule(p, nonfinite="zero"), rule(q)
        opt.step(g)
        twin.step(h)
        assert all(p[n].tobytes() == q[n].tobytes() for n in p)


def test_ignore_lets_it_spread():
    p = np.ones(4, np.float32)
    opt = fo.sgd(p, lr=0.1)
    opt.step(np.array([1, np.nan, 1, 1], np.float32))
    assert np.isnan(p[1]) and p[0] == np.float32(0.9) and opt.last == fo.Last()


def test_rows_are_looked_at_too():
    table = np.ones((5, 3), np.float32)
    opt = fo.sgd({"table": table}, lr=0.1, nonfinite="skip")
    opt.step({"table": fo.rows([1, 1], np.array([[1, 1, 1], [1, np.inf, 1]], np.float32))})
    assert opt.last.nonfinite == "table" and (table == 1).all()
    opt.step({"table": fo.rows([1, 1], 2 * np.ones((2, 3), np.float32))}, scale=2.0)
    np.testing.assert_allclose(table[1], 0.8)
    for reading in ("exact", "row"):
        opt = fo.adagrad({"table": table}, lr=0.1, sparse=reading)
        q = table.copy()
        twin = fo.adagrad({"table": q}, lr=0.1, sparse=reading)
        for k in (0, 3, 3):
            opt.step({"table": fo.rows([k], 8 * np.ones((1, 3), np.float32))}, scale=8.0)
            twin.step({"table": fo.rows([k], np.ones((1, 3), np.float32))})
        assert table.tobytes() == q.tobytes()


def test_the_norm_is_that_before_clipping():
    rng = np.random.default_rng(3)
    for rule in (fo.clip_norm(fo.adamw, 0.1), fo.clip_each_norm(fo.adamw, 0.1), fo.clip_norm(fo.ema(fo.lamb), 0.1)):
        p, g = tree(rng), tree(rng)
        opt = rule(p)
        assert opt.last == fo.Last()
        opt.step({n: 4 * a for n, a in g.items()}, scale=4.0)
        norms = {n: float(np.linalg.norm(a.astype(np.float64))) for n, a in g.items()}
        assert opt.last.norms == pytest.approx(norms, rel=1e-12)
        assert opt.last.norm == pytest.approx(np.sqrt(sum(n**2 for n in norms.values())), rel=1e-12)
    opt = fo.clip_norm(fo.centralize(fo.clip_value(fo.adamw, 0.1)), 0.1)(p)
    opt.step(g)
    assert opt.last.norm is not None  # the outermost sees the gradient as it is
    opt = fo.clip_value(fo.clip_norm(fo.adamw, 0.1), 0.1)(p)
    opt.step(g)
    assert opt.last.norm is None  # that norm is one of clipped elements


def test_a_norm_of_many_is_accurate():
    """1e-6 of float64, for 10^8 elements, whose naive float32 sum stops growing at 2^24."""
    n = 10**8
    g = np.random.default_rng(4).random(1 << 20, np.float32)
    g = np.resize(g, n)
    opt = fo.clip_norm(fo.sgd, 1.0)(np.zeros(n, np.float32), lr=0.1)
    opt.step(g)
    exact = np.sqrt(sum(float((part.astype(np.float64) ** 2).sum()) for part in np.array_split(g, 100)))
    assert opt.last.norm == pytest.approx(exact, rel=1e-12)


def test_no_second_look_where_the_rule_looks_first(monkeypatch):
    from fastopt import finite

    looks = []
    first = finite.first
    monkeypatch.setattr(finite, "first", lambda *a: looks.append(1) or first(*a))
    g = np.ones(5, np.float32)
    for rule, expected in ((fo.clip_norm(fo.adamw, 1.0), 0), (fo.adamw, 1)):
        looks.clear()
        rule(np.ones(5, np.float32), nonfinite="skip").step(g)
        assert len(looks) == expected


# ---------------------------------------------------------------- LossScale
def test_loss_scale_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    ours = fo.LossScale(4.0, growth=2.0, backoff=0.5, interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=4.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3)
    p, t = np.ones(6, np.float32), torch.ones(6)
    opt, twin = fo.adamw(p, lr=0.1), torch.optim.AdamW([t], lr=0.1)
    for k in range(30):
        g = rng.normal(size=6).astype(np.float32)
        if k % 7 == 4:
            g[2] = np.inf
        t.grad = torch.tensor(g) * theirs.scale(torch.ones(()))
        opt.step(g * np.float32(ours.value), scale=ours)
        theirs.step(twin)
        theirs.update()
        assert ours.value == theirs.get_scale() and opt.last.skipped == (k % 7 == 4)
        np.testing.assert_allclose(p, t.numpy(), rtol=2e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_loss_scale_stays_in_range_and_resumes(found):
    scale, twin = fo.LossScale(2.0**120, interval=2), fo.LossScale()
    for bad in found:
        scale.update(bad)
        assert 2.0**-126 <= scale.value <= 2.0**126
    twin.load_state_dict(scale.state_dict())
    assert twin.state_dict() == scale.state_dict()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fo.adamw(np.ones(3), nonfinite="drop"), fo.ConfigError, "nonfinite is 'drop'; expected one of 'ign"),
        (lambda: fo.adamw(np.ones(3)).step(np.ones(3), scale=0), fo.ConfigError, "`scale` is 0; expected a finite num"),
        (lambda: fo.adamw(np.ones(3)).step(np.ones(3), scale=np.inf), fo.ConfigError, "`scale` is inf"),
        (lambda: fo.adamw(np.ones(3)).step(np.ones(3), scale="2"), fo.ConfigError, "or a fastopt.LossScale"),
        (lambda: fo.LossScale(0), fo.ConfigError, "LossScale: `initial` is 0"),
        (lambda: fo.LossScale(growth=1), fo.ConfigError, "`growth` is 1"),
        (lambda: fo.LossScale(backoff=1.5), fo.ConfigError, "`backoff` is 1.5"),
        (lambda: fo.LossScale(interval=2.5), fo.ConfigError, "`interval` is 2.5"),
        (lambda: fo.LossScale().load_state_dict({"value": -1.0, "good": 0}), fo.CheckpointError, "no state of one"),
        (lambda: fo.LossScale().load_state_dict([1]), fo.CheckpointError, "expected what state_dict"),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# ---------------------------------------------------------------- invariants
sizes = st.floats(1e-3, 1e3)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 2**32 - 1))
def test_rules_of_normalised_gradients_do_not_see_their_scale(scale, seed):
    g = np.random.default_rng(seed).normal(size=8)
    p, q = np.ones(8), np.ones(8)
    fo.normalize(fo.sgd, eps=0.0)(p, lr=0.1).step(g)
    fo.normalize(fo.sgd, eps=0.0)(q, lr=0.1).step(g * scale)
    np.testing.assert_allclose(p, q, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_clipping_never_makes_a_norm_larger(most, scale, seed):
    g = np.random.default_rng(seed).normal(size=8) * scale
    p = np.zeros(8)
    fo.clip_norm(fo.sgd, most)(p, lr=1.0).step(g)
    assert np.linalg.norm(p) <= min(most, np.linalg.norm(g)) * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(1, 7))
def test_the_average_of_a_constant_is_the_constant(value, steps):
    for rule in (fo.ema(fo.sgd, 0.9), fo.swa(fo.sgd), fo.polyak_average(fo.sgd)):
        p = np.full(3, value)
        opt = rule(p, lr=0.1)
        for _ in range(steps):
            opt.step(np.zeros(3))
        with opt.averaged():
            np.testing.assert_allclose(p, value, rtol=1e-14, atol=1e-300)  # state is never subnormal
