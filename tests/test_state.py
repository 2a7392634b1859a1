"""state_dict and load_state_dict: exact resume, all or nothing, and everything that does not fit is named."""

import copy

import numpy as np
import pytest

import fastopt as fo
from fastopt.rules import CATALOGUE

OPTIONS = {
    "sgd": {"momentum": 0.9, "dampening": 0.1},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "adam": {"amsgrad": True},
}


def make(rule, layout, **extra):
    rng = np.random.default_rng(5)
    params = {"w": rng.standard_normal((7, 3)).astype(np.float32), "b": rng.standard_normal((2, 2))}
    if layout == "packed":
        params = fo.pack(params, dtype=np.float32)
    lr = fo.schedules.cosine(peak=0.05, warmup=3, total=20)
    name = "weight_decay" if "weight_decay" in rule.schema else "lr"
    groups = [fo.Group("b", **{name: 0.1})]
    return params, rule(params, lr=lr, groups=groups, **OPTIONS.get(rule.name, {}), **extra)


def run(params, opt, steps, start):
    for t in range(start, start + steps):
        rng = np.random.default_rng(t)
        w = rng.standard_normal((7, 3)).astype(np.float32)
        b = None if t % 4 == 2 else rng.standard_normal((2, 2)).astype(params["b"].dtype)
        opt.step({"w": w, "b": b})


@pytest.mark.parametrize("layout", ["loose", "packed"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_resume_equals_uninterrupted_bit_for_bit(name, layout):
    whole, opt = make(CATALOGUE[name], layout)
    run(whole, opt, 9, 1)
    half, first = make(CATALOGUE[name], layout)
    run(half, first, 4, 1)
    saved = first.state_dict()
    frozen = copy.deepcopy(saved)
    run(half, first, 1, 99)  # the saved state is a copy: nothing done later touches it
    rest, second = make(CATALOGUE[name], layout)
    again, third = make(CATALOGUE[name], layout)
    run(again, third, 4, 1)
    for key in ("w", "b"):
        rest[key][...] = again[key]
    second.load_state_dict(saved)
    assert second.t == 4
    run(rest, second, 5, 5)
    for key in ("w", "b"):
        assert rest[key].tobytes() == whole[key].tobytes()
    for state in opt.state:
        for key in ("w", "b"):
            if opt.state[state][key] is None:  # a state of matrices alone, or of all but matrices
                continue
            assert second.state[state][key].tobytes() == opt.state[state][key].tobytes()
            if state in frozen["state"]:
                assert saved["state"][state][key].tobytes() == frozen["state"][state][key].tobytes()
    assert second.state_dict()["steps"] == {"w": 9, "b": 7}


def snapshot(params, opt):
    return [params[k].tobytes() for k in ("w", "b")], repr(opt.state_dict()), opt.hyper(), opt.t


def altered(d, change):
    d = copy.deepcopy(d)
    change(d)
    return d


UNFIT = {
    "not a state of format 1": lambda d: d.update(format=7),
    "has no `state`": lambda d: d.pop("state"),
    "is of rule `lion`": lambda d: d.update(rule="lion"),
    "`t` (-1)": lambda d: d.update(t=-1),
    "`t` (True)": lambda d: d.update(t=True),
    "`t` (9007199254740992)": lambda d: d.update(t=2**53),
    "differing: `c`": lambda d: d["steps"].update(c=1),
    "steps of `w`: 99, expected 0..3": lambda d: d["steps"].update(w=99),
    "state `m` of `w`: missing": lambda d: d["state"]["m"].pop("w"),
    "state `z` of `w`: not expected": lambda d: d["state"].update(z={"w": np.zeros(1)}),
    "state `v` of `b`: float64 (5,), expected float64 (2, 2)": lambda d: d["state"]["v"].update(b=np.zeros(5)),
    "state `m` of `w`: float64 (7, 3), expected float32 (7, 3)": lambda d: d["state"]["m"].update(w=np.zeros((7, 3))),
    "state `m` of `w`: str": lambda d: d["state"]["m"].update(w="x"),
    "groups: `*`, expected `b` and": lambda d: d["hyper"].pop("b"),
    "`weight_decay` of 'b': a schedule, which is not saved; build the optimizer with it": lambda d: d["hyper"][
        "b"
    ].update(weight_decay=None),
    "switches of 'b' differ": lambda d: d["hyper"]["*"].update(amsgrad=False),
    "unknown hyperparameter `nope`": lambda d: d["hyper"]["*"].update(nope=1.0),
    "`beta1` is 1.5": lambda d: d["hyper"]["*"].update(beta1=1.5),
}


@pytest.mark.parametrize("message", UNFIT)
def test_what_does_not_fit_is_named_and_changes_nothing(message):
    params, opt = make(fo.adam, "loose")
    run(params, opt, 3, 3)
    before = snapshot(params, opt)
    bad = altered(opt.state_dict(), UNFIT[message])
    with pytest.raises(fo.CheckpointError) as error:
        opt.load_state_dict(bad)
    assert message.replace(" and", "") in str(error.value)
    assert snapshot(params, opt) == before
    run(params, opt, 1, 3)


@pytest.mark.parametrize("junk", [None, 3, [], {}, "x"])
def test_junk_is_refused(junk):
    _, opt = make(fo.adam, "loose")
    with pytest.raises(fo.CheckpointError, match="expected what state_dict"):
        opt.load_state_dict(junk)


def test_every_difference_is_listed():
    _, opt = make(fo.adam, "loose")
    bad = opt.state_dict()
    del bad["state"]["m"]["w"], bad["state"]["v"]["b"]
    bad["steps"]["w"] = -3
    with pytest.raises(fo.CheckpointError) as error:
        opt.load_state_dict(bad)
    for part in ("state `m` of `w`", "state `v` of `b`", "steps of `w`"):
        assert part in str(error.value)


def test_numbers_set_during_a_run_come_back_and_schedules_keep_their_own_state():
    w = np.ones(3)
    plateau = fo.schedules.Plateau(0.1, patience=0)
    opt = fo.adam(w, lr=plateau)
    opt.set(beta1=0.5)
    plateau.update(1.0), plateau.update(2.0)
    saved = opt.state_dict()
    fresh = fo.schedules.Plateau(0.1, patience=0)
    other = fo.adam(np.ones(3), lr=fresh)
    other.load_state_dict(saved)
    assert other.hyper()["beta1"] == 0.5
    assert other.hyper()["lr"] == opt.hyper()["lr"] == plateau.value < 0.1


def test_a_number_set_over_a_schedule_comes_back_too():
    opt = fo.adam(np.ones(3), lr=fo.schedules.cosine(peak=0.1, total=10))
    opt.set(lr=0.5)
    again = fo.adam(np.ones(3), lr=fo.schedules.cosine(peak=0.1, total=10))
    again.load_state_dict(opt.state_dict())
    assert again.hyper()["lr"] == 0.5


def test_load_ends_a_torn_state():
    w = np.ones(3)
    opt = fo.adam(w)
    saved = opt.state_dict()
    opt._clock[1] = 1  # what an interrupt between two kernels leaves behind
    assert opt.torn
    for call in (lambda: opt.step(np.ones(3)), opt.state_dict):
        with pytest.raises(fo.TornStateError, match="load_state_dict"):
            call()
    assert (w == 1).all()
    opt.load_state_dict(saved)
    assert not opt.torn
    opt.step(np.ones(3))
    assert opt.t == 1
