"""fo.math: the same numbers from Python floats, from arrays, and from a compiled kernel."""

import math

import numpy as np
import pytest

import fastopt as fo
from fastopt.math import ARITY, FUNCTIONS, NUMBERS, REDUCTIONS, bias_correction, cbrt

ELEMENTWISE = [n for n in FUNCTIONS if n not in (*REDUCTIONS, "size", "normal")]
ONE = [n for n in ELEMENTWISE if n not in ARITY and n != "isfinite"]
X = np.array([-3.0, -1.0, -0.5, -0.0, 0.0, 0.25, 0.7, 1.0, 2.5, 30.0, np.inf, -np.inf, np.nan])


# one kernel for all functions of one argument: every state holds the result of one function
ALL = fo.rule(
    f"def all_functions(p, g, {', '.join(f'r_{n}' for n in ONE)}, *, lr):\n"
    + "".join(f"    r_{n} = {n}(g) + 0 * where(r_{n} == r_{n}, 0, 0)\n" for n in ONE)
    + f"    return p - lr * g, {', '.join(f'r_{n}' for n in ONE)}"
)
TWO = fo.rule(
    "def two_arguments(p, g, a, b, c, d, e):\n"
    "    a = maximum(p, g) + 0 * where(a > 0, 0, 0)\n"
    "    b = minimum(p, g) + 0 * where(b > 0, 0, 0)\n"
    "    c = copysign(p, g) + 0 * where(c > 0, 0, 0)\n"
    "    d = clip(p, -0.5, 0.75) + 0 * where(d > 0, 0, 0)\n"
    "    e = where(isfinite(p) or g > 0, 1, -1) + 0 * where(e > 0, 0, 0)\n"
    "    return p, a, b, c, d, e"
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_agree_with_numpy(dtype):
    g = X.astype(dtype)
    opt = ALL(np.zeros(len(g), dtype), lr=0.0)
    opt.step(g)
    with np.errstate(all="ignore"):
        for name in ONE:
            # float32 library functions are good to a few units in the last place
            tolerance = 8 * np.finfo(dtype).eps
            expected = FUNCTIONS[name](g)
            np.testing.assert_allclose(opt.state[f"r_{name}"], expected, rtol=tolerance, atol=0, err_msg=name)


@fo.rule
def cube_roots(p, g):
    return cbrt(g)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cube_roots_of_everything_from_subnormal_to_the_largest(dtype):
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    powers = rng.uniform(np.log2(float(info.smallest_subnormal)), info.maxexp, 100_000)
    g = np.concatenate([np.exp2(powers) * rng.choice([-1, 1], powers.size), [0.0, -0.0, np.inf, -np.inf, np.nan]])
    g = np.append(g.astype(dtype), [info.max, info.tiny, info.smallest_subnormal])
    p = np.zeros_like(g)
    cube_roots(p).step(g)
    # one unit and a half in the last place at worst; NumPy's own float32 root is not much better
    np.testing.assert_allclose(p, np.cbrt(g.astype(np.longdouble)).astype(dtype), rtol=2 * info.eps, atol=0)
    np.testing.assert_array_equal(np.signbit(p[g == 0]), np.signbit(g[g == 0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_several_arguments_agree_with_numpy(dtype):
    p, g = (a.ravel().astype(dtype) for a in np.meshgrid(X, X))
    opt = TWO(p.copy())
    opt.step(g)
    with np.errstate(all="ignore"):
        expected = {
            "a": np.maximum(p, g),
            "b": np.minimum(p, g),
            "c": np.copysign(p, g),
            "d": np.clip(p, dtype(-0.5), dtype(0.75)),
            "e": np.where(np.isfinite(p) | (g > 0), 1, -1),
        }
    for name, want in expected.items():
        np.testing.assert_array_equal(opt.state[name], want, err_msg=name)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_numbers_give_numbers_and_never_widen_an_array(name):
    if name == "where":
        assert fo.math.where(True, 1.0, 2.0) == 1.0
        assert fo.math.where(np.array([True, False]), np.float32([1, 2]), 0.0).dtype == np.float32
        return
    arguments = [0.5] * max(ARITY.get(name, (1,)))
    number = FUNCTIONS[name](*arguments)
    assert type(number) in (float, bool), "a NumPy scalar would widen a float32 array"
    array = FUNCTIONS[name](*(np.float32([a, a]) for a in arguments))
    assert array.dtype in (np.float32, np.bool_)
    assert array[0] == pytest.approx(number, rel=1e-6)  # float32 has 7 digits
    assert NUMBERS[name](*arguments) == pytest.approx(number, rel=1e-15)
    assert FUNCTIONS[name].__name__ == name


@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_totals_of_arrays_are_float64(shape):
    x = np.full(shape, 3e30, np.float32)  # its square overflows float32
    wide = x.astype(np.float64)
    for over in ("parameter", "all"):
        assert fo.math.total(x, over) == wide.sum()
        assert fo.math.mean(x, over) == wide.mean()
        assert fo.math.norm(x, over) == pytest.approx(np.linalg.norm(wide), rel=1e-15)
        assert fo.math.rms(x, over) == pytest.approx(3e30, rel=1e-7)
    assert fo.math.size(x) == x.size
    if x.ndim == 2:
        np.testing.assert_array_equal(fo.math.mean(x, "row"), wide.mean(1, keepdims=True))
        np.testing.assert_array_equal(fo.math.mean(x, "column"), wide.mean(0, keepdims=True))
        np.testing.assert_allclose(fo.math.norm(x, "row"), np.sqrt(4.0) * 3e30 * np.ones((3, 1)), rtol=1e-7)
    with pytest.raises(
        ValueError, match="over is 'rows'; expected one of 'parameter', 'group', 'all', 'row', 'column'"
    ):
        fo.math.total(x, "rows")


def test_bias_correction_keeps_its_digits_near_one():
    from fractions import Fraction

    for beta, t in (0.9, 1), (0.999, 10), (1 - 1e-9, 3), (1 - 1e-12, 1000), (0.5, 60), (0.0, 1):
        exact = float(1 - Fraction(beta) ** t)
        assert bias_correction(beta, t) == pytest.approx(exact, rel=1e-15)
    assert bias_correction(0.9, 2**60) == 1.0
    assert math.isclose(bias_correction(0.999, 5), 1 - 0.999**5, rel_tol=1e-12)
