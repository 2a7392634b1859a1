"""State in 8 bits where a row is a whole number of blocks: gradients of rows, and rules that walk along rows."""

import numpy as np
import pytest
from conftest import snapshot
from test_sparse import whole

import fastopt as fo
from fastopt import blocks

N, C = 40, 512  # two blocks a row
NEAREST = {"state_dtype": "q8", "rounding": "nearest"}


@fo.rule
def gathered(p, g, b, *, lr=0.1):
    """A gradient of zeros leaves b as it is, but for its levels: in 8 bits these depend on its signs."""
    b = b + g
    return p - lr * g, b


def start(n=N, c=C):
    return np.random.default_rng(9).standard_normal((n, c)).astype("f4")


def drawn(rng, t, k=12):
    """Indices, some of them twice, and values; of every other step one a block is below 0, and next to it."""
    values = rng.standard_normal((k, C)).astype("f4")
    if t % 2:
        values = abs(values)
        values[:, ::256] *= -1e-6
    return rng.integers(0, N, k), values


def bits(opt):
    opt.catch_up()
    return [opt.params.tobytes(), *(np.ascontiguousarray(a).tobytes() for a in opt.state.values())]


def check(codes, scales, numbers):
    """They are these numbers, each at the nearest level, but for the few that lie half-way between two."""
    near, tops = np.empty(numbers.shape, np.uint8), np.empty(numbers.size // blocks.BLOCK, np.float32)
    blocks.write(near, tops, numbers)
    np.testing.assert_allclose(scales.ravel(), tops, rtol=1e-6)  # levels are multiplied in another order
    assert np.count_nonzero(codes != near) <= numbers.size // blocks.BLOCK
    # no two levels are further apart
    np.testing.assert_allclose(blocks.decode(codes, scales), numbers, rtol=0, atol=0.03 * abs(numbers).max())


def test_a_touched_row_is_decoded_stepped_and_encoded():
    rng = np.random.default_rng(1)
    p = start()
    opt = fo.sgd(p, lr=0.1, momentum=0.9, **NEAREST)
    codes, scales = opt.state["b"], opt.state["b_scale"].reshape(N, -1)
    assert codes.shape == (N, C) and scales.shape == (N, 2)
    for t in range(6):
        indices, values = drawn(rng, t)
        before, like = (p.copy(), codes.copy(), scales.copy()), p.copy()
        opt.step(fo.rows(indices, values))
        for i in np.unique(indices):
            b = 0.9 * blocks.decode(before[1][i], before[2][i]) + whole(indices, values)[i]
            like[i] -= 0.1 * b
            check(codes[i], scales[i], b)
        np.testing.assert_allclose(p, like, rtol=0, atol=1e-6)
        others = np.setdiff1d(np.arange(N), indices)
        for now, old in zip((p, codes, scales), before, strict=True):
            assert now[others].tobytes() == old[others].tobytes(), "the other rows wait"


def test_a_rule_that_walks_along_rows_encodes_blocks_of_them():
    """Its second pass reads m as the first one stored it."""
    opt, v = fo.adam_mini(start(), lr=0.01, **NEAREST), np.zeros((N, 1))
    codes, scales = opt.state["m"], opt.state["m_scale"]
    for t in range(1, 5):
        g, p = np.random.default_rng(t).standard_normal((N, C)).astype("f4"), opt.params.astype("f8")
        m = 0.9 * blocks.decode(codes, scales) + 0.1 * g.astype("f8")
        opt.step(g)
        check(codes, scales, m)
        v = 0.999 * v + 0.001 * np.mean(g.astype("f8") ** 2, 1, keepdims=True)
        p -= 0.01 / (1 - 0.9**t) * blocks.decode(codes, scales) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(opt.params, p, rtol=0, atol=1e-6)
        np.testing.assert_allclose(opt.state["v"], v, rtol=1e-6)


@pytest.mark.parametrize("rule", [fo.adam_mini, gathered], ids=lambda r: r.name)
def test_exact_is_the_whole_gradient_bit_for_bit(rule):
    rng = np.random.default_rng(2)
    dense, sparse = rule(start(), lr=0.01, **NEAREST), rule(start(), lr=0.01, sparse="exact", **NEAREST)
    for t in range(30):
        indices, values = drawn(rng, t, k=3 if t % 5 else 12)
        dense.step(whole(indices, values))
        sparse.step(fo.rows(indices, values))
        if t == 15:
            saved, sparse = sparse.state_dict(), rule(sparse.params, lr=0.01, sparse="exact", **NEAREST)
            sparse.load_state_dict(saved)
    assert bits(dense) == bits(sparse)


def test_rows_that_count_their_own_steps():
    """By chance, too: all rows touched at every step are a whole gradient."""
    rng = np.random.default_rng(3)
    dense, sparse = fo.adamw(start(), memory="8bit"), fo.adamw(start(), memory="8bit", sparse="row")
    for _ in range(4):
        g = rng.standard_normal((N, C)).astype("f4")
        dense.step(g)
        sparse.step(fo.rows(np.arange(N), g))
    states = ("m", "m_scale", "v", "v_scale")
    assert [dense.state[s].tobytes() for s in states] == [sparse.state[s].tobytes() for s in states]
    assert dense.params.tobytes() == sparse.params.tobytes()


def test_closed_forms_round_once():
    """Four steps missed of momentum: b is what it was times 0.9^4, p less lr times the sum of what b has been."""
    opt = fo.sgd(start(), lr=0.1, momentum=0.9, sparse="closed", **NEAREST)
    opt.step(fo.rows(np.arange(N), start()))
    p, b = opt.params.astype("f8"), blocks.decode(opt.state["b"], opt.state["b_scale"]).astype("f8")
    for _ in range(4):
        opt.step(fo.rows([0], np.zeros((1, C), "f4")))
    opt.catch_up()
    check(opt.state["b"][1:], opt.state["b_scale"][2:], (b * 0.9**4)[1:])
    np.testing.assert_allclose(opt.params[1:], (p - 0.1 * b * sum(0.9**k for k in range(1, 5)))[1:], atol=1e-6)


def test_by_chance_the_same_bits_for_any_threads_and_order():
    rng = np.random.default_rng(4)
    n, k = 800, 500  # enough for all threads
    values, indices = rng.standard_normal((k, 256)).astype("f4"), rng.permutation(n)[:k]
    found = set()
    try:
        for threads, order in ((1, np.arange(k)), (2, rng.permutation(k))):
            fo.set_num_threads(threads)
            opt = gathered(start(n, 256), state_dtype="q8")
            for t in range(3):
                opt.step(fo.rows(indices[order], values[order] * (1 + t)))
            found.add(tuple(bits(opt)))
    finally:
        fo.set_num_threads(None)
    assert len(found) == 1


def test_rows_that_would_share_blocks_are_refused_with_the_remedy():
    params, rows = {"embed": np.ones((100, 64), "f4")}, fo.rows([3], np.ones((1, 64), "f4"))
    opt = fo.adagrad(params, memory="8bit")
    before = snapshot(opt)
    with pytest.raises(fo.ConfigError) as caught:
        opt.step({"embed": rows})
    assert snapshot(opt) == before
    group = "fastopt.Group('embed', state_dtype=\"bf16\")"
    for says in ("for `embed`", "blocks of 256 numbers, which rows of 64 would share", f"groups=[{group}]"):
        assert says in str(caught.value)
    opt = fo.adagrad(params, memory="8bit", groups=[eval(group, {"fastopt": fo})])
    opt.step({"embed": rows})
    assert params["embed"][3, 0] < 1 == params["embed"][4, 0]


def test_rules_that_walk_along_rows_leave_those_that_would_share_blocks_in_full():
    params = {"a": np.ones((64, 512), "f4"), "b": np.ones((64, 500), "f4"), "c": np.ones((2, 512), "f4")}
    opt = fo.adam_mini(params, memory="8bit")
    assert [a.dtype for a in opt.state["m"].values()] == [np.uint8, np.float32, np.float32]
    with pytest.raises(fo.ConfigError, match=r"`m` of `adam_mini` cannot be 'q8', .* rows of 500; use 'bf16', by a"):
        fo.adam_mini(params, state_dtype={"m": "q8"})
    fo.adam_mini(params, state_dtype={"m": "q8"}, groups=[fo.Group("b", state_dtype="bf16")])
    fo.source(fo.adam_mini, "cuda", state_dtype="q8")  # there they are left in full whatever their rows
    with pytest.raises(fo.ConfigError, match="walks along rows and it runs on a GPU; use 'bf16'"):
        fo.source(fo.adam_mini, "cuda", state_dtype={"m": "q8"})
