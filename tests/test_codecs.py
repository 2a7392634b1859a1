"""Numbers in 16 bits: every code there and back, rounding to nearest, gradients that are read as they are."""

import re
import sys

import ml_dtypes
import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_machine import PACKED, assembly

import fastopt as fo
from fastopt import blocks, codecs, params
from fastopt.targets import dice, halves
from fastopt.targets.blocks import decoded as decoded_one
from fastopt.targets.blocks import meaning, round_block, store_block
from fastopt.targets.pointers import float32_at, q8_at

CODES = np.arange(1 << 16, dtype=np.uint16)
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def _loop(function, out):
    @numba.njit
    def loop(x):
        y = np.empty(len(x), out)
        for i in range(len(x)):
            y[i] = function(x[i])
        return y

    return loop


DECODE = {n: _loop(getattr(halves, f"from_{n}"), np.float32) for n in DTYPES}
ENCODE = {n: _loop(getattr(halves, f"to_{n}"), np.uint16) for n in DTYPES}


# ---- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_every_code_means_what_the_library_says_and_comes_back(name):
    values = DECODE[name](CODES)
    expected = CODES.view(DTYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    back = ENCODE[name](values)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(back[~nan], CODES[~nan])
    assert np.isnan(back[nan].view(DTYPES[name]).astype("f4")).all()
    assert np.array_equal(codecs.widened(CODES.view(DTYPES[name])), expected, equal_nan=True)


def test_codes_without_ml_dtypes_are_uint16():
    expected = CODES.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(codecs.widened(CODES), expected, equal_nan=True)


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.data())
def test_rounds_to_the_nearest(name, numbers, data):
    """And numbers half-way between two neighbours, which random ones never are."""
    largest = {"float16": 0x7BFE, "bfloat16": 0x7F7E}[name]  # the last but one before infinity
    codes = np.array(data.draw(st.lists(st.integers(0, largest), min_size=1, max_size=50)), np.uint16)
    low, high = (c.view(DTYPES[name]).astype(np.float64) for c in (codes, codes + np.uint16(1)))
    x = np.concatenate([np.array(numbers, np.float32), ((low + high) / 2).astype(np.float32)])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(DTYPES[name]).astype("f4")
    np.testing.assert_array_equal(ENCODE[name](x).view(DTYPES[name]).astype("f4"), expected)
    np.testing.assert_array_equal(ENCODE[name](x.astype("f8")), ENCODE[name](x))  # from float64


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_a_gradient_in_16_bits_is_one_in_32(name, wide):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(1003).astype(wide), rng.standard_normal(1003).astype(DTYPES[name])
    a, b = p.copy(), p.copy()
    one, other = fo.adamw(a), fo.adamw(b)
    for _ in range(2):
        one.step(g)
        other.step(g.astype("f4"))
    np.testing.assert_array_equal(a, b)
    assert params.gradient(g, p, "w") is g
    if name == "float16":
        one.step(g.astype(">f2"))
        other.step(g.astype("f4"))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("without", [False, True])
def test_a_tensor_in_16_bits_is_read_where_it_lies(dtype, without, monkeypatch):
    if without:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    codecs.array_dtype.cache_clear()
    try:
        g = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        a, b = np.ones(50, "f4"), np.ones(50, "f4")
        seen = params.gradient(g, a, "w")
        assert seen.ctypes.data == g.data_ptr()
        fo.sgd(a, lr=0.1).step(g)
        fo.sgd(b, lr=0.1).step(g.detach().float().numpy())
        np.testing.assert_array_equal(a, b)
        with pytest.raises(fo.GradientError, match="shape"):
            fo.sgd(a, lr=0.1).step(g[:3])
    finally:
        codecs.array_dtype.cache_clear()


@pytest.mark.parametrize("name", DTYPES)
def test_gradients_of_rows_in_16_bits(name):
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(DTYPES[name])
    a, b = np.ones((6, 4), "f4"), np.ones((6, 4), "f4")
    fo.adagrad(a).step(fo.rows([1, 4, 1], values))
    fo.adagrad(b).step(fo.rows([1, 4, 1], values.astype("f4")))
    np.testing.assert_array_equal(a, b)
    opt = fo.adagrad(a, sparse="row")
    opt.step(np.ones((6, 4), DTYPES[name]))


def test_integers_are_no_bfloat16():
    opt = fo.sgd(np.ones(4, "f4"), lr=0.1)
    for bad in (np.ones(4, "u2"), np.ones(4, "i4"), np.ones(4, ml_dtypes.float8_e4m3fn)):
        with pytest.raises(fo.GradientError, match=r"float32, float64, float16 or bfloat16, as g\.astype\(float32\)"):
            opt.step(bad)


def test_the_source_of_16_bit_gradients():
    for dtype in ("bfloat16", ml_dtypes.bfloat16, np.float16):
        text = fo.source(fo.adamw, gradient=dtype)
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        assert f"from_{name}(g_at[i])" in text and f"{name} gradients" in text
        code = assembly(text.replace("parallel=True", "parallel=False"))

        assert all(re.search(PACKED.format(op), code) for op in ("add", "mul", "div", "sqrt"))
    with pytest.raises(fo.ConfigError, match="uint16"):
        fo.source(fo.adamw, gradient="u2")


# ---- by chance -------------------------------------------------------------------------------------------------------


def _rounded(name, x, key):
    return ROUND[name](x, np.uint64(key_of(key))).view(DTYPES[name]).astype("f4")


@numba.njit
def key_of(t):
    return dice.dice_key(np.uint64(t), np.uint64(0), np.uint64(0))


@numba.njit
def throws(n, elements):
    """Of n steps, the dice of these elements."""
    found = np.empty((n, len(elements)), np.uint32)
    for t in range(n):
        for k, i in enumerate(elements):
            found[t, k] = dice.dice(key_of(t), np.uint64(i))
    return found


def test_dice_of_an_element_and_of_two_are_independent_from_step_to_step():
    elements = np.array([0, 1, 2, 3, 7, 255, 256, 65_535, 65_536, 10**6, 2**32 - 1])
    n = 40_000
    high = (throws(n, elements) >> 28).astype(int)  # 16 faces
    for k in range(len(elements)):
        assert chi_squared(np.bincount(high[:, k], minlength=16)) < 50  # 15 degrees of freedom: 1e-5
        assert chi_squared(np.bincount(high[1:, k] // 4 * 4 + high[:-1, k] // 4, minlength=16)) < 50  # and the next one
        for j in range(k):
            pairs = high[:, k] // 2 * 8 + high[:, j] // 2
            assert chi_squared(np.bincount(pairs, minlength=64)) < 130  # 63 degrees: 1e-6


def chi_squared(counts):
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def test_the_next_dice_is_that_of_the_next_element():
    @numba.njit
    def both(key, i):
        return dice.next_dice(key, dice.dice(key, i)), dice.dice(key, i + np.uint64(1))

    for i in (0, 1, 255, 2**32 - 1, 2**40):
        a, b = both(np.uint64(key_of(3)), np.uint64(i))
        assert a == b


def _round_loop(function):
    @numba.njit
    def loop(x, key):
        y = np.empty(len(x), np.uint16)
        for i in range(len(x)):
            y[i] = function(x[i], dice.dice(key, np.uint64(i)))
        return y

    return loop


ROUND = {n: _round_loop(getattr(halves, f"round_{n}")) for n in DTYPES}


@pytest.mark.parametrize("name", DTYPES)
def test_by_chance_a_number_becomes_one_of_its_neighbours_and_is_right_on_average(name):
    rng = np.random.default_rng(0)
    least = 2.0**-24 if name == "float16" else 2.0**-126  # a float16's numbers below 2**-14 have less digits
    for x in (*rng.standard_normal(4), *(rng.standard_normal(4) * 1e-5), 3.7 * least):
        x = np.float32(x)
        found = _rounded(name, np.full(40_000, x), 7)
        assert len(set(found)) == 2 and found.min() < x < found.max()
        gap = float(found.max()) - float(found.min())
        assert abs(found.astype("f8").mean() - x) < 5 * 0.5 * gap / 200  # five standard errors of 40,000 draws


@pytest.mark.parametrize("name", DTYPES)
def test_by_chance_what_is_a_code_already_stays(name):
    values = CODES.view(DTYPES[name]).astype(np.float32)
    values[(values != 0) & (np.abs(values) < np.finfo("f4").tiny)] = 0  # no kernel stores subnormal float32 numbers
    back = _rounded(name, values, 3)
    np.testing.assert_array_equal(back, values)  # NaN and infinities, too


# ---- 8 bits ----------------------------------------------------------------------------------------------------------


@numba.njit
def _kernels(codes, scales, x, how, key):
    """Every block of x there (how > 0) or back."""
    c, s, at = q8_at(codes.ctypes.data), float32_at(scales.ctypes.data), float32_at(x.ctypes.data)
    first, n = np.uint64(0), np.uint64(x.size)
    while first < n:
        end = min(first + np.uint64(256), n)
        if how == 0:
            block = meaning(s[first // np.uint64(256)])
            for i in range(first, end):
                at[i] = decoded_one(c[i], block)
        elif how == 1:
            store_block(c, s, at, first, end)
        else:
            round_block(c, s, at, first, end, key_of(key))
        first = end


def stored(x, how=1, key=0):
    codes, scales = np.zeros(x.size, np.uint8), np.zeros(-(-x.size // 256), np.float32)
    _kernels(codes, scales, x, how, key)
    return codes, scales


def relative(kind):
    """The levels of a kind of block, of the largest."""
    levels = blocks.levels(*kind).astype("f8")
    return levels / levels[-1]


def decoded(codes, scales):
    x = np.empty(codes.size, np.float32)
    _kernels(codes, scales, x, 0, 0)
    return x


@pytest.mark.parametrize("how", [1, 2])
@pytest.mark.parametrize("scale", [-1.0, 1.0, -3.7e-12, 2.5e-30, 1e30])
def test_all_256_codes_come_back(scale, how):
    codes = np.arange(256, dtype=np.uint8)
    scales = np.array([scale], np.float32)
    x = decoded(codes, scales)
    np.testing.assert_allclose(x, blocks.decode(codes, scales), rtol=1e-6)  # a few roundings
    assert list(np.signbit(x)) == list((codes > 127) & (scale > 0))  # code 128 is -0
    again, scales_again = stored(x, how)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_allclose(scales_again, scales, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 700), st.sampled_from(["normal", "square", "wide", "zeros", "flat"]))
def test_each_number_goes_to_one_of_its_two_levels(seed, n, kind):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    x = {
        "normal": x,
        "square": x * x,
        "wide": x * 10 ** rng.uniform(-12, 0, n),
        "zeros": x * (rng.random(n) < 0.1),
        "flat": np.full(n, 0.1),
    }[kind].astype(np.float32)
    # a kernel takes -0, too, for a number below 0
    signed = np.repeat([np.signbit(b).any() for b in np.split(x, range(256, n, 256))], 256)[:n]
    top = np.repeat([np.abs(b).max() for b in np.split(x, range(256, n, 256))], 256)[:n].astype("f8")
    three, four = (relative(kind) for kind in (blocks.SIGNED, blocks.UNSIGNED))
    for how in (1, 2):
        y = decoded(*stored(x, how, seed))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num(np.abs(x) / top)
            got = np.nan_to_num(np.abs(y) / top)
        for mask, levels in ((signed, three), (~signed, four)):
            k = np.clip(np.searchsorted(levels, share[mask] * (1 + 1e-6), side="right") - 1, 0, len(levels) - 2)
            low, high = levels[k] * (1 - 1e-6), levels[k + 1] * (1 + 1e-6)
            assert ((got[mask] >= low) & (got[mask] <= high)).all()
        assert (np.sign(y)[~signed] == np.sign(x)[~signed]).all()  # never to 0
        assert ((y == 0) | (np.sign(y) == np.sign(x))).all()


def test_a_block_with_a_nan_or_an_infinity_is_nan():
    x = np.ones(600, np.float32)
    x[3], x[513] = np.nan, -np.inf
    for how in (1, 2):
        y = decoded(*stored(x, how))
        assert np.isnan(y[:256]).all() and np.isnan(y[512:]).all()
        np.testing.assert_allclose(y[256:512], 1, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=300))
def test_any_floats(numbers):
    """A NaN or an infinity spoils its block; a block of nothing but subnormal numbers is 0; the rest is near."""
    x = np.array(numbers, np.float32)
    for how in (1, 2):
        y = decoded(*stored(x, how, 11))
        for a, b in zip(np.split(x, range(256, x.size, 256)), np.split(y, range(256, x.size, 256)), strict=True):
            top = np.abs(a).max()
            if not np.isfinite(top):
                assert np.isnan(b).all()
            elif top < np.finfo(np.float32).tiny:
                assert not b.any()
            else:
                assert (np.abs(b.astype("f8") - a) <= 0.032 * np.float64(top)).all()
                k = np.abs(a).argmax()
                assert b[k] == pytest.approx(a[k], rel=1e-6)


def test_8_bits_by_chance_are_right_on_average():
    rng = np.random.default_rng(1)
    for x in (rng.standard_normal(256).astype("f4"), (rng.standard_normal(256) ** 2).astype("f4")):
        found = np.mean([decoded(*stored(x, 2, key)).astype("f8") for key in range(3997)], 0)
        near = [decoded(*stored(x, how, 5)) for how in (1, 2)]
        levels = relative(blocks.SIGNED if (x < 0).any() else blocks.UNSIGNED)
        gap = np.diff(levels, append=2)[np.searchsorted(levels, np.abs(x) / np.abs(x).max(), side="right") - 1]
        gap *= np.abs(x).max()
        most = np.abs(x) >= levels[1] * np.abs(x).max()  # a smaller number of an unsigned block is never 0
        assert (np.abs(near[0] - x) <= 0.5001 * gap)[most].all() and (np.abs(near[1] - x) <= 1.0001 * gap).all()
        assert (np.abs(found - x) < 5 * 0.5 * gap / np.sqrt(3997))[most].all()  # five standard errors


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_decoded_and_encoded_again_and_again_stays(sign):
    """By chance: what lies on a level leaves it once in 100,000 times, up as often as down."""
    rng = np.random.default_rng(3)
    x = sign * (2.0 ** rng.uniform(-1, 0, (2000, 256))).astype("f4") ** 20
    x[:, 0] = sign * 2.0 ** rng.uniform(0, 1, 2000)
    x = decoded(*stored(x.ravel())).reshape(x.shape)
    y = x
    for t in range(200):
        y = decoded(*stored(np.ascontiguousarray(y).ravel(), 2, t)).reshape(x.shape)
    rest = np.abs(y[:, 0] / x[:, 0].astype("f8") - 1)
    assert (rest < 1.2e-7).mean() > 0.99
    assert np.mean(np.abs(y - x) > 1e-6 * np.abs(x)) < 0.004 and abs(y.sum(dtype="f8") / x.sum(dtype="f8") - 1) < 2e-5


def test_writing_from_numpy_is_to_the_nearest():
    x = np.random.default_rng(2).standard_normal((3, 300)).astype("f4")
    codes, scales = np.zeros((3, 300), np.uint8), np.zeros(4, np.float32)
    blocks.write(codes, scales, x)
    np.testing.assert_array_equal(codes.ravel(), stored(x.ravel())[0])


def dynamic_map(signed):
    """The levels of Dettmers et al. 2022, section 1.3, as bitsandbytes makes them (create_dynamic_map)."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1 if signed else 2 ** (i + 1) + 1)
        means = 10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2
        found += [*means, *(-means if signed else [])]
    return np.sort(found)


def by_levels(x, levels):
    n = x.size // 256 * 256
    x = x.ravel()[:n].reshape(-1, 256).astype("f8")
    top = np.maximum(np.abs(x).max(1, keepdims=True), 1e-300)
    return (levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x / top)] * top).ravel()


def test_no_worse_than_the_dynamic_map_on_states_of_adam():
    """Of a small network on the digits: the error of m, and of the update m / sqrt(v) by m and by v alone."""
    from sklearn.datasets import load_digits

    X, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    opt = torch.optim.AdamW(net.parameters())
    for t in range(1, 101):
        batch = torch.randint(0, len(X), (64,))
        opt.zero_grad()
        torch.nn.functional.cross_entropy(net(X[batch].float() / 16), y[batch]).backward()
        opt.step()
        if t not in (10, 100):
            continue
        m, v = (opt.state[net[0].weight][s].numpy().ravel() for s in ("exp_avg", "exp_avg_sq"))
        ours = [decoded(*stored(x)).astype("f8") for x in (m, v)]
        theirs = [by_levels(x, dynamic_map(signed)) for x, signed in ((m, True), (v, False))]

        def update(m, v):
            return m / (np.sqrt(v.astype("f8")) + 1e-8)

        def rms(x):
            return np.sqrt(np.mean(np.square(x, dtype="f8")))

        true = update(m, v)
        assert rms(ours[0] - m) <= rms(theirs[0] - m)
        assert rms(update(ours[0], v) - true) <= 1.1 * rms(update(theirs[0], v) - true)  # the smallest m beside tiny v
        assert rms(update(m, ours[1]) - true) <= rms(update(m, theirs[1]) - true)
        assert rms(ours[1] - v) <= 1.1 * rms(theirs[1] - v)  # 128 of its 255 levels are for the upper nine tenths


def test_encoding_is_done_in_pieces(monkeypatch):
    x = np.random.default_rng(0).standard_normal(5 * blocks.BLOCK + 7).astype("f4")
    encoded = []
    for at_once in (100, 2):
        monkeypatch.setattr(blocks, "_AT_ONCE", at_once)
        encoded.append((np.zeros(x.shape, np.uint8), np.zeros(6, "f4")))
        blocks.write(*encoded[-1], x)
    assert [a.tobytes() for a in encoded[0]] == [a.tobytes() for a in encoded[1]]
    np.testing.assert_allclose(blocks.decode(*encoded[1]), x, rtol=0, atol=0.03 * np.abs(x).max())
