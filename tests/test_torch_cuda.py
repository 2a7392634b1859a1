"""The torch classes on CUDA tensors, by the library's kernels, on a fake GPU: `torch_cases`, and that nobody waits."""

import pytest
import torch
import torch_cases as cases
from cuda_twin import needs_numba_cuda
from posing import torch_on_fake
from test_torch import one_thread  # noqa: F401

import fastopt as fo
import fastopt.torch as ft

pytestmark = needs_numba_cuda
# one of each kind: no `step`, numbers as state, rows and columns, a rule without a twin; test_cuda has all kernels
NAMES = ["SGD", "AdamW", "NAdam", "Adafactor", "LAMB"]


@pytest.fixture
def posing(monkeypatch):
    with torch_on_fake(monkeypatch) as found:
        yield found


@pytest.fixture
def gpu(posing):
    return cases.Gpu(posing.cuda, posing.cpu, posing.device, cases.host, exact=True, devices=2)


@pytest.mark.parametrize("name", NAMES)
def test_steps_as_on_the_host(gpu, name):
    cases.steps_as_on_the_host(gpu, name)


@pytest.mark.parametrize("name", [n for n in NAMES if n in cases.OWN])
def test_checkpoints_go_to_torch_and_back(gpu, name):
    cases.goes_to_torch_and_back(gpu, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_memory_of_every_kind(gpu, dtype):
    cases.memory_of_every_kind(gpu, dtype)


def test_rounding_by_chance_is_the_same_wherever_parameters_are(gpu):
    cases.several_places(gpu, ft.Lion, torch.bfloat16, missing=9)


@pytest.mark.parametrize("fused", [None, True])
def test_scaled(gpu, fused):
    cases.scaled(gpu, fused)


@pytest.mark.parametrize("case", cases.OTHERS, ids=lambda c: c.__name__)
def test_whatever_else(gpu, case):
    case(gpu)


@pytest.mark.parametrize("name, fused", [("AdamW", True), ("NAdam", None), ("Adafactor", None)])
def test_nobody_waits_in_a_step(posing, name, fused):
    """Not with new gradients, another rate or a skipped step, either; and all is queued on torch's stream."""
    params = cases.weights(posing.cuda, shapes=cases.SHAPES[::2])
    opt = getattr(ft, name)(params, lr=0.1, **({"fused": True} if fused else {}))
    for t in range(6):
        cases.give(params, t, posing.cuda)
        if t == 3:
            opt.param_groups[0]["lr"] = 0.2
        if t > 3 and fused:
            opt.grad_scale, opt.found_inf = (posing.cuda(torch.tensor(x)) for x in (2.0, float(t == 4)))
        posing.gpu.log.clear()
        posing.waiting = t == 0
        opt.step()
        assert {stream for what, stream, *_ in posing.gpu.log if what == "run"} == {7}
        assert t == 0 or [what for what, *_ in posing.gpu.log].count("run") == 1
    posing.waiting = True
    assert [float(posing.cpu(opt.state[p]["step"])) for p in params] == [5.0 if fused else 6.0] * len(params)


def test_each_device_has_its_stream(posing):
    params = [posing.cuda(p, k % 2) for k, p in enumerate(cases.weights())]
    for k, p in enumerate(params):
        p.grad = posing.cuda(torch.ones(p.shape), k % 2)
    ft.AdamW(params).step()
    assert [stream for what, stream, *_ in posing.gpu.log if what == "run"] == [7, 11]


def test_a_graph_is_refused(posing):
    params = cases.weights(posing.cuda)
    opt = ft.AdamW(params)
    cases.train(opt, params, 2, posing.cuda)
    before = [posing.cpu(x) for x in cases.numbers(opt)]
    posing.gpu.unsafe += 1
    with posing.gpu.capture(7), pytest.raises(fo.DeviceError, match="capturable=True"):
        opt.step()
    assert all(torch.equal(posing.cpu(x), b) for x, b in zip(cases.numbers(opt), before, strict=True))


def test_what_is_missing_is_said_by_the_constructor(posing, monkeypatch):
    def none():
        raise fo.DeviceError("no NVIDIA driver was found: install one.")

    params = cases.weights(posing.cuda)
    monkeypatch.setattr("fastopt.targets.driver.get", none)
    with pytest.raises(fo.DeviceError, match=r"AdamW: parameter 0 .* install one. Or keep the parameters on the CPU"):
        ft.AdamW(params)
