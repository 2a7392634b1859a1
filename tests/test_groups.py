"""Groups, schedules and `set`: who gets what, when it is asked for, and what becomes of a bad value in mid-run."""

import numpy as np
import pytest
from conftest import flat, gradient, leaves_bytes, params, refused, trained, unflat
from test_gradients import edited

import fastopt as fo


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "nan"),
        (-1.0, "-1.0"),
        (float("inf"), "inf"),
        (None, "None"),
        ("0.1", "'0.1'"),
        (True, "True"),
        (np.ones(2), "array([1., 1.])"),
        (1j, "1j"),
    ],
    ids=str,
)
def test_a_schedule_that_turns_bad(value, says):
    opt = trained(lr=lambda t: 0.1 if t != 4 else value)
    before = leaves_bytes(opt)
    with pytest.raises(fo.ConfigError) as error:
        opt.step(unflat(opt.params, gradient(4)))
    assert "`lr`" in str(error.value) and says in str(error.value) and "4" in str(error.value)
    assert leaves_bytes(opt) == before and opt.t == 3
    opt.set(lr=0.1)
    opt.step(unflat(opt.params, gradient(4)))
    assert opt.t == 4


def test_a_schedule_that_raises_is_named_with_its_step_and_keeps_its_cause():
    def rate(t):
        if t == 4:
            raise KeyError("the user's own")
        return 0.1

    opt = trained(lr=rate)
    before = leaves_bytes(opt)
    with pytest.raises(fo.ConfigError, match=r"`lr` at step 4.*KeyError.*the user's own") as error:
        opt.step(unflat(opt.params, gradient(4)))
    assert isinstance(error.value.__cause__, KeyError)
    assert leaves_bytes(opt) == before and opt.t == 3
    opt.set(lr=0.1)
    opt.step(unflat(opt.params, gradient(4)))


def test_a_schedule_is_asked_for_every_step_once_in_order():
    seen = []

    def rate(t):
        seen.append(t)
        return 0.1

    opt = fo.adamw(params(), lr=rate)
    del seen[:]  # construction may look at the first step to check it
    for t in range(1, 6):
        opt.step(unflat(opt.params, gradient(t)))
    assert sorted(set(seen)) == [1, 2, 3, 4, 5] and seen == sorted(seen)
    assert all(type(t) is int for t in seen)


def test_groups_that_cannot_be_meant():
    p = params()
    with pytest.raises(fo.ConfigError, match=r"layer\.7") as error:
        fo.adamw(p, groups=[fo.Group("layer.7.*", lr=0.1)])
    assert "embed.weight" in str(error.value)  # the names there are
    with pytest.raises(fo.ConfigError):
        fo.adamw(p, groups=[fo.Group("layer.*", lr=0.1), fo.Group("layer.0.*", lr=0.2)])  # never reached
    with pytest.raises((fo.ConfigError, TypeError)):
        fo.adamw(p, groups=["layer.*"])
    with pytest.raises((fo.ConfigError, TypeError)):
        fo.Group(3, lr=0.1)
    opt = trained()
    refused(opt, fo.ConfigError, lambda: opt.set("layer.7.*", lr=0.1), "layer.7")
    refused(opt, fo.ConfigError, lambda: opt.hyper("layer.7.*"), "layer.7")


def test_first_match_wins_and_a_group_is_its_own_from_then_on():
    p = {"a": {"w": np.zeros(2), "bias": np.zeros(2)}, "b": np.zeros(2), "c": np.zeros(2)}
    opt = fo.sgd(p, lr=1.0, groups=[fo.Group("*.bias", lr=2.0), fo.Group("a.*", lr=3.0), fo.Group("b", frozen=True)])
    ones = {"a": {"w": np.ones(2), "bias": np.ones(2)}, "b": np.ones(2), "c": np.ones(2)}
    opt.step(ones)
    assert [p["a"]["bias"][0], p["a"]["w"][0], p["b"][0], p["c"][0]] == [-2, -3, 0, -1]
    opt.set("a.*", lr=10.0)  # a group by its pattern
    opt.step(ones)
    assert [p["a"]["bias"][0], p["a"]["w"][0], p["b"][0], p["c"][0]] == [-4, -13, 0, -2]
    opt.set(lr=0.5)  # the optimizer's own: groups with an lr keep theirs
    opt.step(ones)
    assert [p["a"]["bias"][0], p["a"]["w"][0], p["b"][0], p["c"][0]] == [-6, -23, 0, -2.5]
    opt.set("*.bias", weight_decay=0.5)  # a hyperparameter the group did not have
    assert opt.hyper("*.bias")["weight_decay"] == 0.5 and opt.hyper()["weight_decay"] == 0.0
    assert opt.hyper("*.bias")["lr"] == 2.0 and opt.hyper("a.*")["lr"] == 10.0


def test_a_frozen_parameter_needs_no_gradient_and_has_no_state():
    p = params()
    opt = fo.adamw(p, groups=[fo.Group("embed.*", frozen=True)])
    before = p["embed"]["weight"].copy()
    for grads in [edited("embed.weight", None), edited("embed.weight", gradient(1)[:1000].reshape(40, 25))]:
        opt.step(grads)
        assert p["embed"]["weight"].tobytes() == before.tobytes()
    assert opt.state["m"]["embed"]["weight"] is None


def test_switches_are_fixed_at_construction():
    opt = trained()
    refused(opt, fo.ConfigError, lambda: opt.set(amsgrad=True), "`amsgrad`")
    plain = fo.sgd(params(), momentum=0.0)
    with pytest.raises(fo.ConfigError, match="`momentum`"):
        plain.set(momentum=0.9)
    heavy = fo.sgd(params(), momentum=0.9)
    heavy.set(momentum=0.5)
    assert heavy.hyper()["momentum"] == 0.5


def test_weight_decay_may_go_to_zero_and_back():
    p, q = flat(params()), flat(params())
    opt, twin = fo.adam(p, weight_decay=0.0), fo.adam(q, weight_decay=0.5)
    opt.set(weight_decay=0.5)
    opt.step(gradient(1))
    twin.step(gradient(1))
    assert p.tobytes() == q.tobytes()


def test_a_single_group_is_asked_to_be_a_list():
    with pytest.raises(fo.ConfigError, match="groups is a Group; expected a list of"):
        fo.adam(np.ones(2), groups=fo.Group("*"))
