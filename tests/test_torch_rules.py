"""`from_rule`: classes of rules, of wrapped rules and of a user's own, with the bits of the rule itself."""

import copy
import pickle

import numpy as np
import pytest
import torch
from test_torch import close, noise, one_thread, train, weights  # noqa: F401

import fastopt as fo
import fastopt.torch as ft
from fastopt.torch.make import RuleOptimizer


@fo.rule
def decayed(p, g, m, peak, *, lr, beta=0.9, warm=True, t):
    """A rule of a user's: a moving average, its largest norm as one number, a switch."""
    m = beta * m + (1 - beta) * g
    peak = fo.math.maximum(peak, fo.math.norm(m))
    rate = lr * fo.math.minimum(1, t / 3) if warm else lr
    return p - rate * m / (peak + 1e-6), m, peak


Decayed = ft.from_rule(decayed)


def test_from_rule_steps_as_the_rule_does():
    params = weights()
    arrays = [p.detach().numpy().copy() for p in params]
    opt, ref = Decayed([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], lr=0.1), None
    ref = decayed(arrays, lr=0.1, groups=[fo.Group("0", lr=0.5)])
    for t in range(4):
        train(opt, params, 1, start=t)
        ref.step([g.numpy() for g in noise(params, t)])
    for p, a in zip(params, arrays, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), a)  # the same kernel, so the same bits
    assert opt.state[params[0]]["peak"].dtype == torch.float64 and opt.state[params[0]]["m"].shape == (6, 5)
    assert Decayed.__name__ == "Decayed" and isinstance(opt, torch.optim.Optimizer)
    double = pickle.loads(pickle.dumps(opt))
    train(double, [p for g in double.param_groups for p in g["params"]], 1, start=4), train(opt, params, 1, start=4)
    close([p for g in double.param_groups for p in g["params"]], params)


def test_from_rule_refuses():
    params = weights()
    for call, error, says in [
        (lambda: ft.from_rule(len), fo.ConfigError, "expected a rule"),
        (lambda: ft.from_rule(fo.lion, state={"x": "y"}), fo.ConfigError, "has no state `x`"),
        (lambda: Decayed(params), TypeError, "lr"),
        (lambda: Decayed(params, lr=0.1, rate=1), TypeError, "rate"),
        (lambda: Decayed(params, lr=-1.0), fo.ConfigError, "`lr` is -1.0"),
        (lambda: Decayed([{"params": params, "beta": 1.5}], lr=0.1), fo.ConfigError, "`beta` is 1.5"),
        (lambda: ft.Lion(params, betas=(0.9,)), fo.ConfigError, "`betas`"),
        (lambda: ft.Lion([{"params": params, "beta1": 0.5}]), fo.ConfigError, "give `betas`"),
        (lambda: ft.Lion([]), ValueError, "empty parameter list"),
    ]:
        with pytest.raises(error, match=says):
            call()


CLASSES = [c for n in ft.__all__ if isinstance(c := getattr(ft, n), type) and issubclass(c, RuleOptimizer)]
MATRICES = ((6, 5), (4, 4), (3, 7))


def alike(made, shapes=MATRICES, steps=5, **hyper):
    """Train a class and its rule itself, and compare every bit; returns both."""
    params = weights(shapes=shapes)
    arrays = [p.detach().numpy().copy() for p in params]
    opt, ref = made(params, **hyper), made.rule(arrays, **hyper)
    for t in range(steps):
        train(opt, params, 1, start=t)
        ref.step([g.numpy() for g in noise(params, t)])
    for k, (p, a) in enumerate(zip(params, arrays, strict=True)):
        assert p.detach().numpy().tobytes() == a.tobytes()
        for state in made.rule.state:
            mine = opt.state[p].get(opt.kind.key(state))
            assert (mine is None) == (state not in ref.state or ref.state[state][k] is None), state
            if mine is not None:
                np.testing.assert_array_equal(mine.numpy(), ref.state[state][k])
    return opt, params, ref, arrays


@pytest.mark.parametrize("made", CLASSES, ids=lambda c: c.__name__)
def test_every_class_has_the_bits_of_its_rule_and_resumes(made):
    opt, params, _, _ = alike(made)
    assert made.__module__ == "fastopt.torch" and ft.__dict__[made.__name__] is made
    double = pickle.loads(pickle.dumps(opt))
    again = [p for g in double.param_groups for p in g["params"]]
    train(double, again, 2, start=5), train(opt, params, 2, start=5)
    assert [p.tolist() for p in again] == [p.tolist() for p in params]


@pytest.mark.parametrize(
    "rule, hyper",
    [
        (fo.clip_norm(fo.adamw), {"max_norm": 0.5}),
        (fo.ema(fo.adamw), {"decay": 0.9}),
        (fo.lookahead(fo.sgd), {"interval": 2}),
        (fo.cautious(fo.lion), {}),
        (fo.ema(fo.lookahead(fo.clip_norm(decayed))), {"max_norm": 1.0, "lr": 0.1}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_wrapped_rules_are_rules(rule, hyper):
    made = ft.from_rule(rule)
    assert made.__name__.isidentifier()
    before = weights(shapes=((6, 5), (7,), (), (0, 3)))
    opt, params, _, _ = alike(made, shapes=((6, 5), (7,), (), (0, 3)), **hyper)
    assert not torch.equal(params[0], before[0])
    saved = copy.deepcopy(opt.state_dict())
    other = made(params, **hyper)
    other.load_state_dict(saved)
    again = [p.detach().clone() for p in params]
    train(opt, params, 2, start=5)
    ends = [p.detach().clone() for p in params]
    for p, x in zip(params, again, strict=True):
        p.data.copy_(x)
    train(other, params, 2, start=5)
    assert [p.tolist() for p in params] == [x.tolist() for x in ends]


def test_clip_norm_is_over_all_groups():
    """A norm that belongs to all parameters: torch's clip_grad_norm_ before torch's AdamW."""
    params, theirs = weights(), weights()
    opt = ft.from_rule(fo.clip_norm(fo.adamw))(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], max_norm=0.5
    )
    ref = torch.optim.AdamW([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.1}])
    train(opt, params, 5)
    train(ref, theirs, 5, before=lambda t: torch.nn.utils.clip_grad_norm_(theirs, 0.5))
    close(params, theirs)


# ---- averages --------------------------------------------------------------------------------------------------------


EmaSGD = ft.from_rule(fo.ema(fo.sgd), "EmaSGD")


@pytest.mark.parametrize("made", [EmaSGD, ft.ScheduleFreeAdamW, ft.ScheduleFreeSGD], ids=lambda c: c.__name__)
def test_eval_shows_the_average_and_train_goes_back(made):
    opt, params, ref, arrays = alike(made)
    params.append(late := torch.nn.Parameter(torch.ones(3)))
    opt.add_param_group({"params": [late]})  # it has not moved
    training = [p.tolist() for p in params]
    opt.eval()
    ref.eval()
    opt.eval()
    assert [p.detach().numpy().tobytes() for p in params[:3]] == [a.tobytes() for a in arrays]
    assert [p.tolist() for p in params] != training and late.tolist() == [1, 1, 1]
    shown = [p.tolist() for p in params]
    for call in (opt.step, opt.state_dict, lambda: opt.load_state_dict({}), lambda: copy.deepcopy(opt)):
        with pytest.raises(fo.ConfigError, match=r"Call opt\.train\(\) first"):
            call()
    assert [p.tolist() for p in params] == shown
    opt.train()
    opt.train()
    ref.train()
    assert [p.tolist() for p in params] == training
    with pytest.raises(KeyError), opt.averaged():
        assert [p.tolist() for p in params] == shown
        raise KeyError
    assert [p.tolist() for p in params] == training
    params.pop()
    train(opt, params, 2, start=5)
    for t in (5, 6):
        ref.step([g.numpy() for g in noise(params, t)])
    assert [p.detach().numpy().tobytes() for p in params] == [a.tobytes() for a in arrays]


def test_ema_is_that_of_torchs_swa_utils():
    params = weights()
    theirs = torch.nn.ParameterList(weights())
    opt, ref = EmaSGD(params, lr=0.1, decay=0.9), torch.optim.SGD(theirs, lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for t in range(6):
        train(opt, params, 1, start=t), train(ref, list(theirs), 1, start=t)
        average.update_parameters(theirs)
    with opt.averaged():
        close(params, average.module)
    close(params, theirs)


def test_parameters_with_gaps_show_their_average_too():
    wide = torch.zeros(4, 6)
    p = torch.nn.Parameter(wide[:, ::2])
    opt = EmaSGD([p], lr=1.0, decay=0.5)
    for t in (1, 2):
        p.grad = torch.full((4, 3), float(t))
        opt.step()
    with opt.averaged():
        assert torch.equal(wide[:, ::2], torch.full((4, 3), -2.0))  # (-1 - 3) / 2
    assert torch.equal(wide[:, ::2], torch.full((4, 3), -3.0)) and not wide[:, 1::2].any()


def test_hooks_see_a_step_of_an_averaging_class_once():
    params, calls = weights(), []
    opt = EmaSGD(params)
    opt.register_step_post_hook(lambda o, a, k: calls.append("post"))
    train(opt, params, 1)
    assert calls == ["post"]
    assert not hasattr(ft.Lion, "eval")  # which shows nothing else
