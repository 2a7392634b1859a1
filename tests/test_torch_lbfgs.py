"""`fastopt.torch.LBFGS` beside torch's: steps, counts, checkpoints in the middle of a run, what kernels cannot do."""

import copy
import pickle

import pytest
import torch
from test_torch import one_thread, through_file  # noqa: F401
from torch import nn

import fastopt as fo
import fastopt.torch as ft
from fastopt.torch.lbfgs import History

SHAPES = ((6, 5), (7,), (), (3, 4, 2))
KEYS = "func_evals n_iter al d t old_dirs old_stps ro H_diag prev_flat_grad prev_loss".split()  # torch's, in its order


def weights(dtype=torch.float64, shapes=SHAPES):
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng, dtype=dtype)) for s in shapes]


def closure(opt, params, seen=None):
    """Rosenbrock's function of all numbers in a row."""

    def evaluate():
        opt.zero_grad()
        x = torch.cat([(torch.view_as_real(p) if p.is_complex() else p).reshape(-1) for p in params])
        loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).mean()
        loss.backward()
        if seen is not None:
            seen.append(loss.item())
        return loss

    return evaluate


def descend(lib, params, steps, **given):
    opt, seen = lib.LBFGS(params, **given), []
    for _ in range(steps):
        opt.step(closure(opt, params, seen))
    return opt, seen


GIVEN = [
    dict(lr=0.02, history_size=4, max_iter=8),  # older pairs are forgotten
    dict(line_search_fn="strong_wolfe", max_iter=6),
    dict(lr=torch.tensor(0.5), line_search_fn="strong_wolfe", history_size=3, max_eval=9, tolerance_change=1e-3),
]


@pytest.mark.parametrize("given", GIVEN, ids=["fixed", "searched", "short"])
def test_torchs_numbers(given):
    ours, theirs = weights(), weights()
    opt, seen = descend(ft, ours, 4, **given)
    ref, expected = descend(torch.optim, theirs, 4, **given)
    # float64: sums in another order, amplified by a few dozen curved steps
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(seen, expected, rtol=1e-8, atol=1e-8)
    mine, states = opt.state_dict()["state"][0], ref.state_dict()["state"][0]
    assert sorted(mine) == sorted(states) == sorted(KEYS) and list(mine) == list(states)
    assert (mine["n_iter"], mine["func_evals"]) == (states["n_iter"], states["func_evals"]) and mine["n_iter"] > 8
    for key in set(KEYS) - {"al"}:
        torch.testing.assert_close(mine[key], states[key], rtol=1e-6, atol=1e-6, msg=key)
    assert opt.state_dict()["param_groups"] == ref.state_dict()["param_groups"]


def test_float32_over_several_steps():
    given = dict(lr=0.01, max_iter=5, history_size=5)
    params = [weights(torch.float32) for _ in range(2)]
    for lib, mine in zip((ft, torch.optim), params, strict=True):
        descend(lib, mine, 3, **given)
    torch.testing.assert_close(*params, rtol=1e-5, atol=1e-5)
    start = weights(torch.float32)
    assert all((p - x).abs().max() > 1e-3 for p, x in zip(params[0], start, strict=True))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_checkpoints_go_both_ways_and_resume(search):
    given = dict(lr=0.02 if search is None else 1.0, history_size=3, max_iter=4, line_search_fn=search)
    whole = weights()
    descend(ft, whole, 4, **given)
    for first, second in ((ft, ft), (torch.optim, ft), (ft, torch.optim)):
        params = weights()
        saved = through_file(descend(first, params, 2, **given)[0].state_dict())
        opt = second.LBFGS(params, **given)
        opt.load_state_dict(saved)
        for _ in range(2):
            opt.step(closure(opt, params))
        if first is second:
            assert [p.tolist() for p in params] == [p.tolist() for p in whole]  # every bit
        torch.testing.assert_close(params, whole, rtol=1e-8, atol=1e-8)
    opt = descend(ft, params := weights(), 2, **given)[0]
    for double in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):  # torch's own cannot step afterwards
        again = double.param_groups[0]["params"]
        for _ in range(2):
            double.step(closure(double, again))
        assert [p.tolist() for p in again] == [p.tolist() for p in whole]


def test_the_products_of_a_run_are_kept_unless_its_lists_change(monkeypatch):
    made, real = [], History.__init__
    monkeypatch.setattr(History, "__init__", lambda self, *args: (made.append(len(args[0])), real(self, *args))[1])
    params = weights()
    opt = descend(ft, params, 3, lr=0.02, max_iter=3)[0]
    assert made == [0]
    state = opt.state[params[0]]
    for key in ("old_dirs", "old_stps"):
        lists, n = state[key], len(state["ro"])
        lists[2] = lists[2] * 1.0
        made.clear()
        opt.step(closure(opt, params))
        assert made == [n] and n > 3

    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        opt.step(fails)  # before anything was changed
    opt.step(closure(opt, params))
    assert len(made) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: weights(torch.complex128, ((3, 4),)),
        lambda: [nn.Parameter(torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(6, 8)[:, ::2]), *weights()],
        lambda: weights(torch.bfloat16),
        lambda: [*weights(torch.float32, ((3,),)), *weights(torch.float64, ((5,),))],
    ],
    ids=["complex", "gaps", "bfloat16", "two dtypes"],
)
def test_every_kind_of_parameter(make):
    """The last two are none that kernels can step: then all is torch's own."""
    params = [make() for _ in range(2)]
    for lib, mine in zip((ft, torch.optim), params, strict=True):
        descend(lib, mine, 2, lr=0.01, max_iter=4)
    torch.testing.assert_close(*params, rtol=1e-6, atol=1e-6)
    assert not torch.equal(params[0][0], make()[0])


def test_gradients_that_are_missing_or_sparse_and_where_it_stops():
    ends = []
    for lib in (ft, torch.optim):
        a, b, c = weights(shapes=((4, 3), (5,), (2,)))
        opt = lib.LBFGS([a, b, c], lr=0.1, max_iter=6)

        def evaluate(a=a, b=b):
            a.grad, b.grad = (a.detach() - 1).to_sparse(1), b.detach() ** 3
            return ((a.detach() - 1) ** 2).sum() / 2 + (b.detach() ** 4).sum() / 4

        for _ in range(3):
            opt.step(evaluate)
        ends.append([a, b, c])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)
    for given in (dict(tolerance_grad=1e9), dict(tolerance_change=1e9), dict(max_iter=0), dict(max_eval=1)):
        counts = []
        for lib in (ft, torch.optim):
            params = weights()
            opt = descend(lib, params, 2, lr=0.01, **given)[0]
            counts.append(([opt.state[params[0]][k] for k in ("n_iter", "func_evals")], params))
        assert counts[0][0] == counts[1][0]
        torch.testing.assert_close(counts[0][1], counts[1][1], rtol=1e-10, atol=1e-10)


def test_a_state_of_another_model_is_refused():
    """Its vectors would be read past their ends."""
    params = weights()
    saved = descend(ft, params, 2, lr=0.01, max_iter=3)[0].state_dict()
    short = torch.zeros(3, dtype=torch.float64)
    for key, value in (
        ("d", short),
        ("prev_flat_grad", short),
        ("old_dirs", [short] * len(saved["state"][0]["ro"])),
        ("old_stps", []),
    ):
        bad = copy.deepcopy(saved)
        bad["state"][0][key] = value
        opt = ft.LBFGS(params)
        opt.load_state_dict(bad)
        before = [p.tolist() for p in params]
        with pytest.raises(fo.ConfigError, match=f"`{key}`"):
            opt.step(closure(opt, params))
        assert [p.tolist() for p in params] == before
    wide = [nn.Parameter(p.detach().clone()) for p in params]
    opt = ft.LBFGS(wide, lr=0.01, max_iter=3)
    opt.load_state_dict(saved)
    opt.step(closure(opt, wide))
    for p in wide:
        p.data = p.data.float()  # in the middle of a run
    opt.step(closure(opt, wide))
    assert opt.state[wide[0]]["d"].dtype == torch.float32


def test_hooks_and_errors_are_torchs():
    params, calls = weights(), []
    opt = ft.LBFGS(params, line_search_fn="golden")
    opt.register_step_post_hook(lambda *args: calls.append("post"))
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        opt.step(closure(opt, params))
    opt.param_groups[0]["line_search_fn"] = None
    opt.step(closure(opt, params))
    assert calls == ["post"]
    opt.add_param_group({"params": weights(shapes=((2,),))})
    with pytest.raises(AssertionError, match="exactly one param_group"):
        opt.step(closure(opt, params))
