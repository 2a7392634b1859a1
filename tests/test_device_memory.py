"""Memory of a CUDA device: packs, checkpoints, what other libraries see; and the cache of machine code."""

import numpy as np
import pytest
from cuda_twin import needs_numba_cuda
from device_twin import grads_of, numbers, pair, same, small, there
from fake_cuda import FakeDriver

import fastopt as fo
from fastopt.lower import lower
from fastopt.targets import driver

pytestmark = needs_numba_cuda
F4, F8 = np.dtype("f4"), np.dtype("f8")


def test_packed_on_the_device(gpu):
    host = small()
    packed = fo.pack(host, device="cuda")
    mirror = fo.pack(small())
    assert packed.flat.device == 0 and packed["w"].shape == (9, 5)
    assert all(packed[k].address % 256 == 0 for k in packed)
    twin, opt = fo.adamw(packed, precise=True), fo.adamw(mirror)
    for t in range(2):
        g = grads_of(host, t)
        for k in g:
            packed.grads[k] = g[k]
            mirror.grads[k] = g[k]
        opt.step(), twin.step()
    for k in host:
        assert packed[k].copy_to_host().tobytes() == mirror[k].tobytes()
    packed["b"] = 3.0
    packed["w"] = gpu.array(host["w"])
    assert (packed["b"].copy_to_host() == 3).all() and (packed["w"].copy_to_host() == host["w"]).all()
    assert (np.asarray(packed["w"]) == host["w"]).all()
    again = fo.pack(there(gpu, host))  # from the device to the device
    assert (again["w"].copy_to_host() == host["w"]).all()
    double = fo.pack(host, device="cuda", dtype="f8")
    assert double["w"].copy_to_host().dtype == F8
    with pytest.raises(fo.ConfigError, match=r"`b` has shape \(7,\)"):
        packed["b"] = np.ones(3)


def test_checkpoints_are_the_same_on_both(gpu):
    params = small()
    opt, twin, away = pair(gpu, fo.adam, params, amsgrad=True, lr=0.01)
    for t in range(3):
        g = grads_of(params, t)
        opt.step(g), twin.step(there(gpu, g))
    saved, mine = twin.state_dict(), opt.state_dict()
    for s, of in saved["state"].items():
        for n, a in of.items():
            assert type(a) is np.ndarray and a.tobytes() == mine["state"][s][n].tobytes()
    assert {k: v for k, v in saved.items() if k != "state"} == {k: v for k, v in mine.items() if k != "state"}
    fresh = fo.adam(there(gpu, numbers(away)), amsgrad=True, lr=0.01, precise=True)
    fresh.load_state_dict(mine)
    opt.load_state_dict(saved)
    g = grads_of(params, 9)
    opt.step(g), fresh.step(there(gpu, g))
    same(opt, fresh)


def test_state_starts_as_the_rule_says(gpu):
    opt, twin, _ = pair(gpu, fo.adagrad, small(), initial_accumulator_value=0.5)
    same(opt, twin)


def test_everything_is_freed(gpu):
    before = len(gpu.memory)
    opt = fo.adamw(fo.pack(small(), device="cuda"))
    opt.step()
    assert len(gpu.memory) > before
    del opt
    assert len(gpu.memory) == before


def test_arrays_look_like_arrays(gpu):
    packed = fo.pack(small(), device="cuda")
    w = packed["w"]
    told = w.__cuda_array_interface__
    assert told["shape"] == (9, 5) and told["typestr"] == "<f4" and told["data"] == (w.address, False)
    assert told["version"] == 3 and w.__dlpack_device__() == (2, 0)
    assert (w.ndim, w.size, w.nbytes, len(w)) == (2, 45, 180, 9)
    assert w[2:4].copy_to_host().tobytes() == w.copy_to_host()[2:4].tobytes()
    for call in (lambda: w[1], lambda: w[::2], lambda: len(packed["scale"])):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="cannot become"):
        w.reshape((3, 3))
    import copy

    with pytest.raises(TypeError, match="memory of this process"):
        copy.deepcopy(packed)


class Exported:
    """An array that speaks DLPack alone, and what cuda.core would make of it."""

    def __init__(self, array, strides=None):
        self.ptr, self.shape, self.dtype = array.address, array.shape, array.dtype
        self.strides, self.device_id, self.readonly = strides, 0, False

    def __dlpack_device__(self):
        return 2, self.device_id

    def __dlpack__(self):
        raise AssertionError("cuda.core asks for it")


def test_dlpack_in_and_out(gpu, monkeypatch):
    from types import SimpleNamespace

    from fastopt.devices import array, foreign

    asked = []

    class View:
        @staticmethod
        def from_dlpack(x, stream_ptr):
            assert stream_ptr == 1  # the default stream waits for the producer
            return x

        @staticmethod
        def from_cuda_array_interface(x, stream_ptr):
            asked.append((x, stream_ptr))
            return SimpleNamespace(__dlpack__=lambda **options: asked.append(options) or "capsule")

    for module in (array, foreign):
        monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(StridedMemoryView=View))
    params = small()
    opt, twin, away = pair(gpu, fo.adamw, params)
    g = grads_of(params, 0)
    opt.step(g)
    twin.step({k: Exported(x, {"w": (5, 1)}.get(k)) for k, x in there(gpu, g).items()})
    same(opt, twin)
    with pytest.raises(fo.GradientError, match="gradient of `w` is not C-contiguous"):
        twin.step({**there(gpu, g), "w": Exported(away["w"], (1, 9))})
    m = twin.state["m"]["w"]
    assert m.__dlpack__(stream=7, max_version=(1, 0)) == "capsule"
    assert asked == [(m, -1), {"stream": -1, "max_version": (1, 0)}]


def test_a_warm_first_step_compiles_nothing(gpu, monkeypatch):
    fo.adamw(there(gpu, small())).step(there(gpu, small()))
    other = FakeDriver()
    driver.install(other)
    monkeypatch.setattr("fastopt.targets.toolkit.ptx", None)
    fo.adamw(there(other, small())).step(there(other, small()))
    assert other.assembled == []


def test_a_damaged_or_outdated_cubin_is_made_again(gpu, monkeypatch):
    from fastopt import build
    from fastopt.targets import cubins

    opt = fo.adamw(there(gpu, small()))
    opt.step(there(gpu, small()))
    files = sorted(build.cache_folder().glob("adamw_float32_cuda_*_kernel_sm90_*.cubin"))
    assert files
    for damage in (lambda d: d[:-9], lambda d: d[:40] + b"#" + d[41:], lambda d: b""):
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        other = FakeDriver()
        driver.install(other)
        fo.adamw(there(other, small())).step(there(other, small()))
        assert len(other.assembled) == 1
    other = FakeDriver()
    driver.install(other)
    monkeypatch.setattr(cubins, "tools", lambda: "a newer compiler")
    fo.adamw(there(other, small())).step(there(other, small()))
    assert len(other.assembled) == 3  # kernel, prologue, epilogue


def test_cubins_of_every_architecture():
    """What a real driver would load is machine code; here it can be made, not run."""
    from fastopt.targets import cuda, toolkit

    module = cuda.kernels("adamw", lower(fo.adamw, (("amsgrad", False),)), F4, F4)
    for capability in [(8, 0), (9, 0)]:
        assert toolkit.cubin(cuda.ptx(module, "kernel", capability), capability)[:4] == b"\x7fELF"
