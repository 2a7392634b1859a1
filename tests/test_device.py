"""Optimizers on a CUDA device, from `step` to the executed kernel, through a driver that needs no GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_twin import label, make, needs_numba_cuda, variants
from device_twin import grads_of, pair, same, small, there

import fastopt as fo
from fastopt import math
from fastopt.rules import CATALOGUE

pytestmark = needs_numba_cuda


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
    for what in (
        "copy on the device",
        "AdamW, 5 tensors",
        "AdamW 2^26, 2 blocks of 512",
        "in q8",
        "adamw 2^8",
        "dry run",
    ):
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
