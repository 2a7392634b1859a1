"""Functions of whole matrices: in formulas, and the library of them that the rules use."""

import math
import tracemalloc

import numpy as np
import pytest

import fastopt as fo
from fastopt import linalg
from fastopt.math import maximum, norm, size
from fastopt.matrices import Work, matrix_function

QUINTIC = linalg.QUINTIC
SHAPES = [(1, 1), (6, 5), (1, 7), (7, 1), (40, 40), (64, 300), (300, 64)]


# ---- in formulas -----------------------------------------------------------------------------------------------------


@matrix_function(states=("rows", "columns"), updates=True, work=True)
def both(x, L, R, beta, shift, *, work):
    """Averages of x x^T and x^T x, then L x R."""
    L *= beta
    L += (1 - beta) * (x @ x.T)
    R = beta * R + (1 - beta) * (x.T @ x)  # a new array: the caller copies it
    half = work("half", x, x.shape)
    np.matmul(L, x, out=half)
    return half @ R + shift, L, R


@matrix_function(states=("rows",), result=False)
def seen(x, L):
    return ()


@matrix_function()
def turned(x, a):
    return x[::-1, ::-1] * a


@fo.rule(init={"L": 1.0, "R": "start"})
def two_sided(p, g, m, L, R, *, lr=1e-2, beta: fo.Fraction = 0.5, start=0.5, every=2, t):
    """A call between two passes, then a total of its result, then another call, on what that total scales."""
    m = beta * m + g
    u, L, R = both(m, L, R, beta, -0.25)
    u = turned(u / (norm(u) + 1e-3), 2 if t % every == 0 else 1)
    return p - lr * u * maximum(1, size(p, "column") / size(p, "row")), m, L, R


def drawn(shape, dtype="float32", steps=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(dtype), [rng.normal(size=shape).astype(dtype) for _ in range(steps)]


def by_hand(p, gradients, lr=1e-2, beta=0.5):
    """`two_sided` written out in float64."""
    rows, columns = p.shape
    p, m, L, R = p.astype(float), np.zeros(p.shape), np.eye(rows), 0.5 * np.eye(columns)
    for t, g in enumerate(gradients, 1):
        m = beta * m + g
        L, R = beta * L + (1 - beta) * m @ m.T, beta * R + (1 - beta) * m.T @ m
        u = L @ m @ R - 0.25
        u = (u / (np.linalg.norm(u) + 1e-3))[::-1, ::-1] * (2 if t % 2 == 0 else 1)
        p = p - lr * max(1, rows / columns) * u
    return p, {"m": m, "L": L, "R": R}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calls_between_passes_equal_the_formula_by_hand(dtype):
    eps = np.finfo(dtype).eps
    for shape in [(1, 1), (3, 5), (5, 3), (40, 70), (300, 2)]:
        p, gradients = drawn(shape, dtype)
        want, states = by_hand(p, gradients)
        opt = two_sided(p)
        for g in gradients:
            opt.step(g)
        # sums of up to 300 products, three of them one after the other, and a factor rows / columns of up to 150
        np.testing.assert_allclose(p, want, rtol=0, atol=500 * eps, err_msg=str(shape))
        for name, state in states.items():
            got = opt.state[name]
            assert got.dtype == dtype and got.shape == state.shape
            np.testing.assert_allclose(got, state, rtol=0, atol=500 * eps * np.abs(state).max())


def test_the_formula_called_with_arrays_is_the_step_and_changes_nothing():
    p, (g,) = drawn((4, 3), "float64", 1)
    state = [np.zeros((4, 3)), np.eye(4), 0.5 * np.eye(3)]
    kept = [a.copy() for a in (p, g, *state)]
    new, *after = two_sided.formula(p, g, *state, t=1)
    for a, b in zip((p, g, *state), kept, strict=True):
        np.testing.assert_array_equal(a, b)
    want, states = by_hand(p, [g])
    np.testing.assert_allclose(new, want, rtol=1e-13)
    np.testing.assert_allclose(after[1], states["L"], rtol=1e-13)


def test_several_parameters_share_a_launch_and_each_has_its_own_matrices():
    shapes = {"a": (3, 5), "b": (5, 3), "c": (40, 2)}
    tree = {n: drawn(s, seed=k)[0] for k, (n, s) in enumerate(shapes.items())}
    grads = [{n: drawn(s, seed=[k, t])[0] for k, (n, s) in enumerate(shapes.items())} for t in range(3)]
    alone = {n: p.copy() for n, p in tree.items()}
    opt = two_sided(tree, groups=[fo.Group("b", lr=0.1)])
    singles = {n: two_sided(p, lr=0.1 if n == "b" else 0.01) for n, p in alone.items()}
    for g in grads:
        opt.step(g)
        for n in shapes:
            singles[n].step(g[n])
    for n in shapes:
        assert tree[n].tobytes() == alone[n].tobytes(), n


def test_square_states_are_saved_loaded_and_count_their_own_steps():
    (p, gradients), (q, _) = drawn((5, 9), steps=4), drawn((5, 9))
    opt = two_sided(p)
    for g in gradients[:2]:
        opt.step(g)
    q[...] = p
    twin = two_sided(q)
    twin.load_state_dict(opt.state_dict())
    for g in gradients[2:]:
        opt.step(g)
        twin.step(g)
    assert p.tobytes() == q.tobytes()
    tree = {"a": drawn((5, 9))[0], "b": drawn((5, 9))[0]}  # `b` misses the first step: its t is one behind
    opt = two_sided(tree)
    for k, g in enumerate(gradients):
        opt.step({"a": g, "b": g if k else None})
    np.testing.assert_allclose(tree["b"], by_hand(drawn((5, 9))[0], gradients[1:])[0], rtol=0, atol=1e-4)


def test_no_new_arrays_of_matrix_size_in_later_steps():
    p, (g,) = drawn((512, 512), steps=1)
    opt = fo.muon(p)
    opt.step(g)
    tracemalloc.start()
    try:
        opt.step(g)
        assert tracemalloc.get_traced_memory()[1] < p.nbytes / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_matrices_are_no_trouble(shape):
    for rule in (fo.muon, fo.shampoo, fo.soap):
        opt = rule(np.ones(shape, np.float32))
        for _ in range(3):
            opt.step(np.ones(shape, np.float32))


@pytest.mark.parametrize("rule", [fo.muon, fo.shampoo, fo.soap], ids=lambda r: r.name)
def test_what_is_no_matrix_is_refused_with_the_remedy_and_the_remedy_works(rule):
    params = {"w": np.ones((3, 2)), "b": np.ones(3), "k": np.ones((2, 2, 2))}
    with pytest.raises(fo.ConfigError, match=r"`b` of shape \(3,\) is no matrix, as `.*groups=\[fastopt.Group\('b', "):
        rule(params)
    opt = rule(params, groups=[fo.Group("[bk]", rule=fo.adamw, lr=0.5)])
    for _ in range(2):
        opt.step({n: np.ones(p.shape) for n, p in params.items()})
    assert opt.state["m"]["b"].shape == (3,) and np.all(params["b"] < 0.5)


def test_the_number_of_rows_is_asked_of_matrices_alone():
    @fo.rule
    def long(p, g, *, lr=1.0):
        return p - lr * g * size(p, "column")

    p = np.ones((3, 2))
    long(p).step(np.ones((3, 2)))
    assert np.all(p == -2)
    assert long.formula(np.ones((3, 2)), np.ones((3, 2)), lr=1.0)[0, 0] == -2
    with pytest.raises(fo.ConfigError, match="is no matrix, as `long` needs"):
        long(np.ones(3))


@pytest.mark.parametrize("rule", [fo.muon, fo.shampoo, fo.soap], ids=lambda r: r.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e30])
def test_a_bad_number_spoils_its_own_parameter_and_raises_nothing(rule, bad):
    params = {n: drawn((5, 4))[0] for n in "ab"}
    clean = {n: x.copy() for n, x in params.items()}
    opt, other = rule(params), rule(clean)
    for t in range(4):
        g = {n: drawn((5, 4), seed=t)[0] for n in "ab"}
        other.step(g)
        if t == 1:
            g["a"] = g["a"].copy()
            g["a"][2, 1] = bad
        opt.step(g)
    assert params["b"].tobytes() == clean["b"].tobytes() and np.isfinite(clean["b"]).all()
    if not math.isfinite(bad):
        assert not np.isfinite(params["a"]).any()


def test_a_huge_or_tiny_gradient_is_as_good_as_any_to_muon():
    """Its squares leave the range of float32, its direction does not."""
    ends = []
    for factor in 1.0, 2.0**100, 2.0**-100:
        p, (g,) = drawn((6, 4), steps=1)
        fo.muon(p, eps=0.0, lr=0.1).step(g * np.float32(factor))
        ends.append(p)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-6)


@pytest.mark.parametrize(
    "body, reason",
    [
        ("return p - lr * turned(lr, 1), m", "gives `turned` `lr`, which is no matrix"),
        ("return p - lr * turned(g, g), m", "a number that is not made of hyperparameters alone"),
        ("return p - lr * turned(g, a=1), m", r"expected turned\(matrix, numbers...\)"),
        ("return p - both(g, m, lr), m", r"expected both\(matrix, rows x rows state, columns x columns"),
        ("seen(g, m)\n    return p - lr * g, m", "an expression whose value is not used"),
        ("u, m = turned(g, 1)\n    return p - lr * u, m", r"assigns `turned\(g, 1\)` to `\(u, m\)`; expected a name"),
        ("m = m + g % 2\n    return p - lr * m, m", r"uses the operator in `g % 2`"),
        ("m = m + g\n    return p - lr * m / size(p, 'all'), m", r"expected size\(p\), of a parameter"),
        ("m = m + g\n    return p - lr * m / size(p, 'side'), m", "expected one of 'parameter', 'group', 'all', 'row'"),
    ],
)
def test_what_is_no_call_is_refused(body, reason):
    scope = {"turned": turned, "both": both, "seen": seen, "size": size}
    text = f"def bad(p, g, m, *, lr):\n    {body}\n"
    import linecache

    file = f"<test {len(body)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    exec(compile(text, file, "exec"), scope)
    with pytest.raises(fo.RuleError, match=reason):
        fo.rule(scope["bad"])


# ---- the library -----------------------------------------------------------------------------------------------------


def textbook(x, steps=5, coefficients=QUINTIC, eps=1e-7):
    a, b, c = coefficients
    x = x.astype(np.float64)
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def spectra(shape):
    """name -> a matrix with the usual singular values, with some of every size, and with one."""
    x = np.random.default_rng(0).standard_normal(shape)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    return {"normal": x, "graded": u * np.logspace(0, -7, len(s)) @ v, "rank one": np.outer(u[:, 0], v[0])}


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 7])
def test_newton_schulz_is_the_textbooks(steps):
    for shape in SHAPES:
        for name, x in spectra(shape).items():
            for dtype in "float32", "float64":
                given = x.astype(dtype)
                got = linalg.newton_schulz(given, steps)
                # each step multiplies what was rounded off the smallest singular values by a = 3.4
                bound = 3.5 ** (steps + 2) * np.finfo(dtype).eps
                error = np.linalg.norm(got - textbook(given, steps), 2)
                assert got.dtype == dtype and error < bound, (shape, name, dtype, error, bound)


@pytest.mark.parametrize("shape", [(530, 520), (1050, 520)])
def test_newton_schulz_in_blocks_is_the_textbooks(shape):
    x = drawn(shape)[0]
    error = np.linalg.norm(linalg.newton_schulz(x) - textbook(x))  # of about 500 singular values, each as above
    assert error < 500**0.5 * 3.5**5 * np.finfo(np.float32).eps


def test_newton_schulz_flattens_singular_values():
    s = np.linalg.svd(linalg.newton_schulz(drawn((30, 50))[0]), compute_uv=False)
    assert 0.6 < s.min() and s.max() < 1.3


def test_newton_schulz_may_write_over_its_operand_and_reuses_its_work():
    work = Work()
    for shape in [(600, 100), (100, 600), (90, 80), (600, 100)]:
        x = drawn(shape)[0]
        want = linalg.newton_schulz(x.copy())
        assert linalg.newton_schulz(x, out=x, work=work) is x
        np.testing.assert_array_equal(x, want)


def test_newton_schulz_of_zero_is_zero_and_of_nan_is_nan():
    assert not linalg.newton_schulz(np.zeros((4, 3), np.float32)).any()
    with np.errstate(all="ignore"):
        for bad in np.nan, np.inf:
            x = np.ones((4, 3), np.float32)
            x[1, 1] = bad
            assert np.isnan(linalg.newton_schulz(x)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_root_is_one(dtype):
    x = np.random.default_rng(0).standard_normal((30, 50))
    a = (x @ x.T).astype(dtype)
    for power in 1, 2, 4:
        r = linalg.inverse_root(a, power).astype(np.float64)
        # its condition, about 200, times the rounding of a and of the root
        np.testing.assert_allclose(np.linalg.matrix_power(r, power) @ a, np.eye(30), atol=5e3 * np.finfo(dtype).eps)
    flat = linalg.inverse_root(np.diag([4.0, 0.0, -1e-9]), 2, 0.25)  # below eps, as rounding makes them
    np.testing.assert_allclose(flat, np.diag([0.5, 2, 2]), atol=1e-15)
    assert np.isnan(linalg.inverse_root(np.full((2, 2), np.inf), 2)).all()


def test_eigenbasis_is_sorted_and_does_not_depend_on_rounding_errors():
    x = np.random.default_rng(0).standard_normal((8, 3))
    a = x @ x.T  # five eigenvalues are 0
    q = linalg.eigenbasis(a)
    np.testing.assert_allclose(q.T @ q, np.eye(8), atol=1e-14)
    values = np.diag(q.T @ a @ q)
    np.testing.assert_allclose(q.T @ a @ q, np.diag(values), atol=1e-13)
    assert np.all(np.diff(values) < 1e-13)
    noise = np.random.default_rng(1).standard_normal((8, 8)) * 1e-16
    again = linalg.eigenbasis(a + noise + noise.T)
    np.testing.assert_allclose(np.abs(q.T @ again), np.eye(8), atol=1e-12)
    single = linalg.eigenbasis(a.astype(np.float32))
    np.testing.assert_allclose(np.abs(q.T @ single), np.eye(8), atol=1e-5)
    assert np.isnan(linalg.eigenbasis(np.full((2, 2), np.nan))).all()


def test_orthogonal_iteration_finds_the_eigenbasis():
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    a = q @ np.diag(4.0 ** -np.arange(6)) @ q.T
    found, work = np.eye(6), Work()
    for _ in range(40):
        linalg.power_iteration_qr(a, found, out=found, work=work)
    np.testing.assert_allclose(np.abs(q.T @ found), np.eye(6), atol=1e-12)  # (1/4)**40 and rounding
    assert np.isnan(linalg.power_iteration_qr(np.full((2, 2), np.nan), np.eye(2))).all()


def test_other_kinds_of_arrays_bring_their_own_functions():
    import torch

    x, y = drawn((40, 30), "float64")[0], drawn((30, 30), "float64")[0]
    a, q = y @ y.T, linalg.eigenbasis(y @ y.T)
    t, ta, tq = torch.tensor(x), torch.tensor(a), torch.tensor(q)
    pairs = [
        (linalg.newton_schulz(t, work=Work()), linalg.newton_schulz(x)),
        (linalg.inverse_root(ta, 4, 1e-9), linalg.inverse_root(a, 4, 1e-9)),
        (abs(linalg.eigenbasis(ta)), abs(q)),
        (linalg.power_iteration_qr(ta, tq), linalg.power_iteration_qr(a, q)),
        (linalg.between(torch.eye(40, dtype=t.dtype), t, ta), x @ a),
    ]
    for got, want in pairs:
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(got.numpy(), want, atol=1e-9)


# ---- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}])
def test_muon_is_torchs(options, monkeypatch):
    """Within bfloat16 as it is; to the last digits once torch is kept from rounding to bfloat16."""
    import torch

    ours = {"match_rms_adamw": True} if "adjust_lr_fn" in options else options
    for exact in (False, True):
        if exact:
            monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
        for shape in [(20, 12), (12, 20), (64, 8)]:
            p, gradients = drawn(shape, "float64", 5)
            start, theirs = p.copy(), torch.tensor(p.copy(), requires_grad=True)
            opt, twin = fo.muon(p, lr=0.1, **ours), torch.optim.Muon([theirs], lr=0.1, **options)
            for g in gradients:
                opt.step(g)
                theirs.grad = torch.tensor(g)
                twin.step()
            error = np.linalg.norm(p - theirs.detach().numpy()) / np.linalg.norm(p - start)
            # bfloat16 has 8 bits, a rounding is 2**-9, and five steps of three products stretch it by about ten
            assert error < (1e-12 if exact else 0.03), (shape, exact, error)
            assert exact or error > 1e-5


def test_muon_defaults_are_torchs():
    import inspect

    import torch

    theirs = {k: v.default for k, v in inspect.signature(torch.optim.Muon).parameters.items()}
    ours = dict(fo.muon.hyper)
    assert (ours.pop("a"), ours.pop("b"), ours.pop("c")) == theirs["ns_coefficients"]
    assert ours.pop("match_rms_adamw") is False and theirs["adjust_lr_fn"] is None
    assert ours == {k: theirs[k] for k in ours}
