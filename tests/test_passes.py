"""Formulas with totals: the compiler's passes against the same formula on float64 arrays, which NumPy sums."""

import numpy as np
import pytest

import fastopt as fo
from fastopt import scratch
from fastopt.lower import lower
from fastopt.math import maximum, mean, norm, rms, sign, size, sqrt, total, where

SHAPES = [(1, 1), (3, 5), (1, 300), (300, 1), (257, 131), (70, 1000)]


@fo.rule
def trust(p, g, m, v, *, lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1, t):
    """Two totals of one pass decide about the next."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p
    a, b = norm(p), norm(u)
    return p - lr * where(a > 0 and b > 0, a / b, 1.0) * u, m, v


@fo.rule
def chained(p, g, m, n, *, lr=1e-2, beta=0.9):
    """A total of what depends on a total, and a state that is one number."""
    m = beta * m + g / (norm(g) + 1e-8)
    n = beta * n + (1 - beta) * mean(m * m)
    u = m - mean(m)
    return p - lr * u / (sqrt(n) + rms(u) / sqrt(size(p)) + 1e-8), m, n


@fo.rule
def factored(p, g, r, c, *, lr=1e-2, beta=0.9, eps=1e-6):
    """Second moments as a number per row and one per column (Shazeer & Stern 2018, without the relative step)."""
    r = beta * r + (1 - beta) * mean(g * g, "row")
    c = beta * c + (1 - beta) * mean(g * g, "column")
    u = g / maximum(sqrt(r * c / mean(r)), eps)
    return p - lr * u / maximum(1.0, rms(u)), r, c


@fo.rule
def old_and_new(p, g, m, *, lr=1e-2, beta=0.9):
    """Totals of names that change afterwards, in the same pass."""
    a, b, c = total(m * g), norm(m), total(g, "all")
    g = g + 0.1 * p
    m = beta * m + (1 - beta) * g
    return p - lr * (m + (a + c) * g / (b + norm(m) + 1)), m


@fo.rule
def by_rows(p, g, n, *, lr=1e-2, beta=0.9):
    """A norm per row, kept and used in the next pass; columns count, too."""
    n = beta * n + (1 - beta) * norm(g, "row")
    w = total(g * sign(p), "column")
    return p - lr * (g / (n + 1e-3) + w / (total(w * w) + 1.0)), n


@fo.rule
def everywhere(p, g, *, lr=1e-2):
    return p - lr * g / (norm(g, "all") + 1e-8)


@fo.rule
def counted(p, g, product, *, lr=1e-2, beta=0.9):
    """A state that no element and no total takes part in."""
    product = product * beta
    return p - lr * g * (1 - product), product


counted_from_one = fo.rule(init={"product": 1.0})(counted.formula)


def reference(rule, p, gradients, state, **hyper):
    """The formula itself on float64 arrays."""
    known = {**{n: h.default for n, h in rule.schema.items()}, **hyper}
    p, state = p.astype(np.float64), list(state)
    for t, g in enumerate(gradients, 1):
        p, *state = _tuple(rule.formula(p, g.astype(np.float64), *state, **known, **({"t": t} if rule.timed else {})))
    return p, state


def _tuple(values):
    return values if isinstance(values, tuple) else (values,)


def drawn(shape, dtype, steps=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(dtype), [rng.normal(size=shape).astype(dtype) for _ in range(steps)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "rule", [trust, chained, factored, by_rows, old_and_new, everywhere, counted_from_one], ids=lambda r: r.name
)
def test_passes_equal_the_formula_on_arrays(rule, dtype):
    eps = np.finfo(dtype).eps
    for shape in SHAPES:
        p, gradients = drawn(shape, dtype)
        starts = [rule.init.get(s, 0.0) for s in rule.state]
        want, states = reference(rule, p, gradients, starts)
        opt = rule(p)
        for g in gradients:
            opt.step(g)
        np.testing.assert_allclose(p, want, rtol=64 * eps, atol=64 * eps, err_msg=str(shape))
        for name, state in zip(rule.state, states, strict=True):
            got = opt.state[name]
            np.testing.assert_allclose(got, np.broadcast_to(state, got.shape), rtol=64 * eps, atol=64 * eps)


def test_numbers_are_states_of_their_own_shape_in_float64():
    p = {"w": np.ones((3, 5), np.float32), "v": np.ones((2, 4), np.float32)}
    opt = factored(p)
    opt.step({"w": np.ones((3, 5), np.float32), "v": np.ones((2, 4), np.float32)})
    shapes = {n: {k: (a.shape, a.dtype) for k, a in opt.state[n].items()} for n in ("r", "c")}
    wide = np.dtype(np.float64)
    assert shapes == {
        "r": {"w": ((3, 1), wide), "v": ((2, 1), wide)},
        "c": {"w": ((1, 5), wide), "v": ((1, 4), wide)},
    }
    assert chained(np.ones(7, np.float32)).state["n"].shape == ()


def test_a_total_over_all_crosses_parameters_dtypes_and_groups():
    p = {"a": np.ones(5, np.float32), "b": np.ones((2, 3)), "c": np.ones(4, np.float32)}
    g = {n: np.full(a.shape, k + 1.0, a.dtype) for k, (n, a) in enumerate(p.items())}
    opt = everywhere(p, lr=1.0, groups=[fo.Group("c", lr=2.0)])
    opt.step(g)
    whole = np.sqrt(sum(float((x.astype(float) ** 2).sum()) for x in g.values()))
    for k, n in enumerate(p):
        rate = 2.0 if n == "c" else 1.0
        np.testing.assert_allclose(p[n], 1 - rate * (k + 1) / whole, rtol=1e-6)


def test_a_total_over_all_is_over_the_parameters_of_its_own_rule():
    """Another rule's totals are other sums, though they may stand in the same column."""
    p = {"a": np.ones(4, np.float32), "b": np.full(9, 3, np.float32)}
    everywhere(p, lr=1.0, groups=[fo.Group("b", rule=trust)]).step({n: np.ones_like(a) for n, a in p.items()})
    np.testing.assert_allclose(p["a"], 1 - 1 / 2, rtol=1e-6)


@pytest.mark.parametrize("rule", [trust, chained, factored, by_rows, everywhere], ids=lambda r: r.name)
def test_totals_have_the_same_bits_for_any_thread_count(rule):
    shape = (2000, 1100)  # above the size from which steps use threads
    p, gradients = drawn(shape, "float32", steps=2)
    results = []
    try:
        for n in (1, 2):
            fo.set_num_threads(n)
            q = p.copy()
            opt = rule(q)
            for g in gradients:
                opt.step(g)
            results.append((q, opt.state_dict()["state"]))
    finally:
        fo.set_num_threads(None)
    (a, s), (b, r) = results
    np.testing.assert_array_equal(a, b)
    for name in s:
        for k in s[name]:
            np.testing.assert_array_equal(s[name][k], r[name][k])


@pytest.mark.parametrize("rule", [chained, factored], ids=lambda r: r.name)
def test_numbers_are_saved_and_loaded(rule):
    p, gradients = drawn((5, 9), "float32", steps=4)
    q = p.copy()
    opt = rule(p)
    for g in gradients[:2]:
        opt.step(g)
    q[...] = p
    twin = rule(q)
    twin.load_state_dict(opt.state_dict())
    for g in gradients[2:]:
        opt.step(g)
        twin.step(g)
    np.testing.assert_array_equal(p, q)


def test_rows_of_something_that_is_no_matrix_are_refused_with_the_remedy():
    with pytest.raises(fo.ConfigError, match=r"`b` of shape \(3,\) is no matrix.*Group\('b', rule="):
        factored({"w": np.ones((2, 2)), "b": np.ones(3)})


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_matrices_have_totals_of_zero(shape):
    p = np.ones(shape, np.float32)
    with np.errstate(all="ignore"):
        for rule in (trust, factored, by_rows):
            rule(p).step(np.ones(shape, np.float32))


def test_the_one_chunk_of_an_empty_matrix_has_its_part_of_the_sums_of_columns():
    lowered = lower(factored, ())
    (mine,) = scratch.buffers(lowered, [np.ones((0, 3), np.float32)])
    (part,) = [a for n, a in mine.items() if n.startswith("partial")]
    assert part.size == 3, "the kernel clears it"


@pytest.mark.parametrize(
    "body, reason",
    [
        (
            "return p - lr * g / norm(g, 'rows')",
            "sums over `'rows'`; expected one of 'parameter', 'group', 'all', 'row', 'column'",
        ),
        ("return p - lr * g / norm(lr)", "what is the same number for every element"),
        ("return p - lr * g / mean(g, 'all')", "write total"),
        ("return p - lr * g / size(lr)", r"expected size\(p\)"),
        ("return p - lr * g / norm(g, lr)", "sums over `lr`"),
    ],
)
def test_what_is_no_total_is_refused(body, reason):
    with pytest.raises(fo.RuleError, match=reason):
        fo.rule(f"def bad(p, g, *, lr):\n    {body}\n")
