"""Optimizers on a CUDA device, from `step` to the executed kernel, through a driver that needs no GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_twin import label, make, needs_numba_cuda, variants
from fake_cuda import FakeDriver

import fastopt as fo
from fastopt import math
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.targets import driver

pytestmark = needs_numba_cuda
F4, F8 = np.dtype("f4"), np.dtype("f8")


@pytest.fixture
def gpu():
    fake = FakeDriver()
    driver.install(fake)
    yield fake
    driver.install(None)


def there(gpu, tree, **told):
    """A dict of arrays on the device."""
    return {k: None if x is None else gpu.array(x, **told) for k, x in tree.items()}


def numbers(tree):
    return {k: x.get() if hasattr(x, "get") else x.copy_to_host() for k, x in tree.items() if x is not None}


def pair(gpu, rule, params, dtype=None, **options):
    """The same optimizer on the host and on the device, without fused multiply-add."""
    away = there(gpu, params)
    return rule(params, **options), rule(away, precise=True, **options), away


def same(opt, twin, rtol=0.0):
    twin._place.driver.synchronize(0)
    for name in opt.names:
        both = [(opt.params[name], twin.params[name].get())]
        both += [(opt.state[s][name], twin.state[s][name]) for s in opt.state if opt.state[s][name] is not None]
        for a, b in both:
            b = b if isinstance(b, np.ndarray) else b.copy_to_host()
            assert a.dtype == b.dtype and a.shape == b.shape
            if rtol:
                np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
            else:
                assert a.tobytes() == b.tobytes(), name
    assert opt.state_dict()["steps"] == twin.state_dict()["steps"] and opt.t == twin.t


def grads_of(params, t, dtype=None):
    rng = np.random.default_rng([t, 7])
    return {k: rng.standard_normal(x.shape).astype(dtype or x.dtype) for k, x in params.items()}


def small(dtypes=("f4", "f4", "f4")):
    rng = np.random.default_rng(3)
    shapes = {"w": (9, 5), "b": (7,), "scale": ()}
    return {k: rng.standard_normal(s).astype(d) for (k, s), d in zip(shapes.items(), dtypes, strict=True)}


# ---------------------------------------------------------------- steps
# one of each kind: noise, numbers as state, totals of one and of all parameters, rows and columns, matrices; the
# kernels of all rules are in test_cuda.py
KINDS = ("sgd", "sgld", "adamw", "ftrl", "nadam", "lamb", "adafactor", "prodigy", "schedule_free_adamw", "muon")


@pytest.mark.parametrize("variant", [next(variants([CATALOGUE[name]])) for name in KINDS], ids=label)
def test_rules_of_every_kind_step_as_on_the_host(gpu, variant):
    params, grads, opt = make(variant, steps=3)
    rule, _ = variant
    more = {n: v for n, v in opt._settings.own[-1].items()}
    groups = [fo.Group(p, **h) for p, h in zip(opt._settings.patterns[:-1], opt._settings.own[:-1], strict=True)]
    away = there(gpu, params)
    low = {s.lowered for s in opt._segments}
    if any(x.matrices for x in low):
        with pytest.raises(fo.DeviceError, match=f"`{rule.name}` calls functions of whole matrices"):
            rule(away, groups=groups, **more)
        return
    twin = rule(away, groups=groups, precise=True, **more)
    # sums are added up in another order in float64; everything else has the same bits
    sums = any(x.slots for x in low)
    names = list(params)
    for k, g in enumerate(grads):
        g = {n: (np.nan_to_num(x, posinf=1.0, neginf=-1.0) if sums else x) for n, x in g.items()}
        g = {n: None if k == 1 and n == names[0] else x for n, x in g.items()}
        opt.step(g)
        twin.step(there(gpu, g))
    same(opt, twin, rtol=1e-5 if sums else 0.0)


def test_dtypes_frozen_groups_and_missing_gradients(gpu):
    params = small(("f4", "f8", "f4"))
    groups = [fo.Group("b", frozen=True), fo.Group("s*", rule=fo.sgd, momentum=0.5, lr=0.1)]
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01, groups=groups)
    for t in range(4):
        g = grads_of(params, t, "f8" if t == 2 else None)  # float64 gradients are converted in the kernel
        g["w"] = None if t == 1 else g["w"]
        opt.step(g), twin.step(there(gpu, g))
    same(opt, twin)
    assert twin.state_dict()["steps"] == {"w": 3, "b": 0, "scale": 4}
    opt.step(dict.fromkeys(params)), twin.step(dict.fromkeys(params))  # nothing at all
    same(opt, twin)


@fo.rule
def clipped(p, g, *, lr=0.1):
    """Descent along a gradient of at most unit length, that of all parameters together."""
    n = math.norm(g, "all")
    return p - lr * g / (n if n > 1.0 else 1.0)


def test_a_total_over_all_parameters_reaches_every_launch(gpu):
    params = small(("f4", "f8", "f4"))  # two dtypes: two launches
    opt, twin, _ = pair(gpu, clipped, params)
    for t in range(2):
        g = grads_of(params, t)
        opt.step(g), twin.step(there(gpu, g))
        assert len(twin._plan.launches) == 2
    same(opt, twin, rtol=1e-6)


def test_the_benchmark_runs_dry_and_stores_nothing(tmp_path):
    out = tmp_path / "cuda.json"
    command = [sys.executable, "-m", "benchmarks.cuda", "--out", str(out)]
    root = Path(__file__).parent.parent
    done = subprocess.run([*command, "--fake"], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for what in ("copy on the device", "AdamW, 5 tensors", "AdamW 2^26, 2 blocks of 512", "adamw 2^8", "dry run"):
        assert what in done.stdout
    assert not out.exists()


def test_many_tensors_are_one_launch(gpu):
    rng = np.random.default_rng(0)
    params = {f"p{k}": rng.standard_normal(k % 7).astype("f4") for k in range(150)}
    opt, twin, _ = pair(gpu, fo.adamw, params)
    g = grads_of(params, 0)
    opt.step(g), twin.step(there(gpu, g))
    assert [n for what, _, n in gpu.log if what == "run"] == [3]  # prologue, kernel, epilogue
    same(opt, twin)


def test_the_same_gradients_cost_one_call_of_the_driver(gpu):
    params = there(gpu, small())
    g = there(gpu, small())
    opt = fo.adamw(params)
    opt.step(g)
    del gpu.log[:]
    opt.step(g)
    assert gpu.log == [("run", 0, 3)]
    opt.set(lr=0.5)
    opt.step(dict(g))  # the same arrays in another dict
    assert [what for what, *_ in gpu.log] == ["run", "copy", "run"]
    again = there(gpu, small())
    opt.step(again)
    assert [what for what, *_ in gpu.log[3:]] == ["copy", "run"]


def test_schedules_are_followed(gpu):
    params = small()
    lr = fo.schedules.cosine(peak=0.1, warmup=2, total=6)
    opt, twin, _ = pair(gpu, fo.adam, params, lr=lr)
    for t in range(5):
        g = grads_of(params, t)
        opt.step(g), twin.step(there(gpu, g))
    same(opt, twin)
    assert opt.hyper() == twin.hyper()


def test_scale_and_skip_on_the_device(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params)
    g = grads_of(params, 0)
    opt.step(g)
    twin.control[...] = np.array([0.25, 0.0, 0.0])
    twin.step(there(gpu, {k: x * 4 for k, x in g.items()}))  # powers of two: exact
    same(opt, twin)
    twin.control[...] = np.array([1.0, 1.0, 0.0])
    twin.step(there(gpu, {k: np.full_like(x, np.nan) for k, x in g.items()}))
    same(opt, twin)  # neither parameters nor the step count
    twin.control[...] = np.array([1.0, 0.0, 0.0])
    opt.step(g), twin.step(there(gpu, g))
    same(opt, twin)
    assert twin.t == 2
    with pytest.raises(fo.DeviceError, match="`control` is for parameters on a GPU"):
        _ = opt.control


# ---------------------------------------------------------------- streams and graphs
class Stream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def test_a_step_waits_for_the_streams_of_its_arrays(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.sgd, params, lr=0.5)
    g = grads_of(params, 0)
    late = there(gpu, {k: np.full_like(x, np.nan) for k, x in g.items()}, stream=77)
    for k, x in late.items():
        gpu.queue(77, lambda x=x, k=k: x.put(g[k]))  # its producer is not done yet
    twin.step(late, stream=5)
    opt.step(g)
    same(opt, twin)
    assert ("wait", 5, 77) in gpu.log and [s for what, s, _ in gpu.log if what == "run"] == [5]
    twin.step(late)  # without a stream: on that of the gradients
    assert gpu.log[-1] == ("run", 77, 3)
    opt.step(g)
    same(opt, twin)


@pytest.mark.parametrize(
    "stream, handle",
    [(9, 9), (Stream(9), 9), (type("T", (), {"cuda_stream": 8})(), 8), (type("C", (), {"ptr": 7})(), 7)],
)
def test_streams_of_every_library(gpu, stream, handle):
    opt = fo.sgd(there(gpu, small()), lr=0.5)
    opt.step(there(gpu, small()), stream=stream)
    assert gpu.log[-1] == ("run", handle, 3)


def test_what_is_no_stream_is_refused(gpu):
    opt = fo.sgd(there(gpu, small()), lr=0.5)
    for bad in ("s", -1, True):
        with pytest.raises(fo.ConfigError, match="stream is"):
            opt.step(there(gpu, small()), stream=bad)
    with pytest.raises(fo.ConfigError, match="in host memory, where there are no streams"):
        fo.sgd(np.ones(3)).step(np.ones(3), stream=3)


def test_a_captured_step_follows_t_and_a_changed_learning_rate(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01)
    held = there(gpu, small())

    def both(t, step):
        g = grads_of(params, t)
        gpu.synchronize(0)
        for k, x in held.items():
            x.put(g[k])
        opt.step(g)
        step()

    both(0, lambda: twin.step(held, stream=4))
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    same(opt, twin)  # nothing has run
    for t in range(1, 4):
        both(t, graph.replay)
    for o in (opt, twin):
        o.set(lr=0.5)
    both(4, graph.replay)
    same(opt, twin)
    assert twin.t == 5
    both(5, lambda: twin.step(there(gpu, grads_of(params, 5)), stream=4))  # in between, with other gradients
    both(6, graph.replay)
    same(opt, twin)


def test_gradients_made_inside_a_graph(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01)
    first = grads_of(params, 0)
    opt.step(first), twin.step(there(gpu, first), stream=4)
    inside = there(gpu, grads_of(params, 1))
    with gpu.capture(4) as graph:
        twin.step(inside, stream=4)
    other = grads_of(params, 2)
    opt.step(other), twin.step(there(gpu, other), stream=4)
    graph.replay()
    opt.step(grads_of(params, 1))
    same(opt, twin)


def test_schedules_reach_graphs_by_prepare(gpu):
    params = small()
    lr = fo.schedules.cosine(peak=0.1, warmup=2, total=8)
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=lr)
    g = grads_of(params, 0)
    held = there(gpu, g)
    opt.step(g), twin.step(held, stream=4)
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    for _ in range(3):
        opt.step(g)
        twin.prepare(stream=4)
        graph.replay()
    same(opt, twin)
    opt.prepare()  # on the host it does nothing


# ---------------------------------------------------------------- memory
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


# ---------------------------------------------------------------- the cache
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
