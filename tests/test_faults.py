"""The fault catalogue: the exact exception, what its message names, and that a rejected call changed nothing at all.

Parameters: test_params.py; gradients: test_gradients.py; groups: test_groups.py; interrupts: test_interrupts.py.
"""

import warnings

import numpy as np
import pytest
from conftest import flat, gradient, leaves_bytes, params, refused, snapshot, trained, unflat

import fastopt as fo

NUMBERS = {
    "negative": (dict(lr=-1e-3), "`lr`", "-0.001"),
    "nan": (dict(lr=float("nan")), "`lr`", "nan"),
    "infinite": (dict(lr=float("inf")), "`lr`", "inf"),
    "bool": (dict(lr=True), "`lr`", "True"),
    "text": (dict(lr="0.1"), "`lr`", "'0.1'"),
    "none": (dict(lr=None), "`lr`", "None"),
    "complex": (dict(lr=1j), "`lr`", "1j"),
    "array": (dict(lr=np.ones(2)), "`lr`", "array([1., 1.])"),
    "beta one": (dict(beta1=1.0), "`beta1`", "1.0"),
    "beta above": (dict(beta2=1.5), "`beta2`", "1.5"),
    "beta below": (dict(beta1=-0.1), "`beta1`", "-0.1"),
    "eps": (dict(eps=-1e-8), "`eps`", "-1e-08"),
    "decay": (dict(weight_decay=-0.1), "`weight_decay`", "-0.1"),
    "huge": (dict(lr=10**400), "`lr`"),
    "switch": (dict(amsgrad=1), "`amsgrad`", "1"),
    "switch text": (dict(amsgrad="yes"), "`amsgrad`", "'yes'"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_hyperparameters_are_checked_at_construction_in_groups_and_in_set(case):
    hyper, *says = NUMBERS[case]
    p = params()
    before = flat(p).tobytes()
    with pytest.raises(fo.ConfigError) as error:
        fo.adamw(p, **hyper)
    assert all(s in str(error.value) for s in says), str(error.value)
    with pytest.raises(fo.ConfigError) as error:
        fo.adamw(p, groups=[fo.Group("layer.*", **hyper)])
    assert all(s in str(error.value) for s in says), str(error.value)
    assert flat(p).tobytes() == before
    opt = trained()
    refused(opt, fo.ConfigError, lambda: opt.set(**hyper), says[0])
    refused(opt, fo.ConfigError, lambda: opt.set("layer.*", **hyper), says[0])


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        ("sgd", dict(momentum=-0.1)),
        ("sgd", dict(dampening=float("nan"))),
        ("adagrad", dict(lr_decay=-1.0)),
        ("adagrad", dict(initial_accumulator_value=-1.0)),
        ("rmsprop", dict(alpha=-0.1)),
        ("rmsprop", dict(alpha=1.1)),
        ("rmsprop", dict(centered=1)),
        ("lion", dict(beta2=1.0)),
        ("lion", dict(beta1=float("nan"))),
    ],
    ids=str,
)
def test_hyperparameters_of_the_other_rules_are_checked_too(rule, hyper):
    with pytest.raises(fo.ConfigError, match=f"`{next(iter(hyper))}`"):
        getattr(fo, rule)(np.ones(3, "f4"), **hyper)


def test_a_beta_or_eps_that_the_compute_type_cannot_hold():
    """1 - 1e-12 is 1 in float32 and an eps of 1e-60 is 0: both silently change the rule."""
    for hyper in [dict(beta1=1 - 1e-12), dict(beta2=1 - 1e-12), dict(eps=1e-60)]:
        with pytest.raises(fo.ConfigError, match=f"`{next(iter(hyper))}`.*float32"):
            fo.adam(np.ones(3, "f4"), **hyper)
        fo.adam(np.ones(3, "f8"), **hyper)
        opt = fo.adam(np.ones(3, "f4"))
        with pytest.raises(fo.ConfigError, match="float32"):
            opt.set(**hyper)
        scheduled = fo.adam(np.ones(3, "f4"), **{k: lambda t, v=v: v for k, v in hyper.items()})
        with pytest.raises(fo.ConfigError, match="float32"):
            scheduled.step(np.ones(3, "f4"))
    fo.adam(np.ones(3, "f4"), eps=0.0)  # asked for, and exact


def test_unknown_names_get_a_hint():
    for call in [
        lambda: fo.adamw(params(), beta3=0.9),
        lambda: fo.Optimizer(fo.adamw, params(), beta3=0.9),
        lambda: fo.adamw(params(), groups=[fo.Group("layer.*", beta3=0.9)]),
        lambda: trained().set(beta3=0.9),
    ]:
        with pytest.raises(fo.ConfigError) as error:
            call()
        for says in ["`beta3`", "`adamw`", "lr", "weight_decay", "Did you mean `beta"]:
            assert says in str(error.value)
    with pytest.raises(fo.ConfigError, match="Did you mean `momentum`"):
        fo.sgd(params(), momentun=0.1)
    with pytest.raises(fo.ConfigError, match="maximize"):
        fo.sgd(params(), maximize=1)
    with pytest.raises((fo.ConfigError, fo.DeviceError), match="tpu"):
        fo.sgd(params(), device="tpu")
    with pytest.raises((fo.ConfigError, TypeError)):
        fo.Optimizer("adamw", params())


def test_number_types_of_lr_give_the_same_bits():
    results = set()
    for lr in [1, 1.0, np.float64(1), np.int64(1), np.float32(1), np.array(1.0), np.array(1)]:
        for given in [lr, lambda t, lr=lr: lr]:
            p = flat(params())
            fo.adamw(p, lr=given).step(gradient(1))
            results.add(p.tobytes())
    assert len(results) == 1


def test_a_failed_allocation_changes_nothing(monkeypatch):
    p = params()
    before = flat(p).tobytes()

    def no_memory(*args, **kwargs):
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        for name in ["empty", "zeros", "full", "zeros_like", "empty_like"]:
            patch.setattr(np, name, no_memory)
        with pytest.raises(MemoryError):
            fo.adamw(p)
    assert flat(p).tobytes() == before
    fo.adamw(p).step(unflat(p, gradient(1)))


def test_a_state_that_does_not_belong_is_refused_whole():
    opt = trained()
    group = [fo.Group("layer.*")]
    others = {
        "another rule": fo.lion(params(), groups=group),
        "other shapes": fo.adamw({**params(), "scale": np.zeros(2, "f4")}, groups=group),
        "other names": fo.adamw({**params(), "more": np.zeros(2, "f4")}, groups=group),
        "fewer names": fo.adamw({"layer": params()["layer"]}, groups=group),
        "other dtype": fo.adamw(params("float64"), groups=group),
        "other switches": fo.adamw(params(), groups=group, amsgrad=True),
        "other groups": fo.adamw(params()),
    }
    for case, other in others.items():
        saved = other.state_dict()
        before = snapshot(opt)
        with pytest.raises(fo.CheckpointError):
            opt.load_state_dict(saved)
        assert snapshot(opt) == before, case
    for bad in [{}, None, 3, [], {"t": 3}, "state"]:
        refused(opt, fo.CheckpointError, lambda bad=bad: opt.load_state_dict(bad))
    for t in [-1, 1.5, "3", None, True, 2**64, float("nan")]:
        refused(opt, fo.CheckpointError, lambda t=t: opt.load_state_dict({**opt.state_dict(), "t": t}), "t")


def test_a_saved_state_is_a_copy():
    opt = trained()
    saved = opt.state_dict()
    for t in range(4, 6):
        opt.step(unflat(opt.params, gradient(t)))
    again = fo.adamw(params(), groups=[fo.Group("layer.*")])
    again.load_state_dict(saved)
    assert again.t == 3 and leaves_bytes(again)[1:] == leaves_bytes(trained())[1:]
    again.step(unflat(again.params, gradient(1)))
    third = fo.adamw(params(), groups=[fo.Group("layer.*")])
    third.load_state_dict(saved)  # stepping `again` did not reach into `saved`
    assert leaves_bytes(third)[1:] == leaves_bytes(trained())[1:]


def test_errors_are_what_the_catalogue_says():
    bases = {
        fo.ConfigError: ValueError,
        fo.ArrayTypeError: TypeError,
        fo.GradientError: ValueError,
        fo.NonFiniteError: ArithmeticError,
        fo.TornStateError: RuntimeError,
        fo.ConcurrentUseError: RuntimeError,
        fo.CheckpointError: ValueError,
        fo.DeviceError: RuntimeError,
    }
    assert all(issubclass(e, fo.FastoptError) and issubclass(e, b) for e, b in bases.items())


def test_nothing_warns_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = trained()
        opt.hyper(), opt.groups, opt.state, opt.names, repr(opt), opt.num_parameters
