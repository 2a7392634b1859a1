"""The torch classes on a real device, beside torch's own there: tests/test_torch_cuda.py without its fake, and more."""

import pytest
import torch
import torch_cases as cases
from test_gpu import missing

import fastopt.torch as ft

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float16]
WHY = missing() or ("" if torch.cuda.is_available() else "PyTorch was built without CUDA, or finds no device")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=WHY)]
RULES = [n for n in ft.__all__ if n[0].isupper() and not hasattr(torch.optim, n) and n not in ("SOAP", "Shampoo")]


def there(x, number=0):
    """A copy on a device; a parameter stays one."""
    copy = x.detach().to(f"cuda:{number}", copy=True)
    return torch.nn.Parameter(copy) if isinstance(x, torch.nn.Parameter) else copy


@pytest.fixture
def gpu():
    devices = torch.cuda.device_count()
    return cases.Gpu(there, lambda x: x.detach().cpu(), torch.Tensor.get_device, there, devices=devices)


@pytest.mark.parametrize("name", [n for n in cases.OWN if n != "Muon"] + RULES)
def test_steps_as_on_the_host(gpu, name):
    cases.steps_as_on_the_host(gpu, name)


@pytest.mark.parametrize("name", [n for n in cases.OWN if n != "Muon"])
def test_checkpoints_go_to_torch_and_back(gpu, name):
    cases.goes_to_torch_and_back(gpu, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_of_every_kind(gpu, dtype):
    cases.memory_of_every_kind(gpu, dtype)


@pytest.mark.parametrize("fused", [None, True])
def test_scaled(gpu, fused):
    cases.scaled(gpu, fused)


@pytest.mark.parametrize("case", cases.OTHERS, ids=lambda c: c.__name__)
def test_whatever_else(gpu, case):
    case(gpu)


def test_the_current_stream(gpu):
    p = torch.nn.Parameter(torch.zeros(1 << 22, device="cuda"))
    p.grad = torch.zeros_like(p)
    opt = ft.SGD([p], lr=1.0)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for k in range(1, 50):
            torch.cuda._sleep(1_000_000)  # the gradient is late
            p.grad.fill_(float(k))
            opt.step()
        torch.cuda.current_stream().synchronize()
    assert (p == -sum(range(1, 50))).all()


def test_nobody_waits_in_a_step(gpu):
    """torch itself tells, where it is asked to; our own calls are those that the fake device watches."""
    params = cases.weights(there)
    opt = ft.AdamW(params, lr=0.1, fused=True)
    found, scale = torch.zeros((), device="cuda"), torch.full((), 2.0, device="cuda")
    grads = [[torch.ones_like(p) for p in params] for _ in range(6)]
    for t, mine in enumerate(grads):
        for p, g in zip(params, mine, strict=True):
            p.grad = g
        opt.grad_scale, opt.found_inf = scale, found
        torch.cuda.set_sync_debug_mode("error" if t else "default")
        try:
            opt.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [float(opt.state[p]["step"]) for p in params] == [6.0] * 4


def test_a_graph_is_torchs_or_refused(gpu):
    params = cases.weights(there)
    cases.give(params, 0, there)
    opt = ft.AdamW(params, lr=0.1)
    opt.step()
    torch.cuda.synchronize()
    with pytest.raises(Exception, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()
