"""What can go wrong with a GPU: arrays elsewhere, memory gone or used up, kernels that fail later."""

import ml_dtypes
import numpy as np
import pytest
from cuda_twin import needs_numba_cuda
from fake_cuda import FakeDriver

import fastopt as fo
from fastopt.devices import foreign
from fastopt.targets import driver

pytestmark = needs_numba_cuda


@pytest.fixture
def gpu():
    fake = FakeDriver(devices=2)
    driver.install(fake)
    yield fake
    driver.install(None)


def small():
    rng = np.random.default_rng(3)
    return {"w": rng.standard_normal((9, 5)).astype("f4"), "b": rng.standard_normal(7).astype("f4")}


def there(gpu, tree, device=0, **told):
    return {k: gpu.array(x, device, **told) for k, x in tree.items()}


def everything(opt, params):
    opt._place.driver.synchronize(0)
    return (
        [x.get().tobytes() for x in params.values()],
        [a.copy_to_host().tobytes() for of in opt.state.values() for a in of.values()],
        (opt.t, opt.hyper()),
    )


def refused(opt, params, error, match, call):
    """The call raises, nothing has changed, and the next step works."""
    before = everything(opt, params)
    with pytest.raises(error, match=match):
        call()
    assert everything(opt, params) == before
    opt.step(there(opt._place.driver, small()))


# ---------------------------------------------------------------- construction
def test_parameters_that_cannot_be_updated_in_place(gpu):
    bad = [
        (gpu.array(np.ones(3, "i4")), fo.ArrayTypeError, "dtype int32; expected float32, float64, float16 or bfloat16"),
        (gpu.array(np.ones((4, 3), "f4"), strides=(4, 16)), fo.ArrayTypeError, "not C-contiguous"),
        (gpu.array(np.ones(3, "f4"), mask=1), fo.ArrayTypeError, "masked FakeArray"),
        (np.ones(3, "f4"), fo.DeviceError, "`bad` is in host memory, and `b` on a GPU"),
        (gpu.array(np.ones(3, "f4"), 1), fo.DeviceError, "`bad` is on cuda:1; others are on cuda:0"),
    ]
    readonly = gpu.array(np.ones(3, "f4"))
    readonly.told["data"] = (readonly.address, True)
    odd = gpu.array(np.ones(3, "f4"))
    odd.told["data"] = (odd.address + 1, False)
    freed = gpu.array(np.ones(3, "f4"))
    freed.free()
    bad += [
        (readonly, fo.ArrayTypeError, "`bad` is read-only"),
        (odd, fo.ArrayTypeError, "starts at no multiple of 4 bytes"),
        (freed, fo.DeviceError, "`bad`: a FakeArray at address .* it was freed"),
    ]
    for array, error, match in bad:
        before = len(gpu.memory)
        with pytest.raises(error, match=match):
            fo.adamw({"b": gpu.array(np.ones(2, "f4")), "bad": array})
        assert len(gpu.memory) == before + 1  # `b`
    shared = gpu.array(np.ones(8, "f4"))
    with pytest.raises(fo.ConfigError, match="`a` and `b` share memory"):
        fo.adamw({"a": shared, "b": shared})


def test_devices_that_do_not_fit(gpu):
    w = gpu.array(np.ones(3, "f4"))
    for device, match in [
        ("gpu", "expected 'auto', 'cpu', 'cuda' or 'cuda:1'"),
        (0, "expected 'auto'"),
        ("cuda:x", "expected 'auto'"),
        ("cuda:1", "device is 'cuda:1', but `params` is on cuda:0"),
        ("cpu", "`params` lives on a GPU"),
    ]:
        with pytest.raises(fo.DeviceError, match=match):
            fo.adamw(w, device=device)
    fo.adamw(w, device="cuda"), fo.adamw(w, device="cuda:0")
    with pytest.raises(
        fo.DeviceError, match=r"host memory, but device is 'cuda'.*fastopt.pack\(params, device='cuda'\)"
    ):
        fo.adamw(np.ones(3), device="cuda")
    with pytest.raises(fo.DeviceError, match="the last one here is cuda:1"):
        fo.pack(np.ones(3), device="cuda:2")
    assert fo.pack(np.ones(3), device="cuda:1").flat.device == 1
    with pytest.raises(fo.DeviceError, match=r"lives on a GPU \(FakeArray\), and device is 'cpu'"):
        fo.pack([np.ones(3, "f4"), w], device="cpu")
    with pytest.raises(fo.ConfigError, match="on the GPU is not float64"):
        fo.pack([w], dtype="f8")
    with pytest.raises(fo.ConfigError, match="`precise` is 1"):
        fo.adamw(w, precise=1)
    with pytest.raises(fo.DeviceError, match=r"params` lives on a GPU \(FakeArray\); expected an array in host"):
        fo.adamw(np.ones(3)).step(w)


@pytest.mark.parametrize("after", range(6))
def test_no_memory_leaves_nothing_half_built(gpu, after):
    params = there(gpu, small())
    before, bytes_before = len(gpu.memory), [x.get().tobytes() for x in params.values()]
    gpu.fail_alloc = after
    with pytest.raises(MemoryError) as caught:
        opt = fo.adamw(params)
        opt.step(there(gpu, small()))
        raise AssertionError("it was enough")
    if after < 2:
        assert f"no memory for state `{'mv'[after]}` of adamw" in str(caught.value)
    del caught  # its traceback holds what was built so far
    gpu.fail_alloc = None
    if after < 4:  # in the constructor
        assert len(gpu.memory) == before
    assert [x.get().tobytes() for x in params.values()] == bytes_before
    opt = fo.adamw(params)
    opt.step(there(gpu, small()))
    assert opt.t == 1


# ---------------------------------------------------------------- steps
def test_gradients_that_do_not_fit(gpu):
    params = there(gpu, small())
    opt = fo.adamw(params)
    opt.step(there(gpu, small()))
    freed = gpu.array(small()["b"])
    freed.free()
    for b, error, match in [
        (small()["b"], fo.DeviceError, "gradient of `b` is a ndarray in host memory; the parameter is on cuda:0"),
        (gpu.array(small()["b"], 1), fo.DeviceError, "gradient of `b` is on cuda:1; the parameter is on cuda:0"),
        (gpu.array(np.ones(8, "f4")), fo.GradientError, r"shape \(8,\); expected \(7,\)"),
        (gpu.array(np.ones(7, "i4")), fo.GradientError, "dtype int32"),
        (gpu.array(np.ones(14, "f4")[:7], strides=(8,)), fo.GradientError, "not C-contiguous"),
        (freed, fo.DeviceError, "gradient of `b`: .* it was freed"),
        (params["b"], fo.GradientError, "shares memory with a parameter or state"),
        (opt.state["m"]["b"], fo.GradientError, "shares memory with a parameter or state"),
    ]:
        g = {**there(gpu, small()), "b": b}
        refused(opt, params, error, match, lambda g=g: opt.step(g))
    refused(opt, params, fo.GradientError, "no parameter is called `c`", lambda: opt.step({**params, "c": 1}))
    refused(opt, params, fo.GradientError, "step\\(\\) needs gradients", opt.step)


def test_a_schedule_that_fails_changes_nothing(gpu):
    values = iter([0.1, 0.1, float("nan")])
    params = there(gpu, small())
    opt = fo.sgd(params, lr=lambda t: next(values, 0.1))
    opt.step(there(gpu, small()))
    before = [x.get().tobytes() for x in params.values()]
    opt.step(there(gpu, small()))
    gpu.synchronize(0)
    before = [x.get().tobytes() for x in params.values()]
    with pytest.raises(fo.ConfigError, match="the schedule of `lr` at step 3"):
        opt.step(there(gpu, small()))
    gpu.synchronize(0)
    assert [x.get().tobytes() for x in params.values()] == before and opt.t == 2
    opt.step(there(gpu, small()))


def test_what_failed_on_the_device_is_said_at_the_next_step(gpu):
    opt = fo.adamw(there(gpu, small()))
    g = there(gpu, small())
    opt.step(g)
    gpu.fail_run = 0
    opt.step(g)  # nothing is known yet
    with pytest.raises(
        fo.DeviceError, match=r"step 3 of `adamw` on cuda:0 failed: cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"
    ) as caught:
        opt.step(g)
    assert "an earlier kernel, of any library" in str(caught.value)
    with pytest.raises(fo.TornStateError):
        opt.step(g)
    with pytest.raises(fo.DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        opt.state["m"]["w"].copy_to_host()


def test_an_interrupt_between_two_launches_is_noticed(gpu):
    opt = fo.adamw(there(gpu, small()))
    g = there(gpu, small())
    opt.step(g)
    saved = opt.state_dict()
    run, gpu.run = gpu.run, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        opt.step(g)
    gpu.run = run
    assert opt.torn
    for call in (lambda: opt.step(g), opt.state_dict):
        with pytest.raises(fo.TornStateError):
            call()
    opt.load_state_dict(saved)
    opt.step(g)
    assert opt.t == 2


# ---------------------------------------------------------------- tensors
class Tensor:
    """A PyTorch tensor on a GPU, as far as fastopt looks at one."""

    is_cuda = True

    def __init__(self, array, dtype="torch.float32", contiguous=True):
        self.array, self.dtype, self.contiguous = array, dtype, contiguous
        self.shape, self.device = array.shape, type("D", (), {"index": array.device, "type": "cuda"})()

    def data_ptr(self):
        return self.array.address

    def is_contiguous(self):
        return self.contiguous

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


def test_tensors_are_read_without_the_array_interface(gpu, monkeypatch):
    current = [0]
    monkeypatch.setattr(foreign, "_is_tensor", lambda x: isinstance(x, Tensor))
    streams = {}
    monkeypatch.setattr(foreign, "torch_stream", lambda device: streams.setdefault(device, lambda: current[0]))
    host, start = small(), small()
    arrays = there(gpu, start)
    opt, twin = fo.adamw(host), fo.adamw({k: Tensor(x) for k, x in arrays.items()}, precise=True)
    g = {k: Tensor(x) for k, x in there(gpu, small()).items()}
    opt.step(small()), twin.step(g)
    assert gpu.log[-1] == ("run", 0, 3)
    current[0] = 12  # with torch.cuda.stream(...):
    opt.step(small()), twin.step(g)
    assert gpu.log[-1] == ("run", 12, 3)
    g["w"].array = gpu.array(2 * start["w"])  # g.data = other: the same tensor, other memory
    opt.step({"w": 2 * start["w"], "b": start["b"]}), twin.step(g)
    gpu.synchronize(0)
    assert all(arrays[k].get().tobytes() == host[k].tobytes() for k in host)
    with pytest.raises(fo.ArrayTypeError, match=r"`params`: an array of float8_e9; expected float32, float64, float16"):
        fo.adamw(Tensor(arrays["w"], "torch.float8_e9"))
    half = Tensor(gpu.array(start["w"].astype(ml_dtypes.bfloat16)), "torch.bfloat16")
    assert fo.adamw(half).state["m"].dtype == np.float32 and foreign.view(half, gpu).dtype == ml_dtypes.bfloat16
    with pytest.raises(fo.GradientError, match="gradient of `w` is not C-contiguous"):
        twin.step({**g, "w": Tensor(arrays["w"], contiguous=False)})
