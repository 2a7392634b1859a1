"""SAM and ASAM: parameters moved uphill and put back, bit for bit, around a step of any rule."""

import numpy as np
import pytest

import fastopt as fo

SHAPES = {"a": (6, 5), "b": (7,)}


def tree(rng, dtype=np.float64):
    return {n: rng.normal(size=s).astype(dtype) for n, s in SHAPES.items()}


def uphill(p, g, rho, adaptive):
    """Foret et al. 2020, equation 2; Kwon et al. 2021, with T of |w| + eta."""
    t = {n: np.abs(a) + 0.01 if adaptive else np.ones_like(a) for n, a in p.items()}
    norm = np.sqrt(sum(((t[n] * g[n]) ** 2).sum() for n in p))
    return {n: p[n] + rho * t[n] ** 2 * g[n] / norm for n in p}


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_of_sam_are_those_by_hand(adaptive):
    rng = np.random.default_rng(0)
    p = tree(rng)
    q = {n: a.copy() for n, a in p.items()}
    center = tree(rng)

    def gradient(x):
        return {n: np.sin(x[n] - center[n]) * (1 + center[n] ** 2) for n in x}

    opt, twin = fo.adamw(p, lr=0.05), fo.adamw(q, lr=0.05)
    for rho in (0.3, 0.3, 0.1):
        opt.perturb(gradient(p), rho=rho, adaptive=adaptive)
        there = uphill(q, gradient(q), rho, adaptive)
        for n in p:
            np.testing.assert_allclose(p[n], there[n], rtol=1e-12, atol=1e-14)
        opt.step(gradient(p))
        twin.step(gradient(there))
        for n in p:
            np.testing.assert_allclose(p[n], q[n], rtol=1e-9, atol=1e-12)


def test_put_back_bit_for_bit():
    rng = np.random.default_rng(1)
    p = tree(rng, np.float32)
    before = {n: a.tobytes() for n, a in p.items()}
    opt = fo.clip_norm(fo.lamb, 1.0)(p, groups=[fo.Group("b", frozen=True)])
    opt.unperturb()
    opt.perturb(tree(rng, np.float32), rho=2.0)
    assert p["a"].tobytes() != before["a"] and p["b"].tobytes() == before["b"]
    opt.unperturb()
    assert {n: a.tobytes() for n, a in p.items()} == before and opt.t == 0
    opt.perturb({"a": None, "b": None})
    opt.step(tree(rng, np.float32))
    assert opt.t == 1


def test_an_interrupt_behind_the_kernel_is_known(monkeypatch):
    """Perturbed, and so it can be put back; added, and so it counts."""
    from fastopt.gradients import Gradients

    p = np.ones(5)
    opt = fo.sgd(p, lr=0.1)
    opt.perturb(np.ones(5))
    opt.unperturb()
    opt.accumulate(np.ones(5))
    release = Gradients.release

    def interrupted(self, zero=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(Gradients, "release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.accumulate(np.full(5, 3.0))
    with pytest.raises(KeyboardInterrupt):
        opt.perturb(np.ones(5))
    monkeypatch.setattr(Gradients, "release", release)
    assert (p > 1).all() and opt.accumulated == 2 and not opt.torn
    opt.unperturb()
    assert (p == 1).all()
    opt.step()
    np.testing.assert_allclose(p, 0.8)


def test_a_skipped_step_puts_back_too():
    p = np.ones(5)
    opt = fo.sgd(p, lr=0.1, nonfinite="skip")
    opt.perturb(np.ones(5))
    opt.step(np.full(5, np.nan))
    assert (p == 1).all() and opt.last.skipped


def test_accumulated_gradients_at_the_perturbed_point():
    p, q = np.ones(5), np.ones(5)
    opt, twin = fo.adamw(p, lr=0.1), fo.adamw(q, lr=0.1)
    opt.perturb(np.ones(5))
    opt.accumulate(np.full(5, 1.0))
    opt.accumulate(np.full(5, 3.0))
    opt.step()
    twin.step(np.full(5, 2.0))
    assert p.tobytes() == q.tobytes()


def test_what_is_refused_meanwhile():
    p = np.ones(5)
    opt = fo.adamw(p)
    for wrong in ({"rho": -1}, {"rho": np.nan}, {"adaptive": 2}):
        with pytest.raises(fo.ConfigError, match=next(iter(wrong))):
            opt.perturb(np.ones(5), **wrong)
    with pytest.raises(fo.GradientError, match="shape"):
        opt.perturb(np.ones(4))
    assert (p == 1).all()
    opt.step(np.ones(5))
    saved = opt.state_dict()
    opt.perturb(np.ones(5))
    for call in (
        lambda: opt.perturb(np.ones(5)),
        lambda: opt.state_dict(),
        lambda: opt.load_state_dict(saved),
        lambda: opt.eval(),
        lambda: opt.save("/nowhere"),
        lambda: opt.load("/nowhere"),
    ):
        with pytest.raises(fo.ConfigError, match="perturbed"):
            call()
    assert not opt.torn
    with pytest.raises(fo.GradientError):  # a step that fails leaves the parameters where they are
        opt.step(np.ones(3))
    opt.step(np.ones(5))
    assert opt.t == 2


def test_minimize_leaves_a_narrow_minimum():
    """A narrow well in the slope of a wide one, and the start in it: what counts is the worst loss within rho."""

    def loss(p):
        x = p[0]
        value = 0.02 * (x - 2) ** 2 - 0.25 * np.exp(-((x / 0.1) ** 2))
        slope = 0.04 * (x - 2) + 0.25 * 2 * x / 0.01 * np.exp(-((x / 0.1) ** 2))
        return value, np.array([slope])

    ends = []
    for sam in (None, 0.3):
        p = np.array([-0.02])
        result = fo.minimize(loss, p, rule=fo.sgd, steps=3000, lr=0.01, sam=sam)
        ends.append(p[0])
        assert result.loss == pytest.approx(loss(p)[0])
    plain, flat = (max(loss([end + d])[0] for d in np.linspace(-0.3, 0.3, 61)) for end in ends)
    assert abs(ends[0]) < 0.01 and ends[1] > 0.25 and flat < 0.75 * plain


@pytest.mark.parametrize("sam", [0, -1, True, "x", np.inf])
def test_minimize_refuses_other_sams(sam):
    with pytest.raises(fo.ConfigError, match="`sam` is"):
        fo.minimize(lambda p: (0.0, p), np.ones(2), rule=fo.sgd, steps=1, lr=0.1, sam=sam)
    with pytest.raises(fo.ConfigError, match="`sam` is not for lbfgs"):
        fo.minimize(lambda p: (0.0, p), np.ones(2), rule=fo.lbfgs(), steps=1, sam=0.1)
