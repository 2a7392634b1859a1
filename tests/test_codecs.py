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
from fastopt import codecs, params
from fastopt.targets import halves

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
@settings(max_examples=50)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.data())
def test_rounds_to_the_nearest(name, numbers, data):
    """And numbers half-way between two neighbours, which random ones never are."""
    codes = np.array(data.draw(st.lists(st.integers(0, 0x7F7E), min_size=1, max_size=50)), np.uint16)
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
    with pytest.raises(fo.DeviceError, match="`g` in bfloat16"):
        fo.source(fo.adamw, "cuda", gradient="bfloat16")
