"""Gradients of rows: exact equals whole gradients bit for bit, lazy equals torch, row counts each row's own steps."""

import platform
import re

import numpy as np
import pytest
import scipy.sparse
from conftest import leaves, refused

import fastopt as fo
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.statements import Level
from fastopt.targets import cpu
from fastopt.targets import touched as compiled
from fastopt.touched import helpers, lowered
from fastopt.wrap import before

N, C = 40, 6


def truth(rule, matrix=True):
    on = {"momentum": True}
    return tuple((n, matrix if n == "matrix" else n in on) for n in rule.switches)


def options(rule):
    return {"momentum": 0.9} if "momentum" in rule.switches else {}


def sees_rows_alone(rule):
    low = lower(rule, truth(rule))
    return not low.matrices and all(n.level is Level.ROW for q in low.passes for n, _ in q.totals)


def keeps_nothing_for_all(rule):
    low = lower(rule, truth(rule))
    return Level.REDUCED not in low.numbers.values() and not low.noises


@before
def clip_rows(p, g, *, most=1.0):
    """A wrapper of a user's own: the norm of every row's gradient is `most` at most."""
    return g * fo.math.minimum(1.0, most / (fo.math.norm(g, "row") + 1e-6))


@fo.rule
def balanced(p, g, s, *, lr=0.1, t):
    """Two totals of a row one after the other, a number of the whole shape, and a schedule inside a number."""
    g = g - fo.math.mean(g, "row")
    s = s + fo.math.total(g * g, "row") / t
    return p - lr / fo.math.size(p, "row") * g / (fo.math.sqrt(s) + fo.math.rms(p, "row") / t), s


LAZY = [r for r in CATALOGUE.values() if sees_rows_alone(r)]
BY_ROWS = [fo.agc(fo.adagrad), fo.centralize(fo.adamw), clip_rows(fo.adam), balanced]
EXACT = [*(r for r in LAZY if keeps_nothing_for_all(r)), *BY_ROWS]


def drawn(rng, t, n=N, c=C, dtype="float32", zipf=False):
    """Indices and values of a step: none, some, or all alike; sorted and unsorted."""
    k = int(rng.integers(0, 12))
    indices = np.minimum(rng.zipf(1.3, k) - 1, n - 1) if zipf else rng.integers(0, n, k)
    if t % 7 == 3:
        indices[:] = n - 1
    if t % 5 == 0:
        indices = np.unique(indices)
    return indices, rng.normal(size=(len(indices), c)).astype(dtype)


def whole(indices, values, n=N):
    g = np.zeros((n, *values.shape[1:]), values.dtype)
    for i, v in zip(indices, values, strict=True):
        g[i] += v  # in the order given
    return g


@pytest.mark.parametrize("rule", EXACT, ids=lambda r: r.name)
def test_exact_equals_whole_gradients_bit_for_bit(rule):
    rng = np.random.default_rng(1)
    start = rng.normal(size=(N, C)).astype(np.float32)
    a, b = {"w": start.copy()}, {"w": start.copy()}
    dense = rule(a, **options(rule))
    sparse = rule(b, sparse="exact", **options(rule))
    for t in range(500):
        if t == 250:
            dense.set(lr=0.5 * dense.hyper()["lr"])
            sparse.set(lr=0.5 * sparse.hyper()["lr"])
        indices, values = drawn(rng, t, zipf=t > 100)
        g = whole(indices, values)
        dense.step({"w": g})
        sparse.step({"w": g} if t % 50 == 49 else {"w": fo.rows(indices, values)})
        touched = np.unique(indices)
        assert a["w"][touched].tobytes() == b["w"][touched].tobytes(), "a row that is touched is up to date"
    saved = sparse.state_dict()  # which brings all rows to the present
    assert a["w"].tobytes() == b["w"].tobytes()
    for name, state in dense.state_dict()["state"].items():
        assert not state or state["w"].tobytes() == saved["state"][name]["w"].tobytes(), name


def test_rules_of_rows_are_among_them():
    assert {"adam_mini", "rowwise_adagrad", "adagrad", "ftrl"} <= {r.name for r in EXACT}
    assert not {"lamb", "adafactor", "muon", "novograd", "adagrad_norm"} & {r.name for r in LAZY}


@pytest.mark.parametrize("reading", ["lazy", "row"])
@pytest.mark.parametrize("columns", [1, 6, 300])  # 300: more than the running sums side by side
def test_sums_of_rows_are_those_of_whole_gradients(reading, columns):
    rng = np.random.default_rng(10)
    for rule in (fo.rowwise_adagrad, balanced):
        start = rng.normal(size=(N, columns))
        w, like = start.copy(), start.copy()
        opt, dense = rule(w, sparse=reading), rule(like)
        for _ in range(6):
            g = rng.normal(size=w.shape)
            opt.step(fo.rows(np.arange(N), g))
            dense.step(g)
        assert w.tobytes() == like.tobytes()
        assert opt.state["s"].shape == (N, 1) and opt.state["s"].tobytes() == dense.state["s"].tobytes()


def test_a_rowwise_state_takes_one_number_a_row_and_waits_with_it():
    rng = np.random.default_rng(11)
    w = rng.normal(size=(N, C)).astype(np.float32)
    start = w.copy()
    opt = fo.rowwise_adagrad(w, lr=0.1)
    indices, values = np.array([4, 9, 4]), rng.normal(size=(3, C)).astype(np.float32)
    opt.step(fo.rows(indices, values))
    sums = np.zeros(N)
    for i in (4, 9):
        g = values[indices == i].astype(np.float64).sum(0)
        sums[i] = np.mean(g * g)
        # float32 sums of two gradients, and a float32 step
        np.testing.assert_allclose(w[i], start[i] - 0.1 * g / (np.sqrt(sums[i]) + 1e-8), rtol=0, atol=1e-6)
    np.testing.assert_allclose(opt.state["s"][:, 0], sums, rtol=1e-6)
    assert (np.delete(w, [4, 9], 0) == np.delete(start, [4, 9], 0)).all()


def test_exact_resumes_and_goes_on_like_whole_gradients():
    rng = np.random.default_rng(2)
    start = rng.normal(size=(N, C))
    a, b, c = ({"w": start.copy(), "b": np.ones(3)} for _ in range(3))
    dense, sparse = fo.adamw(a), fo.adamw(b, sparse="exact", lr=lambda t: 1e-3 / t)
    dense.set(lr=lambda t: 1e-3 / t)
    for t in range(40):
        indices, values = drawn(rng, t, dtype="float64")
        if t == 20:
            saved = sparse.state_dict()
            for n in c:
                c[n][...] = b[n]
            sparse = fo.adamw(c, sparse="exact", lr=lambda t: 1e-3 / t)
            sparse.load_state_dict(saved)
        bias = None if t % 3 == 0 else np.full(3, 0.1)
        dense.step({"w": whole(indices, values), "b": bias})
        sparse.step({"w": fo.rows(indices, values), "b": bias})
    sparse.catch_up()
    assert a["w"].tobytes() == c["w"].tobytes() and a["b"].tobytes() == c["b"].tobytes()


@pytest.mark.parametrize("rule", [fo.adagrad, fo.rowwise_adagrad, fo.agc(fo.adagrad)], ids=lambda r: r.name)
def test_an_idle_rule_has_nothing_to_catch_up_on(rule):
    w = np.ones((N, C), np.float32)
    opt = rule(w, sparse="exact")
    for t in range(5):
        opt.step(fo.rows([t], np.ones((1, C), np.float32)))
    assert opt._touched["params"].kept == 0, "a zero gradient changes nothing, so no step was kept"
    opt.set(weight_decay=0.1)
    opt.step(fo.rows([1], np.ones((1, C), np.float32)))
    before = w[30].copy()
    opt.catch_up()
    assert (w[30] != before).all(), "now it decays"


@pytest.mark.parametrize("reading", ["lazy", "row"])
@pytest.mark.parametrize("rule", [fo.adam, fo.sgd, fo.radam, fo.ftrl], ids=lambda r: r.name)
def test_rows_without_a_gradient_wait(rule, reading):
    rng = np.random.default_rng(3)
    w = rng.normal(size=(N, C)).astype(np.float32)
    start = w.copy()
    opt = rule(w, sparse=reading, **options(rule))
    seen: set[int] = set()
    for t in range(10):
        indices, values = drawn(rng, t)
        before = w.copy()
        opt.step(fo.rows(indices, values))
        others = np.setdiff1d(np.arange(N), indices)
        assert w[others].tobytes() == before[others].tobytes()
        seen |= set(indices.tolist())
    assert np.isfinite(w).all()
    moved = np.flatnonzero((w != start).any(1))
    assert set(moved) <= seen and len(moved) > len(seen) / 2
    for name, state in opt.state.items():
        if state.shape == w.shape:
            fresh = rule(start.copy(), **options(rule)).state[name]
            rest = np.setdiff1d(np.arange(N), sorted(seen))
            assert state[rest].tobytes() == fresh[rest].tobytes(), name


def test_row_steps_are_those_of_each_row_alone():
    rng = np.random.default_rng(4)
    w = rng.normal(size=(N, C))
    alone = {i: fo.adam(w[i].copy(), lr=lambda t: 1e-2) for i in range(N)}
    opt = fo.adam(w, lr=1e-2, sparse="row")
    for t in range(60):
        indices, values = drawn(rng, t, dtype="float64")
        opt.step(fo.rows(indices, values))
        for i in np.unique(indices):
            alone[i].step(whole(indices, values)[i])
    for i, one in alone.items():
        assert w[i].tobytes() == one.params.tobytes(), i
        assert opt.state["row_steps"][i] == one.t
    twin = fo.adam(w.copy(), lr=1e-2, sparse="row")
    twin.load_state_dict(opt.state_dict())
    indices, values = drawn(rng, 1, dtype="float64")
    for o in (opt, twin):
        o.step(fo.rows(indices, values))
    assert twin.params.tobytes() == w.tobytes()
    broken = opt.state_dict()
    broken["state"]["row_steps"]["params"][3] = -1
    with pytest.raises(fo.CheckpointError, match="row_steps"):
        twin.load_state_dict(broken)


@pytest.mark.parametrize("rule", [r for r in LAZY if r not in EXACT], ids=lambda r: r.name)
def test_rules_with_numbers_for_all_rows_step_rows_lazily(rule):
    rng = np.random.default_rng(3)
    w, like = np.ones((N, C), np.float32), np.ones((N, C), np.float32)
    opt, dense = rule(w), rule(like)
    for _t in range(5):
        g = rng.normal(size=(N, C)).astype(np.float32)
        opt.step(fo.rows(np.arange(N), g))
        dense.step(g)
    assert w.tobytes() == like.tobytes(), "all rows touched is a whole gradient"


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, about its own constructors
@pytest.mark.parametrize("name", ["SparseAdam", "Adagrad", "SGD"])
def test_lazy_equals_torch_on_sparse_tensors(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    w = rng.normal(size=(N, C))
    table = torch.nn.Parameter(torch.tensor(w))
    theirs = getattr(torch.optim, name)([table], lr=0.05)
    # SparseAdam adds eps to the uncorrected root of v, as Keras does
    ours = {
        "SparseAdam": lambda: fo.keras.adam(w, lr=0.05, eps=1e-8),
        "Adagrad": lambda: fo.adagrad(w, lr=0.05),
        "SGD": lambda: fo.sgd(w, lr=0.05),
    }[name]()
    for t in range(100):
        indices, values = drawn(rng, t, dtype="float64", zipf=t % 2 == 0)
        where = torch.tensor(indices)[None]
        table.grad = torch.sparse_coo_tensor(where, torch.tensor(values), (N, C), check_invariants=True)
        theirs.step()
        ours.step(fo.rows(indices, values))
    # sums of duplicates may be added in another order
    np.testing.assert_allclose(w, table.detach().numpy(), rtol=0, atol=1e-13)


def test_sparse_and_dense_gradients_mix_and_every_spelling_means_the_same():
    rng = np.random.default_rng(6)
    g = np.zeros((N, C), np.float32)
    touched = np.array([3, 17, 29])
    g[touched] = rng.normal(size=(3, C))
    mask = np.zeros(N, bool)
    mask[touched] = True
    spellings = [
        fo.rows(touched, g[touched]),
        fo.rows(touched.astype(np.int32), g[touched]),
        fo.rows(touched.astype(np.uint64), g[touched].tolist() and g[touched]),
        fo.rows(touched[::-1], g[touched[::-1]]),
        fo.rows(np.repeat(touched, 2), np.repeat(g[touched] / 2, 2, axis=0)),
        fo.rows(mask, g[touched]),
        fo.rows(touched.tolist(), np.asfortranarray(g[touched])),
        scipy.sparse.csr_matrix(g),
        scipy.sparse.coo_array(g),
        fo.rows(touched, g[touched].astype(np.float64)),
    ]
    results = []
    for spelling in spellings:
        params = {"emb": {"w": np.ones((N, C), np.float32)}, "b": np.ones(5, np.float32)}
        opt = fo.adam(params, lr=0.1, groups=[fo.Group("emb.*", lr=0.2)])
        for _ in range(3):
            opt.step({"emb": {"w": spelling}, "b": np.ones(5, np.float32)})
        results.append([x.tobytes() for x in leaves(params).values()])
    assert all(r == results[0] for r in results)


def test_any_thread_count_gives_the_same_bits():
    rng = np.random.default_rng(7)
    n, c, k = 20_000, 64, 30_000  # enough for all threads
    indices, values = rng.integers(0, n, k), rng.normal(size=(k, c)).astype(np.float32)
    indices[:: k // 3000] = 7  # one row has a tenth of them
    results = []
    try:
        for threads in (1, 2):
            fo.set_num_threads(threads)
            w = np.ones((n, c), np.float32)
            opt = fo.adagrad(w, lr=0.1)
            opt.step(fo.rows(indices, values))
            opt.step(fo.rows(indices[:3], values[:3]))
            results.append(w.tobytes())
    finally:
        fo.set_num_threads(None)
    assert results[0] == results[1]


def test_rows_of_vectors_and_of_tensors():
    for shape in ((N,), (N, 2, 3), (N, 0)):
        w = np.ones(shape, np.float32)
        opt = fo.sgd(w, lr=1.0)
        opt.step(fo.rows([2, 5, 2], np.ones((3, *shape[1:]), np.float32)))
        expected = np.ones(shape, np.float32)
        expected[2] -= 2
        expected[5] -= 1
        np.testing.assert_array_equal(w, expected)


def test_an_empty_gradient_counts_its_step():
    w = np.ones((N, C), np.float32)
    opt = fo.adam(w)
    opt.step(fo.rows([], np.zeros((0, C), np.float32)))
    assert opt.t == 1 and (w == 1).all()


BAD_ROWS = {
    "indices of shape (1, 2)": ([[1, 2]], np.ones((2, C))),
    "indices of dtype float64": ([1.0, 2.0], np.ones((2, C))),
    "expected an array of float32 or float64": ([1], np.ones((1, C), int)),
    "values of shape (3, 6) for 2 indices; expected (2, ...)": ([1, 2], np.ones((3, C))),
    "values of shape () for 1 indices; expected (1, ...)": ([1], np.float32(1)),
    "beyond int64": (np.array([2**63], np.uint64), np.ones((1, C))),
}


@pytest.mark.parametrize("says", BAD_ROWS)
def test_rows_that_are_none_are_refused(says):
    with pytest.raises(fo.GradientError) as caught:
        fo.rows(*BAD_ROWS[says])
    assert says in str(caught.value)


def test_what_does_not_fit_is_refused_before_anything_changes():
    from conftest import trained

    opt = trained()
    at = "embed.weight"
    n, c = opt.params["embed"]["weight"].shape

    def step(gradient):
        others = {k: None for k in opt.params if k != "embed"}
        return lambda: opt.step({**others, "embed": {"weight": gradient}})

    one = np.ones((1, c), np.float32)
    refused(opt, fo.GradientError, step(fo.rows([n], one)), at, f"index {n} at position 0", f"0 to {n - 1}")
    refused(opt, fo.GradientError, step(fo.rows([0, -1], np.repeat(one, 2, 0))), at, "index -1 at position 1")
    refused(opt, fo.GradientError, step(fo.rows([0], np.ones((1, c + 1)))), at, f"rows of shape ({c + 1},)")
    refused(opt, fo.GradientError, step(scipy.sparse.csr_matrix((n, c + 1))), at, "shape")
    refused(opt, fo.GradientError, step(scipy.sparse.csr_matrix((n, c), dtype=complex)), at, "complex")
    own = opt.params["embed"]["weight"]
    refused(opt, fo.GradientError, step(fo.rows([0], own[:1])), at, "shares memory")
    scale = fo.sgd(np.array(1.0))
    refused(scale, fo.GradientError, lambda: scale.step(fo.rows([0], np.ones(1))), "a number has no rows")


def test_rules_that_look_at_whole_parameters_say_so():
    @fo.rule
    def normalised(p, g, *, lr=0.1):
        return p - lr * g / (fo.math.norm(g) + 1e-8)

    w = {"w": np.ones((N, C), np.float32)}
    opt = normalised(w)
    with pytest.raises(fo.ConfigError, match=r"`normalised` cannot take a gradient of rows for `w`: each of its steps"):
        opt.step({"w": fo.rows([1], np.ones((1, C), np.float32))})
    assert opt.t == 0 and (w["w"] == 1).all()
    for rule, why in (fo.nadam, "for all rows together"), (fo.sgld, "its noise"):
        opt = rule({"w": np.ones((N, C), np.float32)}, sparse="exact")
        with pytest.raises(fo.ConfigError, match=f'{why}.*sparse="lazy"'):
            opt.step({"w": fo.rows([1], np.ones((1, C), np.float32))})
    with pytest.raises(fo.ConfigError, match="sparse is 'often'; expected one of 'lazy', 'exact', 'closed', 'row'"):
        fo.adam(w, sparse="often")


def test_the_radix_sort_is_stable():
    rng = np.random.default_rng(8)
    for n_rows in (1, 2, 2048, 2049, 10**7, 2**40):
        for size in (0, 1, 2, 1000):
            indices = rng.integers(0, n_rows, size)
            order, other = np.empty(size, np.int64), np.empty(size, np.int64)
            shift = compiled.sort.py_func(indices, n_rows, order, other)
            np.testing.assert_array_equal(order & ((1 << shift) - 1), np.argsort(indices, kind="stable"))
            np.testing.assert_array_equal(order >> shift, np.sort(indices))


def test_every_row_is_in_one_share_and_its_gradients_are_in_order():
    rng = np.random.default_rng(9)
    n_rows = 5000
    shuffled = rng.permutation(n_rows)
    for indices in (shuffled[:0], shuffled[:1], np.sort(shuffled), shuffled, shuffled[rng.integers(0, 40, 3000)]):
        k = len(indices)
        order, other, places = np.empty(k, np.int64), np.empty(k, np.int64), np.empty((k + 1, 2), np.uint64)
        for threads in (1, 2, 7):
            work = np.zeros((threads, 4), np.uint64)
            n = helpers().prepare(indices, n_rows, order, other, places, work)
            rows, starts = places[:n, 0].astype(np.int64), places[: n + 1, 1].astype(np.int64)
            np.testing.assert_array_equal(rows, np.unique(indices))
            np.testing.assert_array_equal(np.repeat(rows, np.diff(starts)), indices[order])
            np.testing.assert_array_equal(order, np.argsort(indices, kind="stable"))
            lo, hi = work[:, :2].T.astype(np.int64)
            assert [*lo, n] == [0, *hi], "shares follow each other"
            assert n == 0 or (lo[1:] > 0).all(), "a second share that begins at 0 would count the step twice"
            costs = starts[hi] - starts[lo] + 3 * (hi - lo)
            assert costs.max() <= costs.sum() / threads + np.diff(starts, prepend=0).max() + 3


CLOSED = {
    "sgd": (fo.sgd, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    "qhm": (fo.qhm, {"weight_decay": 0.01}),
    "rmsprop": (fo.rmsprop, {"momentum": 0.9}),
    "averaged": (fo.ema(fo.sgd), {"weight_decay": 0.01, "decay": 0.9}),
    "adagrad": (fo.adagrad, {}),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_give_what_whole_gradients_give_but_for_rounding(name):
    rule, hyper = CLOSED[name]
    rng = np.random.default_rng(12)
    start = rng.normal(size=(N, C))
    a, b = {"w": start.copy(), "b": np.ones(3)}, {"w": start.copy(), "b": np.ones(3)}
    lr = lambda t: 1e-2 / (1 + t % 3)  # noqa: E731 - every step has another matrix
    dense, sparse = rule(a, lr=lr, **hyper), rule(b, lr=lr, sparse="closed", **hyper)
    for t in range(300):
        indices, values = drawn(rng, t, dtype="float64", zipf=True)
        bias = None if t % 4 == 1 else np.full(3, 0.1)
        g = whole(indices, values)
        dense.step({"w": g, "b": bias})
        sparse.step({"w": g if t == 200 else fo.rows(indices, values), "b": bias})
        touched = np.unique(indices)
        # products in another order, in float64
        np.testing.assert_allclose(b["w"][touched], a["w"][touched], rtol=0, atol=1e-11)
        if t == 150:
            sparse.load_state_dict(sparse.state_dict())
    sparse.catch_up()
    np.testing.assert_allclose(b["w"], a["w"], rtol=0, atol=1e-11)
    for state in dense.state:
        np.testing.assert_allclose(sparse.state[state]["w"], dense.state[state]["w"], rtol=0, atol=1e-11)
    before = b["w"].copy()
    sparse.catch_up()
    assert b["w"].tobytes() == before.tobytes(), "nothing is left to catch up on"


def test_closed_forms_reach_far_in_float32():
    w = np.ones((N, C), np.float32)
    opt = fo.sgd(w, lr=0.01, weight_decay=0.1, sparse="closed")
    for _ in range(1000):
        opt.step(fo.rows([1], np.zeros((1, C), np.float32)))
    opt.catch_up()
    # the touched row is rounded 1000 times, the others once
    np.testing.assert_allclose(w[0], 0.999**1000, rtol=1e-6)
    np.testing.assert_allclose(w[1], 0.999**1000, rtol=1e-4)


def test_closed_forms_are_refused_where_there_are_none():
    one = np.ones((1, C), np.float32)
    for rule, says in (
        (fo.adamw, "what a gradient of zeros does to p, m, v is not linear in them"),
        (fo.radam, "is not linear"),  # though in its first five steps it is
        (fo.lion, "is not linear"),
        (fo.rowwise_adagrad, "it sums over rows"),
        (fo.nadam, "for all rows together"),
    ):
        w = {"a": np.ones(3, np.float32), "w": np.ones((N, C), np.float32)}
        opt = rule(w, sparse="closed")
        with pytest.raises(fo.ConfigError, match=says):
            opt.step({"a": np.ones(3, np.float32), "w": fo.rows([1], one)})
        assert opt.t == 0 and (w["w"] == 1).all() and (w["a"] == 1).all()
        opt.step({"a": np.ones(3, np.float32), "w": None})


@pytest.mark.parametrize("rule, reading", [(fo.rowwise_adagrad, "lazy"), (fo.sgd, "exact"), (fo.sgd, "closed")])
def test_what_is_done_around_a_step_goes_with_rows(rule, reading):
    w, copy = np.ones((N, C), np.float32), np.ones((N, C), np.float16)
    opt = rule({"w": w}, lr=0.5, weight_decay=0.1, sparse=reading, nonfinite="skip", copy_out={"w": copy})
    one = np.ones((1, C), np.float32)
    opt.step({"w": fo.rows([1], np.nan * one)})
    assert opt.t == 0 and (w == 1).all(), "a rule with sums of rows looks before it writes, too"
    opt.step({"w": fo.rows([1], one)})
    opt.step({"w": fo.rows([3, 3], np.repeat(one, 2, 0))}, scale=2.0)  # 2 / 2 is the gradient of the step before
    opt.catch_up()
    assert copy.tobytes() == w.astype(np.float16).tobytes()
    assert (w[1] < 1).all() and np.isfinite(w).all()
    if reading != "lazy":
        decayed = np.float32(0.95)  # 1 - lr * weight_decay
        np.testing.assert_allclose(w[[0, 1, 3], 0], [decayed**2, (0.95 - 0.5) * 0.95, 0.95**2 - 0.5], rtol=1e-6)


@pytest.mark.parametrize("reading", ["lazy", "exact", "closed"])
def test_loops_over_rows_are_packed_and_ask_for_memory_ahead(reading):
    from test_machine import PACKED, assembly

    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("no patterns for this processor")
    rule, f4 = fo.rmsprop, np.dtype(np.float32)
    low = lowered(lower(rule, tuple((n, False) for n in rule.switches)), reading, rule, "w", (N, 256))
    code = assembly(cpu.source(rule.name, low, f4, f4, False))
    for operation in ("add", "mul", "div", "sqrt"):
        assert re.search(PACKED.format(operation), code), operation
    assert "prefetch" in code
