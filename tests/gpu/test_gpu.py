"""On a real device: the bits of the CPU, streams, graphs, many and huge tensors, skipped steps, a whole training run.

Everything here also runs, on small arrays, through the fake driver of tests/test_device.py.
"""

import numpy as np
import pytest

import fastopt as fo
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.targets import driver


def missing():
    """What keeps these tests from running; "" on a machine with a device."""
    try:
        driver.get()
    except fo.DeviceError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=missing())]


def plain(rule):
    """Can its defaults run on flat arrays, with no call of functions of matrices?"""
    low = lower(rule, tuple((n, False) for n in rule.switches))
    return not (low.shaped or low.matrices)


def options(rule):
    needed = {n: 0.01 for n, default in rule.hyper.items() if default is ...}
    return {**({"weight_decay": 0.1} if "weight_decay" in rule.schema else {}), **needed}


def fill(packed, g):
    for k, x in g.items():
        packed.grads[k] = x


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was built without CUDA, or finds no device")
    return torch


@pytest.mark.parametrize("rule", [r for r in CATALOGUE.values() if plain(r)], ids=lambda r: r.name)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_parity_with_the_cpu(rule, dtype):
    rng = np.random.default_rng(0)
    host = {f"p{n}": rng.standard_normal(n).astype(dtype) for n in (0, 1, 3, 31, 1000, 100_003)}
    packed = fo.pack(host, device="cuda")
    opt, twin = fo.Optimizer(rule, host, **options(rule)), fo.Optimizer(rule, packed, precise=True, **options(rule))
    for _ in range(5):
        g = {k: rng.standard_normal(x.shape).astype(dtype) for k, x in host.items()}
        fill(packed, g)
        opt.step(g), twin.step()
    sums = lower(rule, tuple((n, False) for n in rule.switches)).slots
    for k in host:
        a, b = host[k], packed[k].copy_to_host()
        if sums:  # the order of additions differs
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:  # columns come from the device's log and expm1, which may differ from the host's in the last bit
            np.testing.assert_allclose(a, b, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_same_bits_for_every_run():
    def run():
        rng = np.random.default_rng(1)
        packed = fo.pack({"w": rng.standard_normal((300, 70)).astype("f4")}, device="cuda")
        opt = fo.adamw(packed)
        for _ in range(20):
            fill(packed, {"w": rng.standard_normal((300, 70)).astype("f4")})
            opt.step()
        return packed["w"].copy_to_host().tobytes()

    assert run() == run()


def test_parity_with_torch(torch):
    torch.manual_seed(0)
    mine = [torch.randn(s, device="cuda", requires_grad=True) for s in [(64, 33), (7,), ()]]
    theirs = [p.detach().clone().requires_grad_() for p in mine]
    opt = fo.adamw(mine, lr=1e-2, weight_decay=0.1)
    peer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=True)
    for _ in range(50):
        for p, q in zip(mine, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        opt.step([p.grad for p in mine])
        peer.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # 50 steps of float32, other order of operations


def test_the_current_stream_is_respected(torch):
    p = torch.zeros(1 << 22, device="cuda")
    opt = fo.sgd([p], lr=1.0)
    g = torch.zeros_like(p)
    stream = torch.cuda.Stream()
    for k in range(1, 50):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)  # the gradient is late
            g.fill_(float(k))
            opt.step([g])
    stream.synchronize()
    assert (p == -sum(range(1, 50))).all()
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    g.fill_(1.0)  # on the default stream; the step on `other` waits for it
    opt.step([g], stream=other)
    other.synchronize()
    assert (p == -sum(range(1, 50)) - 1).all()


def test_a_captured_step_follows_a_changed_learning_rate(torch):
    p, q = torch.ones(1000, device="cuda"), torch.ones(1000, device="cuda")
    g = torch.ones_like(p)
    opt, twin = fo.adamw([p], lr=0.1), fo.adamw([q], lr=0.1)
    opt.step([g]), twin.step([g])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step([g])
    for k in range(10):
        if k == 5:
            opt.set(lr=0.5), twin.set(lr=0.5)
        graph.replay()
        twin.step([g])
    torch.cuda.synchronize()
    assert torch.equal(p, q) and opt.t == twin.t == 11


def test_gradients_that_a_graph_makes(torch):
    layer = torch.nn.Linear(20, 3, device="cuda")
    params = list(layer.parameters())
    x = torch.randn(64, 20, device="cuda")
    opt = fo.adamw(params, lr=0.01)

    def work():
        layer.zero_grad(set_to_none=True)
        loss = layer(x).square().mean()
        loss.backward()
        opt.step([p.grad for p in params])
        return loss

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            first = work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = work()
    for _ in range(200):
        graph.replay()
    torch.cuda.synchronize()
    assert loss.item() < 0.5 * first.item() and opt.t == 203


def test_many_tensors():
    rng = np.random.default_rng(2)
    host = {f"p{k}": rng.standard_normal(k % 300).astype("f4") for k in range(2000)}
    packed = fo.pack(host, device="cuda")
    opt, twin = fo.lion(host), fo.lion(packed, precise=True)
    g = {k: rng.standard_normal(x.shape).astype("f4") for k, x in host.items()}
    fill(packed, g)
    opt.step(g), twin.step()
    assert len(twin._plan.calls) == 3
    assert all(packed[k].copy_to_host().tobytes() == host[k].tobytes() for k in host)


def test_more_than_2_31_elements():
    n = (1 << 31) + 4097
    try:
        packed = fo.pack([np.broadcast_to(np.float32(1), (n,))], device="cuda")
    except MemoryError as error:
        pytest.skip(f"two buffers of {4 * n:,} bytes do not fit: {error}")
    opt = fo.sgd(packed, lr=0.5)
    packed.grads[0] = 1.0
    opt.step()
    for part in (packed[0][:5], packed[0][(1 << 31) - 3 : (1 << 31) + 3], packed[0][n - 5 :]):
        assert (part.copy_to_host() == 0.5).all()


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(torch):
    p = torch.ones(1000, device="cuda")
    opt = fo.adamw([p], lr=0.1)
    control = torch.as_tensor(opt.control, device="cuda")
    for k in range(4):
        g = torch.ones_like(p)
        if k == 1:
            g[7] = float("inf")
        control[1] = (~torch.isfinite(g).all()).double()  # on the device: nobody waits
        before = p.clone()
        opt.step([g])
        assert torch.equal(before, p) == (k == 1)
    assert opt.t == 3


def test_other_libraries_see_state():
    cuda = pytest.importorskip("numba.cuda")
    packed = fo.pack([np.arange(5, dtype="f4")], device="cuda")
    assert cuda.as_cuda_array(packed[0]).copy_to_host().tolist() == [0, 1, 2, 3, 4]


def test_gradients_of_rows():
    rng = np.random.default_rng(0)
    host = {"w": rng.standard_normal((10_000, 33)).astype("f4"), "b": rng.standard_normal(7).astype("f4")}
    packed = fo.pack(host, device="cuda")
    opt, twin = fo.adagrad(host, lr=0.1), fo.adagrad(packed, lr=0.1, precise=True)
    for k in (0, 1, 100, 5_000, 50_000):
        indices, b = rng.integers(0, 10_000, k), rng.standard_normal(7).astype("f4")
        values = rng.standard_normal((k, 33)).astype("f4")
        there = fo.pack({"v": values, "b": b}, device="cuda")
        opt.step({"w": fo.rows(indices, values), "b": b})
        twin.step({"w": fo.rows(indices, there["v"]), "b": there["b"]})
    for name, p in host.items():
        assert packed[name].copy_to_host().tobytes() == p.tobytes()
        assert twin.state["s"][name].copy_to_host().tobytes() == opt.state["s"][name].tobytes()


def test_dlpack(torch):
    packed = fo.pack([np.arange(5, dtype="f4")], device="cuda")
    seen = torch.from_dlpack(packed[0])
    seen += 1
    torch.cuda.synchronize()
    assert packed[0].copy_to_host().tolist() == [1, 2, 3, 4, 5]


def test_a_freed_array_and_no_memory():
    cuda = pytest.importorskip("numba.cuda")
    x = cuda.to_device(np.ones(1 << 20, "f4"))
    opt = fo.sgd(fo.pack([np.ones(1 << 20, "f4")], device="cuda"), lr=0.1)
    opt.step([x])
    with pytest.raises(MemoryError):
        fo.pack([np.broadcast_to(np.float32(1), (1 << 42,))], device="cuda")
    opt.step([x])
    assert opt.t == 2


def test_a_thousand_steps_of_a_network_on_digits(torch):
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    x, y = (torch.as_tensor(a, device="cuda") for a in datasets.load_digits(return_X_y=True))
    x = x.float() / 16
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).cuda()
    params = dict(net.named_parameters())
    total = 1000
    opt = fo.adamw(
        params, lr=fo.schedules.cosine(peak=3e-3, warmup=50, total=total), groups=[fo.Group("*.bias", weight_decay=0.0)]
    )
    for k in range(total):
        rows = slice(k * 128 % 1400, k * 128 % 1400 + 128)
        loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
        net.zero_grad(set_to_none=True)
        loss.backward()
        opt.step({n: p.grad for n, p in params.items()})
    with torch.no_grad():
        accuracy = (net(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
    assert accuracy > 0.85 and opt.t == total  # a linear model reaches about 0.88 on these rows


def test_a_driver_knows_this_machine():
    gpu = driver.get()
    assert gpu.count() >= 1 and gpu.name(0) and gpu.capability(0) >= (5, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"rounding": "nearest"}, {"master": "kahan"}], ids=str)
def test_16_bits(torch, dtype, options):
    rng = np.random.default_rng(0)
    start = {f"p{n}": torch.tensor(rng.standard_normal(n), dtype=getattr(torch, dtype)) for n in (0, 1, 31, 100_003)}
    there = {k: x.cuda() for k, x in start.items()}
    opt = fo.adamw(start, lr=0.01, memory="16bit", **options)
    twin = fo.adamw(there, lr=0.01, memory="16bit", precise=True, **options)
    for _ in range(5):
        g = {k: torch.tensor(rng.standard_normal(x.shape), dtype=x.dtype) for k, x in start.items()}
        opt.step(g), twin.step({k: x.cuda() for k, x in g.items()})
    for k, x in start.items():  # columns may differ in the last bit, and then, rarely, so does a rounded number
        assert (x.view(torch.int16) != there[k].cpu().view(torch.int16)).sum() <= 1 + 1e-4 * x.numel()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_8_bits(rounding):
    rng = np.random.default_rng(0)
    host = {f"p{n}": rng.standard_normal(n).astype("f4") for n in (31, 4096, 100_003)}
    packed = fo.pack(host, device="cuda")
    options = {"lr": 0.01, "memory": "8bit", "rounding": rounding}
    opt, twin = fo.adamw(host, **options), fo.adamw(packed, precise=True, **options)
    for _ in range(5):
        g = {k: rng.standard_normal(x.shape).astype("f4") for k, x in host.items()}
        fill(packed, g)
        opt.step(g), twin.step()
    for s in ("m", "v"):  # made of g and of what was stored alone, with no logarithm of the device
        for k in host:
            assert twin.state[s][k].copy_to_host().tobytes() == opt.state[s][k].tobytes()
        for k in ("p4096", "p100003"):
            assert twin.state[f"{s}_scale"][k].copy_to_host().tobytes() == opt.state[f"{s}_scale"][k].tobytes()
    for k in host:
        np.testing.assert_allclose(packed[k].copy_to_host(), host[k], rtol=1e-6, atol=1e-6)
