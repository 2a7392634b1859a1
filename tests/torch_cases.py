"""What the torch classes do with tensors on a GPU, beside torch's own: the same cases for a real one and a fake."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import nn

import fastopt as fo
import fastopt.torch as ft

# class -> hyperparameters that keep every branch of a step at work
OWN = {
    "SGD": dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adagrad": dict(lr=0.1, lr_decay=0.1),
    "Adafactor": dict(lr=0.1, weight_decay=0.1),
    "RMSprop": dict(momentum=0.9, centered=True),
    "Adam": dict(lr=0.01, amsgrad=True),
    "AdamW": dict(lr=0.01, weight_decay=0.1),
    "NAdam": dict(lr=0.01),
    "RAdam": dict(lr=0.01, betas=(0.9, 0.6)),
    "Adamax": dict(lr=0.01),
    "Adadelta": {},
    "Rprop": {},
    "ASGD": dict(t0=2),
    "Muon": dict(lr=0.01),
}
SHAPES = ((6, 5), (7,), (4, 8), ())


@dataclass(frozen=True)
class Gpu:
    """A real one, or a fake.

    Attributes:
        cuda: a copy of a tensor on the device of a number, 0 unless given; `cpu`: one on the host.
        device: the number of a tensor's device, -1: the host.
        torchs: where torch's own class is asked what it does: there, too, or on the host.
        exact: do kernels have the bits of the CPU's? Otherwise they multiply and add in one rounding.
        devices: how many there are.
    """

    cuda: Callable
    cpu: Callable
    device: Callable
    torchs: Callable
    exact: bool = False
    devices: int = 1

    def same(self, ours, theirs):
        """Of numbers that kernels of one rule made here and on the host."""
        ours, theirs = ([self.cpu(x) for x in numbers] for numbers in (ours, theirs))
        if self.exact:
            # sums are added up in another order, in float64, and seldom show
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0, equal_nan=True)
        else:
            self.close(ours, theirs)

    def close(self, ours, theirs):
        """Of numbers of torch's own class: the same roundings in another order, a few steps long."""
        ours, theirs = ([self.cpu(x) for x in numbers] for numbers in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=5e-5, atol=2e-6)


def host(x):
    return x


def weights(there=host, dtype=torch.float32, shapes=SHAPES):
    rng = torch.Generator().manual_seed(0)
    return [there(nn.Parameter(torch.randn(s, generator=rng).to(dtype))) for s in shapes]


def noise(params, t):
    rng = torch.Generator().manual_seed(100 + t)
    return [torch.randn(p.shape, generator=rng).to(p.dtype) for p in params]


def give(params, t, there=host, scale=1.0):
    for p, g in zip(params, noise(params, t), strict=True):
        p.grad = there(scale * g)


def train(opt, params, steps, there=host, start=0):
    """Groups with values of their own that change, and a gradient that is missing now and then."""
    for t in range(start, start + steps):
        give(params, t, there)
        if t % 4 == 3:
            params[0].grad = None
        if t == 2:
            opt.param_groups[-1]["lr"] *= 0.5
        opt.step()


def numbers(opt):
    """Parameters, and all states that are tensors, in order."""
    params = list(chain.from_iterable(g["params"] for g in opt.param_groups))
    states = [x for p in params for x in opt.state[p].values() if isinstance(x, torch.Tensor)]
    return [*params, *states]


def made(lib, name, there):
    shapes = [s for s in SHAPES if len(s) == 2 or name not in ("Muon", "Adafactor")]
    params = weights(there, shapes=shapes)
    hyper = {"lr": 0.01, **OWN.get(name, {})}
    given = [{"params": params[:-1]}, {"params": params[-1:], "maximize": True}]
    if name == "Muon":
        del given[1]["maximize"]  # which it has not
    return getattr(lib, name)(given, **hyper), params


# ---- the cases: functions of a `Gpu` ---------------------------------------------------------------------------------


def steps_as_on_the_host(gpu, name):
    there, twin = made(ft, name, gpu.cuda), made(ft, name, host)
    train(*there, 6, gpu.cuda), train(*twin, 6)
    gpu.same(numbers(there[0]), numbers(twin[0]))
    assert [list(s) for s in there[0].state.values()] == [list(s) for s in twin[0].state.values()]


def goes_to_torch_and_back(gpu, name):
    """Checkpoints, both ways, in the middle of a run; states are as torch's own class makes them."""
    (opt, params), (ref, others) = made(ft, name, gpu.cuda), made(torch.optim, name, gpu.torchs)
    train(opt, params, 3, gpu.cuda), train(ref, others, 3, gpu.torchs)
    gpu.close(numbers(opt), numbers(ref))
    for p, q in zip(params, others, strict=True):
        for key, theirs in ref.state[q].items():
            ours = opt.state[p][key]
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride()), key
            if gpu.torchs is gpu.cuda and key != "mu_product":  # which torch's `load_state_dict` puts there, too
                assert ours.device == theirs.device, key
    (again, mine), (peer, its) = made(ft, name, gpu.cuda), made(torch.optim, name, gpu.torchs)
    for source, target, here in ((ref, again, mine), (opt, peer, its)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            for p, q in zip(here, numbers(source), strict=False):
                p.copy_(q)
    train(ref, others, 2, gpu.torchs, start=3)
    train(again, mine, 2, gpu.cuda, start=3)
    train(peer, its, 2, gpu.torchs, start=3)
    gpu.close(numbers(again), numbers(ref)), gpu.close(numbers(peer), numbers(ref))


def several_places(gpu, made=ft.AdamW, dtype=torch.float32, missing=2):
    """The host and each device in one optimizer. Of those on a device, a gradient is missing once."""
    places = [gpu.cuda, host, lambda x: gpu.cuda(x, gpu.devices - 1), gpu.cuda]
    result = []
    for on in (places, [host] * 4):
        params = [there(p) for there, p in zip(on, weights(dtype=dtype), strict=True)]
        opt = made([{"params": params[:2]}, {"params": params[2:], "maximize": True}], lr=0.01)
        for t in range(4):
            for k, (there, p, g) in enumerate(zip(on, params, noise(params, t), strict=True)):
                p.grad = None if t == missing and k != 1 else there(g)
            if t == 3:
                opt.param_groups[0]["lr"] = 0.5
            opt.step()
        result.append((opt, params))
    (opt, params), (_, others) = result
    assert [gpu.device(p) for p in params] == [0, -1, gpu.devices - 1, 0]
    assert [gpu.device(opt.state[p]["exp_avg"]) for p in params] == [0, -1, gpu.devices - 1, 0]
    steps = 4 - (missing < 4)
    assert [float(opt.state[p]["step"]) for p in params] == [steps, 4, steps, steps]
    gpu.same(params, others)


def memory_of_every_kind(gpu, dtype):
    """With gaps, in another order, complex, in 16 bits."""
    result = []
    for there in (gpu.cuda, host):
        rng = torch.Generator().manual_seed(3)
        wide, image = (torch.randn(s, generator=rng).to(dtype) for s in ((8, 12), (2, 3, 4, 5)))
        wide = there(wide)
        image = there(image.contiguous(memory_format=torch.channels_last))
        params = [nn.Parameter(wide[:, ::2]), nn.Parameter(image), nn.Parameter(wide[:, 1::2].t())]
        opt = ft.AdamW(params, lr=0.01)
        for t in range(3):
            give(params, t, lambda g, there=there: there(g.transpose(0, 1).contiguous().transpose(0, 1)))
            opt.step()
        result.append([wide, *(opt.state[p]["exp_avg"] for p in params), image])
        assert [opt.state[p]["exp_avg"].stride() for p in params] == [(6, 1), image.stride(), (8, 1)]
    if dtype.itemsize > 2 or gpu.exact:
        gpu.same(*result)
    else:
        torch.testing.assert_close(*([gpu.cpu(x) for x in numbers] for numbers in result), rtol=0.02, atol=0.02)


def scaled(gpu, fused):
    """A GradScaler, and steps that are left out. With `fused` the step unscales, and the host does not wait."""
    result = []
    for lib, there in ((ft, gpu.cuda), (torch.optim, gpu.torchs)):
        params = weights(there)
        opt = lib.AdamW(params, lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler(params[0].device.type, init_scale=64.0, growth_interval=2)
        for t in range(6):
            give(params, t, there)
            grads = [p.grad for p in params]
            opt.zero_grad()
            scaler.scale(sum((p * g).sum() for p, g in zip(params, grads, strict=True))).backward()
            if t in (2, 5):
                params[0].grad[0, 0] = float("inf")
            scaler.step(opt)
            scaler.update()
        give(params, 6, there)
        opt.step()  # without one
        steps = [opt.state[p]["step"] for p in params]
        result.append([*params, *(p.grad for p in params), *steps, torch.tensor(scaler.get_scale())])
    gpu.close(*result)
    opt_steps = result[0][-1 - len(SHAPES) : -1]
    assert [float(x) for x in opt_steps] == [5.0] * len(SHAPES)
    assert {gpu.device(x) for x in opt_steps} == {0 if fused else -1}


def scaled_by_torch(gpu):
    """`capturable` is torch's own: what a GradScaler leaves to a step goes to it as it is."""
    result = []
    for lib, there in ((ft, gpu.cuda), (torch.optim, gpu.torchs)):
        params = weights(there)
        opt = lib.AdamW(params, lr=0.1, fused=True, capturable=True)
        give(params, 0, there, scale=64.0)
        opt.grad_scale, opt.found_inf = there(torch.tensor(64.0)), there(torch.tensor(0.0))
        opt.step()
        result.append([*params, *(p.grad for p in params)])
    gpu.close(*result)


def flat_gradients(gpu):
    """All gradients in one buffer."""
    result = []
    for there in (gpu.cuda, host):
        torch.manual_seed(0)
        params = [there(p) for p in nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).parameters()]
        x, y = there(torch.randn(7, 5)), there(torch.randn(7, 3))
        opt = ft.AdamW(params, lr=0.1)
        opt.use_flat_grads()
        storage = params[0].grad.untyped_storage().data_ptr()
        assert all(p.grad.untyped_storage().data_ptr() == storage for p in params)
        assert gpu.device(params[0].grad) == gpu.device(params[0])
        for _ in range(5):
            opt.zero_grad()
            hidden = torch.tanh(nn.functional.linear(x, *params[:2]))
            ((nn.functional.linear(hidden, *params[2:]) - y) ** 2).mean().backward()
            opt.step()
        assert params[0].grad.untyped_storage().data_ptr() == storage
        result.append(params)
    gpu.close(*result)


def averages(gpu):
    """`eval()` and `train()`."""
    result = []
    for there in (gpu.cuda, host):
        params = weights(there)
        opt = ft.ScheduleFreeSGD(params, lr=0.1)
        train(opt, params, 3, there)
        kept = [gpu.cpu(p) for p in params]
        with opt.averaged():
            shown = [gpu.cpu(p) for p in params]
        assert all(torch.equal(gpu.cpu(p), k) for p, k in zip(params, kept, strict=True))
        assert not torch.equal(shown[0], kept[0])
        train(opt, params, 1, there, start=3)
        result.append([*shown, *params])
    gpu.same(*result)


def _backward(params):
    for p in params:
        p.grad = None
    loss = sum((p**4).sum() for p in params)
    loss.backward()
    return loss


def what_kernels_lack(gpu):
    """L-BFGS, matrices, torch's sparse gradients: torch's own step there, or an error before anything changes."""
    result = []
    for lib, there in ((ft, gpu.cuda), (torch.optim, gpu.torchs)):
        params = weights(there)
        opt = lib.LBFGS(params, lr=0.1, max_iter=3)
        opt.step(lambda params=params: _backward(params))
        result.append(params)
    gpu.close(*result)
    opt, params = made(ft, "Muon", gpu.cuda)
    ref, others = made(torch.optim, "Muon", gpu.torchs)
    train(opt, params, 2, gpu.cuda), train(ref, others, 2, gpu.torchs)
    assert all(torch.equal(gpu.cpu(p), gpu.cpu(q)) for p, q in zip(params, others, strict=True))
    for cls in (ft.SOAP, ft.Shampoo):
        params = weights(gpu.cuda, shapes=SHAPES[:1])
        give(params, 0, gpu.cuda)
        with pytest.raises(fo.ConfigError, match="function of whole matrices"):
            cls(params).step()
        assert torch.equal(gpu.cpu(params[0]), weights(shapes=SHAPES[:1])[0])
    result = []
    for lib, there in ((ft, gpu.cuda), (torch.optim, gpu.torchs)):
        table = there(nn.Parameter(torch.ones(5, 3)))
        opt = lib.SparseAdam([table], lr=0.1)
        for row in (1, 3, 1):
            values, index = there(torch.full((1, 3), row / 2)), there(torch.tensor([[row]]))
            table.grad = torch.sparse_coo_tensor(index, values, (5, 3), check_invariants=False)
            opt.step()
        result.append([table])
    gpu.close(*result)


Rows = ft.from_rule(fo.adagrad, "Rows")


def gradients_of_rows(gpu):
    """Those of a rule without a twin in torch: the kernels of rows, beside those of whole parameters."""
    result = []
    for there in (gpu.cuda, host):
        params = [there(nn.Parameter(torch.ones(s))) for s in ((3, 5), (7, 6), (3, 4, 2))]
        opt = Rows(params, lr=0.1)
        for t in range(4):
            rng = torch.Generator().manual_seed(t)
            params[0].grad = there(torch.randn(3, 5, generator=rng))
            for p, axes, n in ((params[1], 1, 5 * t), (params[2], 2, 2)):
                indices = torch.stack([torch.randint(k, (n,), generator=rng) for k in p.shape[:axes]])
                values = there(torch.randn(n, *p.shape[axes:], generator=rng))
                p.grad = torch.sparse_coo_tensor(there(indices), values, p.shape, check_invariants=False)
            opt.step()
        result.append(numbers(opt))
        before = [gpu.cpu(p) for p in params]
        outside = there(torch.tensor([[9]])), there(torch.ones(1, 6))
        params[1].grad = torch.sparse_coo_tensor(*outside, (7, 6), check_invariants=False)
        with pytest.raises(fo.GradientError, match="`parameter 1`: index 9"):
            opt.step()
        assert all(torch.equal(gpu.cpu(p), b) for p, b in zip(params, before, strict=True))
    gpu.same(*result)


def states_that_others_write(gpu):
    """In place, or other tensors in their stead; hooks see every step."""
    seen = []
    result = []
    for there in (gpu.cuda, host):
        params = weights(there)
        opt = ft.NAdam(params, lr=0.01)
        opt.register_step_pre_hook(lambda o, a, k: seen.append("pre"))
        opt.register_step_post_hook(lambda o, a, k: seen.append("post"))
        for t in range(6):
            if t == 1:
                opt.state[params[0]]["exp_avg"].mul_(2)
            if t == 2:
                opt.state[params[0]]["mu_product"].fill_(0.5)
            if t == 3:
                opt.state[params[1]]["step"].fill_(9)
            if t == 4:
                opt.state[params[2]]["exp_avg_sq"] = there(torch.ones(4, 8))
            if t == 5:
                params[0].data = params[0].data * 0.5
            give(params, t, there)
            opt.step()
        result.append(numbers(opt))
    gpu.same(*result)
    assert seen == ["pre", "post"] * 12


def states_in_fewer_bits(gpu):
    """8 bits, and the other half of a bfloat16: the same numbers as on the host, also after a checkpoint from there."""
    for dtype, given in (
        (torch.float32, {"memory": "8bit"}),
        (torch.bfloat16, {"memory": "8bit", "master": "split", "rounding": "nearest"}),
    ):
        there, here = (weights(place, dtype, ((70, 60), (7,))) for place in (gpu.cuda, host))
        opt, twin = (ft.AdamW(params, lr=0.01, **given) for params in (there, here))
        train(opt, there, 3, gpu.cuda), train(twin, here, 3)
        twin.load_state_dict({**opt.state_dict(), "state": moved(opt, gpu.cpu)})
        again = ft.AdamW(there, lr=0.01, **given)
        again.load_state_dict({**twin.state_dict(), "state": moved(twin, gpu.cuda)})
        train(again, there, 2, gpu.cuda, start=4), train(twin, here, 2, start=4)
        gpu.same(numbers(again), numbers(twin))
        assert (
            again.memory().state_bytes
            == twin.memory().state_bytes
            < 3.1 * 4207 + (2 * 4207 if "master" in given else 0)
        )


def moved(opt, there):
    saved = opt.state_dict()["state"]
    return {
        k: {n: there(x) if isinstance(x, torch.Tensor) and n != "step" else x for n, x in mine.items()}
        for k, mine in saved.items()
    }


OTHERS = (
    several_places,
    scaled_by_torch,
    flat_gradients,
    averages,
    what_kernels_lack,
    gradients_of_rows,
    states_that_others_write,
    states_in_fewer_bits,
)
