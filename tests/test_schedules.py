"""Schedules: torch's numbers at every step, their own shapes and limits, values that cannot work, states."""

import copy
import inspect
import math
import pickle
import timeit
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

from fastopt import schedules as s
from fastopt.errors import CheckpointError, ConfigError

few = settings(derandomize=True, max_examples=40, deadline=None)
peaks = st.floats(1e-6, 1e3)

# One of each, for what holds for all of them. `END`: where those that have an end come to it, and its value.
PEAK, TOTAL = 0.3, 60
ALL = {
    "constant": s.constant(PEAK),
    "linear": s.linear(PEAK, 0.1, total=TOTAL),
    "polynomial": s.polynomial(PEAK, total=TOTAL, power=2.5, end=0.05),
    "step": s.step(PEAK, every=7, gamma=0.5),
    "exponential": s.exponential(PEAK, gamma=0.9),
    "cosine": s.cosine(peak=PEAK, warmup=9, total=TOTAL, floor=0.01),
    "restarts": s.restarts(PEAK, period=4, mult=2),
    "one_cycle": s.one_cycle(PEAK, total=TOTAL),
    "wsd": s.wsd(PEAK, total=TOTAL, warmup=10, decay=20, floor=0.02),
    "warmup": s.warmup(PEAK, steps=5),
    "join": s.join([s.linear(0, PEAK, total=5), PEAK], [5]),
}
END = {"linear": 0.1, "polynomial": 0.05, "cosine": 0.01, "one_cycle": PEAK / 25 / 1e4, "wsd": 0.02}


def values(schedule, steps):
    return [schedule(t) for t in range(1, steps + 1)]


def in_torch(make, lr, steps):
    """The learning rates torch uses at t = 1 ... steps; `make` gives the scheduler of an optimizer."""
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, used = make(opt), []
    for _ in range(steps):
        used.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return used


def assert_same(ours, torchs, scale):
    # torch multiplies last step's value by a factor where we use the closed form: an ulp or two a step, at most 400
    # steps, and relative to the peak where its value comes near zero by subtraction
    np.testing.assert_allclose(ours, torchs, rtol=1e-12, atol=1e-12 * scale)


# ---- the numbers of torch --------------------------------------------------------------------------------------------


@given(lr=peaks, start=st.floats(0.01, 1), end=st.floats(0, 1), total=st.integers(1, 50))
@few
def test_linear(lr, start, end, total):
    wanted = in_torch(lambda o: torch_schedules.LinearLR(o, start, end, total), lr, total + 10)
    assert_same(values(s.linear(lr * start, lr * end, total=total), total + 10), wanted, lr)


@given(lr=peaks, power=st.floats(0.1, 4), total=st.integers(1, 50))
@few
def test_polynomial(lr, power, total):
    wanted = in_torch(lambda o: torch_schedules.PolynomialLR(o, total, power), lr, total + 10)
    assert_same(values(s.polynomial(lr, total=total, power=power), total + 10), wanted, lr)


@given(lr=peaks, every=st.integers(1, 30), gamma=st.floats(0.01, 1))
@few
def test_step_and_exponential(lr, every, gamma):
    wanted = in_torch(lambda o: torch_schedules.StepLR(o, every, gamma), lr, 100)
    assert_same(values(s.step(lr, every=every, gamma=gamma), 100), wanted, lr)
    wanted = in_torch(lambda o: torch_schedules.ExponentialLR(o, gamma), lr, 100)
    assert_same(values(s.exponential(lr, gamma=gamma), 100), wanted, lr)


def cosine_in_torch(warmup, total, floor):
    def make(o):
        down = torch_schedules.CosineAnnealingLR(o, total - warmup, floor)
        if not warmup:
            return down
        up = torch_schedules.LinearLR(o, 1 / (warmup + 1), 1.0, warmup)
        return torch_schedules.SequentialLR(o, [up, down], [warmup])

    return make


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR itself uses what torch deprecates
@given(lr=peaks, part=st.floats(0, 1), warmup=st.integers(0, 40), down=st.integers(1, 300))
@few
def test_cosine(lr, part, warmup, down):
    total, floor = warmup + down, lr * part
    wanted = in_torch(cosine_in_torch(warmup, total, floor), lr, total + 1)
    ours = s.cosine(peak=lr, warmup=warmup, total=total, floor=floor)
    # the recursive form of torch divides by 1 + cos(x), which is small near the end: worse than an ulp a step there
    np.testing.assert_allclose(values(ours, total + 1), wanted, rtol=1e-12, atol=1e-10 * lr)
    assert values(ours, total + 99)[total:] == [floor] * 99


@given(lr=peaks, part=st.floats(0, 1), period=st.integers(1, 20), mult=st.integers(1, 3))
@few
def test_restarts(lr, part, period, mult):
    wanted = in_torch(lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, period, mult, lr * part), lr, 200)
    assert_same(values(s.restarts(lr, period=period, mult=mult, floor=lr * part), 200), wanted, lr)


def test_restarts_come_on_time_after_very_many_steps():
    schedule = s.restarts(1.0, period=3, mult=3)
    starts = [(3 ** (k + 1) - 3) // 2 for k in range(1, 30)]
    assert all(schedule(1 + e) == 1.0 and schedule(e) < 0.9 for e in starts)


@given(
    lr=peaks, total=st.integers(1, 120), pct=st.floats(0, 0.99), div=st.floats(1, 50), final=st.floats(1, 1e5),
    three=st.booleans(), shape=st.sampled_from(["cosine", "linear"]),
)  # fmt: skip
@few
def test_one_cycle(lr, total, pct, div, final, three, shape):
    pct = pct / 2 if three else pct
    if abs(pct * total - 1) < 1e-6:
        pct = 0.0  # torch divides by the length of the first phase, here nothing

    def make(o):
        names = dict(div_factor=div, final_div_factor=final, three_phase=three, cycle_momentum=False)
        strategy = {"cosine": "cos", "linear": "linear"}[shape]
        return torch_schedules.OneCycleLR(o, lr, total, pct_start=pct, anneal_strategy=strategy, **names)

    schedule = s.one_cycle(
        lr, total=total, pct_start=pct, div_factor=div, final_div_factor=final, three_phase=three, shape=shape
    )
    assert_same(values(schedule, total), in_torch(make, lr, total), lr)
    assert values(schedule, total + 9)[total:] == [lr / div / final] * 9


def test_one_cycle_with_nothing_to_climb_begins_at_the_peak():
    assert s.one_cycle(1.0, total=10, pct_start=0.1)(1) == 1.0


def test_the_defaults_are_those_of_torch():
    ours = {k: p.default for k, p in inspect.signature(s.one_cycle).parameters.items()}
    theirs = {k: p.default for k, p in inspect.signature(torch_schedules.OneCycleLR).parameters.items()}
    assert {k: theirs[k] for k in set(ours) & set(theirs)} == {k: ours[k] for k in set(ours) & set(theirs)}
    ours = {k: p.default for k, p in inspect.signature(s.Plateau).parameters.items()}
    theirs = {k: p.default for k, p in inspect.signature(torch_schedules.ReduceLROnPlateau).parameters.items()}
    assert {k: v for k, v in ours.items() if k not in ("start", "floor")} == {
        k: v for k, v in theirs.items() if k not in ("optimizer", "min_lr")
    }


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@given(lr=peaks, first=st.integers(1, 30), second=st.integers(1, 30), gamma=st.floats(0.5, 1))
@few
def test_warmup_and_join(lr, first, second, gamma):
    def make(o):
        up = torch_schedules.LinearLR(o, 0.25, 1.0, first)
        flat = torch_schedules.ConstantLR(o, 1.0, 1)
        down = torch_schedules.ExponentialLR(o, gamma)
        return torch_schedules.SequentialLR(o, [up, flat, down], [first, first + second])

    wanted = in_torch(make, lr, first + second + 20)
    down = s.exponential(lr, gamma=gamma)
    ours = s.join([s.linear(lr / 4, lr, total=first), lr, down], [first, first + second])
    assert_same(values(ours, first + second + 20), wanted, lr)
    ours = s.warmup(s.join([lr, down], (second,)), steps=first, start=lr / 4)
    assert_same(values(ours, first + second + 20), wanted, lr)


metrics = st.lists(st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, math.nan])), min_size=1, max_size=60)


@given(
    metrics=metrics, mode=st.sampled_from(["min", "max"]), threshold_mode=st.sampled_from(["rel", "abs"]),
    patience=st.integers(0, 3), cooldown=st.integers(0, 3), floor=st.sampled_from([0.0, 0.01]),
    eps=st.sampled_from([0, 1e-3]),
)  # fmt: skip
@few
def test_plateau(metrics, floor, **how):
    opt = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch_schedules.ReduceLROnPlateau(opt, factor=0.5, threshold=0.1, min_lr=floor, **how)
    ours = s.Plateau(0.1, factor=0.5, threshold=0.1, floor=floor, **how)
    for k, metric in enumerate(metrics):
        before = ours(k)
        theirs.step(metric)
        assert ours.update(metric) == (ours(k) < before)
        assert ours(k) == opt.param_groups[0]["lr"]  # the same operations in the same order: the same bits
        if k % 5 == 2:  # going on from a state is going on
            saved, ours = ours.state_dict(), s.Plateau(0.1, factor=0.5, threshold=0.1, floor=floor, **how)
            ours.load_state_dict(saved)
            assert ours.state_dict() == saved


# ---- their own shapes ------------------------------------------------------------------------------------------------


def test_cosine_is_the_contract():
    schedule = s.cosine(peak=3e-4, warmup=2_000, total=100_000)
    assert schedule == s.cosine(peak=3e-4, warmup=2_000, total=100_000, floor=0.0)
    assert schedule(1) == pytest.approx(3e-4 / 2001, rel=1e-15)  # one rounding apart
    assert schedule(2_001) == 3e-4 == max(schedule(t) for t in range(1, 100_001, 50))
    assert schedule(51_001) == pytest.approx(1.5e-4, rel=1e-12)  # half-way; the cosine of pi / 2 is not exactly 0
    assert schedule(100_001) == schedule(10**9) == 0.0


@given(peak=peaks, warmup=st.integers(1, 30), rest=st.integers(1, 30))
@few
def test_warm_ups_are_one(peak, warmup, rest):
    """The warm-up inside a schedule, `warmup` around one, and `join` give the same numbers."""
    total = warmup + rest
    inside = values(s.cosine(peak, warmup=warmup, total=total), total + 5)
    around = values(s.warmup(s.cosine(peak, total=rest), steps=warmup), total + 5)
    ramp = s.linear(0, peak, total=warmup + 1)
    joined = values(s.join([lambda t: ramp(t + 1), s.cosine(peak, total=rest)], [warmup]), total + 5)
    flat = values(s.wsd(peak, total=total, warmup=warmup, decay=0), total)
    assert inside == around
    np.testing.assert_allclose(joined, inside, rtol=1e-15 * 4, atol=0)  # a product in another order
    np.testing.assert_array_equal(flat[:warmup], inside[:warmup])
    assert flat[warmup:] == [peak] * rest


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
def test_wsd(shape):
    v = values(s.wsd(1.0, total=100, warmup=9, decay=40, floor=0.2, shape=shape), 130)
    assert v[:9] == [t / 10 for t in range(1, 10)]
    assert v[9:61] == [1.0] * 52
    assert all(a > b for a, b in pairwise(v[60:101]))
    assert v[100:] == [0.2] * 30
    half = {"linear": 0.5, "sqrt": math.sqrt(0.5), "cosine": 0.5}[shape]
    assert v[80] == pytest.approx(1 - 0.8 * half, rel=1e-15 * 4)  # a few roundings


def test_a_floor_above_the_peak_rises():
    v = values(s.cosine(0.04, total=50, floor=0.4), 60)
    assert v[0] == 0.04 and v[50:] == [0.4] * 10 and v == sorted(v)


def test_growth_for_a_range_test_has_an_end():
    schedule = s.exponential(1e-7, gamma=1.1, total=100)
    assert schedule(101) == schedule(10**6) == 1e-7 * 1.1**100


@pytest.mark.parametrize("name", END)
def test_past_its_total_it_stays_at_its_end(name):
    assert values(ALL[name], TOTAL + 50)[TOTAL:] == [END[name]] * 50 == [ALL[name](2**53)] * 50


@pytest.mark.parametrize("name", ALL)
def test_every_value_is_a_finite_float(name):
    for t in (*range(1, 200), 2**24, 2**31, 2**53):
        value = ALL[name](t)
        assert type(value) is float and math.isfinite(value) and value >= 0, t


def test_every_public_schedule_is_here():
    assert {*ALL, "Plateau", "Schedule"} == set(s.__all__)


@pytest.mark.parametrize("name", ALL)
def test_immutable_comparable_printed_copied(name):
    schedule = ALL[name]
    again = eval(repr(schedule), vars(s))
    for other in (again, copy.copy(schedule), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule and hash(other) == hash(schedule)
        assert values(other, 80) == values(schedule, 80)
    assert {name} == {n for n, o in ALL.items() if o == schedule}
    with pytest.raises(AttributeError):
        schedule.values = ()
    assert type(schedule) is s.Schedule and getattr(s, name).__doc__
    assert list(inspect.signature(getattr(s, name)).parameters) == [k for k, _ in schedule.values]


def test_equal_by_value_not_by_type_of_number():
    plain = s.cosine(1.0, total=10)
    same = [(1, np.int64(10)), (np.float32(1), np.array(10)), (np.array(1.0), np.uint8(10)), (torch.tensor(1.0), 10)]
    for peak, total in same:
        assert s.cosine(peak, total=total) == plain != s.cosine(2, total=10)


def test_a_plateau_can_be_warmed_up_and_its_state_is_kept():
    make = lambda: s.warmup(s.join([s.Plateau(1.0, patience=0), 0.5, s.Plateau(2.0)], [8, 9]), steps=3)  # noqa: E731
    schedule, other = make(), make()
    inner = dict(dict(schedule.values)["schedule"].values)["schedules"][0]
    for metric in (1.0, 2.0, 2.0):
        inner.update(metric)
    assert schedule(5) == pytest.approx(0.01, rel=1e-15) != other(5)
    saved = schedule.state_dict()
    other.load_state_dict(saved)
    assert values(other, 20) == values(schedule, 20) and other.state_dict() == saved
    damaged = copy.deepcopy(saved)
    damaged["schedule.0"]["schedules.2"]["bad"] = -1
    fresh = make()
    before = fresh.state_dict()
    for state in (damaged, {}, None, {"schedule.0": {}}):
        with pytest.raises(CheckpointError, match=r"schedules\."):
            fresh.load_state_dict(state)
        assert fresh.state_dict() == before
    assert s.cosine(1, total=2).state_dict() is None


# ---- what cannot work ------------------------------------------------------------------------------------------------

NUMBERS = [-1, -1e-9, math.nan, math.inf, True, np.True_, "1", b"1", None, [1], np.ones(2), 1j, 10**400]
STEPS = [-1, 1.0, math.nan, True, np.True_, "1", None, [1], 2**53 + 1]


def bad_values():
    """(schedule, argument, value) for every argument that is a number or a count."""
    for name in ALL:
        if name == "join":
            continue
        good = dict(ALL[name].values)
        for argument, value in good.items():
            if isinstance(value, bool):
                bad = [0, 1, "yes", None]
            elif isinstance(value, str):
                bad = ["", "cos", None, 1]
            elif isinstance(value, int):
                bad = STEPS + [0] * (argument not in ("warmup", "decay"))
            else:
                bad = [v for v in NUMBERS if v is not None or good[argument] is not None]
            for v in bad:
                yield pytest.param(name, argument, v, id=f"{name}-{argument}-{str(v)[:9]}")


@pytest.mark.parametrize("name, argument, value", list(bad_values()))
def test_bad_value(name, argument, value):
    with pytest.raises(ConfigError, match=rf"^schedules\.{name}: `{argument}` is .*expected ") as error:
        getattr(s, name)(**{**dict(ALL[name].values), argument: value})
    assert len(str(error.value)) < 200


CANNOT = {
    "unknown name": (lambda: s.cosine(1, total=9, warmpu=3), "warmpu.*`peak`.*Did you mean `warmup`"),
    "missing": (lambda: s.cosine(peak=1), "missing.*'total'"),
    "counts by position": (lambda: s.cosine(1, 2, 3), "too many positional"),
    "warm-up too long": (lambda: s.cosine(1, total=100, warmup=101), "expected `warmup` <= `total`"),
    "no room for both": (lambda: s.wsd(1, total=100, warmup=50, decay=51), "expected `warmup` [+] `decay` <= `total`"),
    "endless growth": (lambda: s.exponential(1, gamma=1.1), "gamma <= 1, or a `total`"),
    "growth past floats": (lambda: s.exponential(1e300, gamma=1.1, total=500), "still finite"),
    "shrinking stairs": (lambda: s.step(1, every=3, gamma=1.1), r"`gamma` is 1.1.*\[0, 1\]"),
    "all climb": (lambda: s.one_cycle(1, total=9, pct_start=1.0), r"`pct_start` is 1.0.*\[0, 1\)"),
    "two climbs": (lambda: s.one_cycle(1, total=9, pct_start=0.6, three_phase=True), "<= 0.5 with three phases"),
    "nothing to divide": (lambda: s.one_cycle(1, total=9, div_factor=0), "`div_factor` is 0.*> 0"),
    "a class": (lambda: s.warmup(s.Plateau, steps=3), "`schedule` is <class.*made by calling one"),
    "not called": (lambda: s.warmup(s.cosine, steps=3), "`schedule` is <function cos.*made by calling one"),
    "no list": (lambda: s.join(s.cosine(1, total=3), [1]), "`schedules` is cosine.*expected a list"),
    "no numbers": (lambda: s.join(["a", "b"], [1]), "`schedules` is .*expected a list"),
    "empty": (lambda: s.join([], []), "one boundary fewer"),
    "too many": (lambda: s.join([1, 2], [1, 2]), "one boundary fewer"),
    "not rising": (lambda: s.join([1, 2, 3], [5, 5]), "each above the one before"),
    "zero": (lambda: s.join([1, 2], [0]), "`boundaries` is .*ints >= 1"),
    "no ints": (lambda: s.join([1, 2], [1.5]), "`boundaries` is .*ints >= 1"),
    "plateau floor": (lambda: s.Plateau(0.1, floor=0.2), "`floor` is 0.2; expected at most `start`, 0.1"),
    "plateau mode": (lambda: s.Plateau(0.1, mode="up"), "`mode` is 'up' .*`min`, `max`"),
    "plateau factor": (lambda: s.Plateau(0.1, factor=1.0), r"`factor` is 1.0.*\[0, 1\)"),
    "plateau patience": (lambda: s.Plateau(0.1, patience=-1), "`patience` is -1.*int >= 0"),
    "plateau start": (lambda: s.Plateau(math.nan), "`start` is nan"),
}


@pytest.mark.parametrize("make, message", CANNOT.values(), ids=CANNOT)
def test_cannot_work(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("metric", ["1", None, True, [1.0], np.ones(1), 1j])
def test_plateau_refuses_what_is_no_metric(metric):
    plateau = s.Plateau(0.1)
    plateau.update(np.float32(1.0)), plateau.update(torch.tensor(0.5)), plateau.update(np.array(0.25))
    before = plateau.state_dict()
    with pytest.raises(ConfigError, match=r"schedules.Plateau: `metric` is .*expected a number"):
        plateau.update(metric)
    assert plateau.state_dict() == before and before["best"] == 0.25


def test_an_infinite_metric_is_never_the_best():
    plateau = s.Plateau(0.1, patience=100)
    for metric in (-math.inf, math.inf, math.nan):
        plateau.update(metric)
    assert plateau.state_dict() == {"value": 0.1, "best": None, "bad": 3, "resting": 0}


BAD_STATES = [
    None, [], {}, {"value": 0.1}, {"value": 0.1, "best": None, "bad": 0, "resting": 0, "more": 1},
    *({"value": 0.1, "best": None, "bad": 0, "resting": 0} | change for change in [
        {"value": math.nan}, {"value": 0.2}, {"value": 0.001}, {"value": "0.1"}, {"value": None}, {"best": math.inf},
        {"best": "x"}, {"bad": -1}, {"bad": 1.0}, {"resting": True}, {"resting": None},
    ]),
]  # fmt: skip


@pytest.mark.parametrize("state", BAD_STATES, ids=str)
def test_plateau_refuses_a_damaged_state(state):
    plateau = s.Plateau(0.1, floor=0.01)
    plateau.update(3.0)
    before = plateau.state_dict()
    with pytest.raises(CheckpointError, match=r"schedules\.Plateau: "):
        plateau.load_state_dict(state)
    assert plateau.state_dict() == before


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_call_is_cheap(name):
    # measured 0.08 to 0.45 us; the limit leaves room for slow and busy machines, and still finds an accident such as
    # validation in the call
    best = min(timeit.repeat(lambda: ALL[name](12_345), number=2_000, repeat=5)) / 2_000
    assert best < 5e-6
