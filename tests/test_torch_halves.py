"""bfloat16 and float16 parameters in the torch classes: computed in float32, rounded once, torch's states."""

import copy

import ml_dtypes
import numpy as np
import pytest
import torch
from test_torch import one_thread, through_file  # noqa: F401
from torch import nn

import fastopt as fo
import fastopt.torch as ft

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
MADE = {
    "SGD": dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adagrad": dict(lr=0.1),
    "RMSprop": dict(lr=0.05, momentum=0.9, eps=1e-3),
    "Adam": dict(lr=0.05, amsgrad=True),
    "AdamW": dict(lr=0.05, weight_decay=0.1),
    "NAdam": dict(lr=0.05),
    "RAdam": dict(lr=0.5),
    "Adamax": dict(lr=0.05),
    "Adadelta": dict(lr=1.0, eps=1e-3),
    "Rprop": dict(lr=0.05),
    "ASGD": dict(lr=0.1),
    "Muon": dict(lr=0.1),
}
SHAPES = ((6, 5), (4, 8))


def weights(dtype, shapes=SHAPES):
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(torch.bfloat16).to(dtype)) for s in shapes]


def train(opt, params, steps, start=0):
    for t in range(start, start + steps):
        rng = torch.Generator().manual_seed(50 + t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng).to(torch.bfloat16).to(p.dtype)
        opt.step()


def distance(params, exact):
    return torch.cat([(p.detach().double() - x.detach()).abs().flatten() for p, x in zip(params, exact, strict=True)])


@pytest.fixture
def by_kernels(monkeypatch):
    monkeypatch.setattr(ft.base.Fast, "_by_torch", lambda self, params, unscaled: pytest.fail("stepped by torch"))


@HALVES
@pytest.mark.parametrize("name", MADE)
def test_no_further_from_float64_than_torch(name, dtype, by_kernels):
    runs = {}
    for lib, kind in ((ft, dtype), (torch.optim, dtype), (torch.optim, torch.float64)):
        params = weights(kind)
        opt = getattr(lib, name)(params, **MADE[name])
        train(opt, params, 10)
        runs[lib, kind] = opt, params
    (opt, ours), (ref, theirs), (_, exact) = runs.values()
    mine, others = distance(ours, exact), distance(theirs, exact)
    assert mine.mean() < 1.25 * others.mean(), (mine.mean(), others.mean())  # roundings of 62 numbers, by luck
    assert mine.mean() < 0.1 * distance(weights(dtype), exact).mean()  # it has moved, and this way
    for k, state in ref.state_dict()["state"].items():
        saved = opt.state_dict()["state"][k]
        assert list(saved) == list(state)
        for key, value in state.items():
            if value is not None:
                assert (saved[key].dtype, saved[key].shape) == (value.dtype, value.shape), key


@HALVES
@pytest.mark.parametrize(
    "name", ["Adagrad", "Adam", "AdamW"]
)  # torch 2.13's fused SGD steps 16 bits wrongly on the CPU
def test_torchs_fused_loop_rounds_as_we_do(name, dtype):
    ours, theirs = weights(dtype), weights(dtype)
    opt, ref = getattr(ft, name)(ours, **MADE[name]), getattr(torch.optim, name)(theirs, **MADE[name], fused=True)
    train(opt, ours, 5), train(ref, theirs, 5)
    # a last place or two, where float32 rounds in another order
    torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    equal = torch.cat([(a == b).flatten() for a, b in zip(ours, theirs, strict=True)])
    assert equal.float().mean() > 0.8


@HALVES
def test_checkpoints_go_both_ways_and_resume_bit_for_bit(dtype):
    whole = weights(dtype)
    train(ft.AdamW(whole, lr=0.05, eps=0.1), whole, 8)
    for first, second in ((ft, ft), (torch.optim, ft), (ft, torch.optim)):
        params = weights(dtype)
        opt = first.AdamW(params, lr=0.05, eps=0.1)
        train(opt, params, 5)
        saved = through_file(opt.state_dict())
        opt = second.AdamW(params, lr=0.05, eps=0.1)
        opt.load_state_dict(saved)
        train(opt, params, 3, start=5)
        if first is second:
            assert all(map(torch.equal, params, whole))
        torch.testing.assert_close(params, whole, rtol=0.02, atol=0.02)


def codes(p):
    return p.detach().view(torch.int16).numpy()


@HALVES
@pytest.mark.parametrize("made", [ft.Lion, ft.LAMB, ft.NovoGrad, ft.SOAP], ids=lambda c: c.__name__)
def test_rules_without_a_twin_keep_float32_and_have_the_bits_of_the_rule(made, dtype):
    numpys = np.dtype(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else np.dtype(np.float16)
    params = weights(dtype)
    arrays = [codes(p).copy().view(numpys) for p in params]
    opt, ref = made(params, lr=0.01), made.rule(arrays, lr=0.01)
    for t in range(6):
        if t == 3:
            saved = through_file(opt.state_dict())
            opt = made(params, lr=0.01)
            opt.load_state_dict(saved)
        train(opt, params, 1, start=t)
        ref.step([codes(p.grad).view(numpys) for p in params])
    for k, p in enumerate(params):
        assert codes(p).tobytes() == arrays[k].tobytes()
        for state in made.rule.state:
            mine = opt.state[p][opt.kind.key(state)]
            assert mine.dtype in (torch.float32, torch.float64)
            np.testing.assert_array_equal(mine.numpy(), ref.state[state][k])


@HALVES
def test_every_kind_of_memory(dtype, by_kernels):
    """Gaps, axes in another order, float32 beside 16 bits, gradients in one buffer."""
    result = []
    for lib in (ft, torch.optim):
        wide = torch.arange(96.0).reshape(8, 12).to(dtype) / 64
        image = (torch.arange(120.0).reshape(2, 3, 4, 5) / 64).to(dtype).contiguous(memory_format=torch.channels_last)
        params = [nn.Parameter(x) for x in (wide[:, ::2], image, torch.ones(3), torch.ones(0, 2, dtype=dtype))]
        opt = lib.AdamW(params, lr=0.05, eps=0.1)  # where float16 holds 1e-8 and small squares badly
        if lib is ft:
            opt.use_flat_grads()
        for t in range(4):
            rng = torch.Generator().manual_seed(t)
            opt.zero_grad()
            sum((p * torch.randn(p.shape, generator=rng).to(p.dtype)).sum() for p in params).backward()
            opt.step()
        result.append([*params, wide])
    torch.testing.assert_close(*result, rtol=0.02, atol=0.01)
    lion = ft.Lion([nn.Parameter(image.detach())])
    for p in lion.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
        lion.step()
        assert lion.state[p]["exp_avg"].stride() == p.stride() and lion.state[p]["exp_avg"].dtype == torch.float32


@HALVES
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients(name, dtype, by_kernels):
    def run(lib, kind):
        p = nn.Parameter(torch.linspace(-1, 1, 120).reshape(20, 6).to(dtype).to(kind))
        opt = getattr(lib, name)([p], lr=0.1)
        for t in range(8):
            rng = torch.Generator().manual_seed(t)
            where = torch.randperm(20, generator=rng)[None, :7]
            values = torch.randn(7, 6, generator=rng).to(torch.bfloat16).to(kind)
            p.grad = torch.sparse_coo_tensor(where, values, (20, 6), check_invariants=True)
            opt.step()
        return [p]

    ours, exact, start = run(ft, dtype), run(torch.optim, torch.float64), torch.linspace(-1, 1, 120).reshape(20, 6)
    assert distance(ours, exact).mean() < 0.1 * distance([start], exact).mean()


def test_grad_scaler_keeps_gradients_that_float16_has_no_numbers_for():
    """2**-30 is 0 in float16; 2**-14 is not, and 2**16 is the scale."""
    ends = []
    for lib in (ft, torch.optim):
        p = nn.Parameter(torch.ones(4, dtype=torch.float16))
        opt = lib.AdamW([p], lr=0.1, eps=1e-12, weight_decay=0, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        for _ in range(3):
            opt.zero_grad()
            scaler.scale((p * 2.0**-14).sum() * 2.0**-16).backward()
            scaler.step(opt)
            scaler.update()
        ends.append(p)
    torch.testing.assert_close(*ends, rtol=2e-3, atol=2e-3)
    assert (ends[0] < 0.9).all() and not ends[0].grad.any()


@HALVES
def test_averages(dtype):
    p = nn.Parameter(torch.zeros(5, dtype=dtype))
    opt = ft.from_rule(fo.ema(fo.sgd))([p], lr=1.0, decay=0.5)
    for t in (1, 2):
        p.grad = torch.full((5,), float(t), dtype=dtype)
        opt.step()
    with opt.averaged():
        assert p.tolist() == [-2.0] * 5  # (-1 - 3) / 2
    assert p.tolist() == [-3.0] * 5 and opt.state[p]["e"].dtype == torch.float32


def test_a_model_in_bfloat16_learns():
    losses = []
    for lib in (ft, torch.optim):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).bfloat16()
        x = torch.randn(128, 8).bfloat16()
        y = torch.sin(x.sum(1, keepdim=True))
        opt = lib.AdamW(model.parameters(), lr=0.01)
        mine = []
        for _ in range(150):
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
            mine.append(loss.item())
        losses.append(mine)
    ours, theirs = (np.mean(x[-20:]) for x in losses)
    assert ours < 0.5 * losses[0][0] and ours < 1.2 * theirs
    assert copy.deepcopy(opt.state_dict())["state"][0]["exp_avg"].dtype == torch.bfloat16
