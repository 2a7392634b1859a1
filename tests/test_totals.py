"""Rules with totals where totals are degenerate: zeros, empty and single elements, overflow, NaN, groups, missing."""

import numpy as np
import pytest

import fastopt as fo

OF_ONE = "lamb lars novograd adam_mini rowwise_adagrad adafactor ldog".split()  # totals of each parameter
OF_ALL = "polyak sps adagrad_norm dog dadapt_adam prodigy".split()
RULES = OF_ONE + OF_ALL


def make(name, params, **hyper):
    rule = getattr(fo, name)
    return rule(params, **({"loss": 1.0} if "loss" in rule.schema else {}), **hyper)


@pytest.mark.parametrize("name", RULES)
def test_shapes_without_elements_or_dimensions(name):
    shapes = {"none": (0,), "rows": (0, 3), "columns": (3, 0), "one": (1,), "number": (), "cell": (1, 1), "w": (4, 3)}
    p = {n: np.ones(s, np.float32) for n, s in shapes.items()}
    opt = make(name, p)
    with np.errstate(all="raise"):
        for _ in range(3):
            opt.step({n: np.full(s, 0.5, np.float32) for n, s in shapes.items()})
    for n, x in p.items():
        assert np.isfinite(x).all() and (x < 1).all(), n
    assert p["one"].item() == p["number"].item()  # neither is a matrix
    assert np.ptp(p["w"]) == 0


@pytest.mark.parametrize("name", RULES)
def test_a_gradient_of_zero_moves_nothing_and_breaks_nothing(name):
    p = {"w": np.full((4, 3), 0.5, np.float32), "b": np.full(5, 0.5, np.float32)}
    zero, one = ({n: np.full_like(x, value) for n, x in p.items()} for value in (0.0, 1.0))
    opt = make(name, p)
    for _ in range(3):
        opt.step(zero)
        assert all((x == 0.5).all() for x in p.values())
    opt.step(one)
    assert all(np.isfinite(x).all() and (x < 0.5).all() for x in p.values())


def test_a_parameter_or_a_gradient_of_zero_has_the_ratio_one():
    g = np.array([3.0, 4.0])
    p = np.zeros(2)
    fo.lars(p, lr=0.1).step(g)
    np.testing.assert_allclose(p, -0.1 * g)
    p = np.zeros(2)
    fo.lamb(p, lr=0.1, eps=0.0).step(g)
    np.testing.assert_allclose(p, [-0.1, -0.1])  # Adam's first step
    p = np.array([1.0, 1.0])
    fo.lars(p, lr=0.1, weight_decay=0.5).step(np.zeros(2))
    np.testing.assert_allclose(p, [0.95, 0.95])


@pytest.mark.parametrize("name", "lars novograd adafactor adam_mini rowwise_adagrad adagrad_norm dog ldog sps".split())
def test_squares_beyond_float32_are_summed_in_float64(name):
    p = {"w": np.full((4, 3), 0.5, np.float32), "b": np.full(5, 0.5, np.float32)}
    g = {n: np.full_like(x, 1e25) for n, x in p.items()}
    if name == "adafactor":  # v of an element is float32
        p, g = {"w": p["w"]}, {"w": g["w"]}
    wide = {n: x.astype(np.float64) for n, x in p.items()}
    opt, twin = make(name, p), make(name, wide)
    for _ in range(3):
        opt.step(g)
        twin.step({n: x.astype(np.float64) for n, x in g.items()})
    for n, x in p.items():
        assert (x != 0.5).all() or name in ("sps",)  # whose step is 1 / 1e25
        np.testing.assert_allclose(x, wide[n], rtol=1e-5)


def test_one_number_that_is_no_number():
    """What a NaN in one gradient reaches: its element, its row, its parameter or everything."""
    reach = {}
    for name in RULES:
        p = {"w": np.full((4, 3), 0.5, np.float32), "b": np.full(5, 0.5, np.float32)}
        g = {n: np.ones_like(x) for n, x in p.items()}
        g["w"][1, 2] = np.nan
        make(name, p).step(g)
        bad = [~np.isfinite(p["w"]), ~np.isfinite(p["b"])]
        counts = int(bad[0].sum()), int(bad[0][1].sum()), int(bad[1].sum())
        reach[name] = {(1, 1, 0): "element", (3, 3, 0): "row", (12, 3, 0): "parameter", (12, 3, 5): "all"}.get(
            counts, counts
        )
    # where a rule asks whether a total is above 0, a NaN is not: the ratios of LAMB and LARS are 1, the d of Prodigy
    # stays, from then on, and Polyak's step is 0, times NaN in the one element
    assert reach == {
        **dict.fromkeys(("lamb", "lars", "polyak", "sps", "dadapt_adam", "prodigy"), "element"),
        **dict.fromkeys(("adam_mini", "rowwise_adagrad"), "row"),
        **dict.fromkeys(("novograd", "adafactor", "ldog"), "parameter"),
        **dict.fromkeys(("adagrad_norm", "dog"), "all"),
    }


@pytest.mark.parametrize(
    "name, states", [("prodigy", "rd"), ("dadapt_adam", "rd"), ("dog", "rG"), ("adagrad_norm", "b")]
)
def test_numbers_of_all_parameters_are_equal_in_each_whatever_its_lr(name, states):
    rng = np.random.default_rng(1)
    p = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=5), "still": rng.normal(size=3)}
    start = {n: x.copy() for n, x in p.items()}
    groups = [fo.Group("b", lr=0.5), fo.Group("still", lr=0.0)]
    opt = make(name, p, groups=groups)
    for _ in range(20):
        opt.step({n: x.copy() for n, x in p.items()})
    for s in states:
        values = {float(opt.state[s][n]) for n in p}
        assert len(values) == 1 and values != {0.0}, s
    assert (p["still"] == start["still"]).all() and (p["w"] != start["w"]).all()


def test_prodigy_finds_its_rate():
    """From d0 = 1e-6 to the order of the distance, 10, and to the minimum of a quadratic."""
    p = np.full(20, 10.0)
    opt = fo.prodigy(p)
    for _ in range(1500):
        opt.step(p - 3.0)
    assert 1.0 < float(opt.state["d"]) < 30.0
    np.testing.assert_allclose(p, 3.0, atol=0.1)


def test_adafactor_keeps_a_number_per_row_and_column_of_a_matrix_and_all_of_other_arrays():
    p = {"w": np.ones((30, 50)), "filters": np.ones((4, 5, 3)), "b": np.ones(7)}
    opt = fo.adafactor(p)
    shapes = {s: {n: None if x is None else x.shape for n, x in opt.state[s].items()} for s in opt.state}
    assert shapes == {
        "r": {"w": (30, 1), "filters": None, "b": None},
        "c": {"w": (1, 50), "filters": None, "b": None},
        "v": {"w": None, "filters": (4, 5, 3), "b": (7,)},
    }


def test_polyak_without_a_loss_stays():
    p = np.ones(3)
    opt = fo.polyak(p)
    opt.step(p.copy())
    assert (p == 1).all()
    opt.set(loss=1.5)  # of sum(p**2) / 2
    opt.step(p.copy())
    np.testing.assert_allclose(p, 0.5)
