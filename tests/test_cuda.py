"""The CUDA target without a GPU: the PTX of every rule is read, assembled, and executed against the CPU kernel."""

import itertools
import re
import shutil
import subprocess
import sys

import numpy as np
import ptx as interpreter
import pytest

import fastopt as fo
from fastopt import scratch
from fastopt.errors import DeviceError
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.targets import cuda, toolkit

try:
    toolkit.require()
    MISSING = ""
except DeviceError as error:
    MISSING = str(error)
needs_numba_cuda = pytest.mark.skipif(bool(MISSING), reason=MISSING)

F4, F8 = np.dtype("f4"), np.dtype("f8")
DTYPES = {"f4": (F4, F4), "f8": (F8, F8), "f4-f8": (F4, F8), "f8-f4": (F8, F4)}
VARIANTS = [
    (rule, tuple(zip(rule.switches, truth, strict=True)))
    for rule in CATALOGUE.values()
    if rule is not fo.sgld
    for truth in itertools.product((False, True), repeat=len(rule.switches))
    if not lower(rule, tuple(zip(rule.switches, truth, strict=True))).slots  # the target has no totals and numbers yet
]


def label(variant):
    rule, chosen = variant
    return "-".join([rule.name, *(n for n, on in chosen if on)])


def entry(text):
    return text[text.index(".entry") :]


@needs_numba_cuda
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_ptx_has_vector_accesses_and_nothing_it_should_not_have(variant):
    rule, chosen = variant
    low = lower(rule, chosen)
    for capability in [(9, 0)] if rule.name != "adamw" else [(7, 5), (8, 0), (9, 0), (10, 0)]:
        text = cuda.ptx(rule.name, low, F4, F4, capability)
        assert f".target sm_{capability[0]}{capability[1]}" in text
        body = entry(text)
        wide = re.findall(r"\b(ld|st)\.global\.v4\.[fb]32", body)  # sm_100's compiler writes b32
        assert wide.count("ld") == len(low.passes[0].loads), "one 16-byte load per buffer"
        assert wide.count("st") == len(low.passes[0].stores)
        assert ".f64" not in body, "a float64 has crept in"
        assert ".local" not in text and "call" not in body
        assert not re.search(r"\b(ld|st)\.(f32|v4)", body), "a generic access"
        assert not re.search(r"\b(div|rem)\.[us]64", body), "a 64-bit division"
        assert "fma.rn.f32" in body or rule.name == "rprop"  # which adds no product
        assert "fma" not in entry(cuda.ptx(rule.name, low, F4, F4, (9, 0), precise=True))
    double = entry(cuda.ptx(rule.name, low, F8, F8, (9, 0)))
    # at least: where a choice by a column is worth a branch, both sides have loads of their own
    assert double.count("ld.global.v2.f64") >= len(low.passes[0].loads)


@needs_numba_cuda
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not installed")
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_ptxas_spills_nothing(variant, tmp_path, record_property):
    rule, chosen = variant
    text = cuda.ptx(rule.name, lower(rule, chosen), F4, F4, (9, 0))
    text = re.sub(r"^\.version .*$", ".version 8.0", text, flags=re.M)  # NVVM may be newer than this ptxas
    file = tmp_path / "kernel.ptx"
    file.write_text(text)
    done = subprocess.run(
        ["ptxas", "-v", "-arch=sm_90", file, "-o", tmp_path / "kernel.cubin"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr and "0 bytes stack frame" in done.stderr
    registers = int(re.search(r"Used (\d+) registers", done.stderr).group(1))
    record_property("registers", registers)
    assert registers <= 80, "three blocks of 256 threads no longer fit on a multiprocessor"


def options(rule, chosen):
    values = {n: on if rule.schema[n].boolean else 0.8 * on for n, on in chosen}
    return {**({"weight_decay": 0.1} if "weight_decay" in rule.schema else {}), **values}


def make(variant, dtypes, seed=0):
    """An optimizer with ragged, unaligned and empty parameters in two groups, and its gradients."""
    rule, chosen = variant
    of_p, of_g = dtypes
    rng = np.random.default_rng(seed)

    def unaligned(n, dtype):
        raw = np.zeros(n + 1, dtype)
        shift = 1 if raw.ctypes.data % 16 == 0 else 0
        return raw[shift : shift + n]

    params, grads = {}, {}
    for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 31, 70):
        for kind, new in ("aligned", lambda n, d: np.zeros(n, d)), ("unaligned", unaligned):
            p, g = new(n, of_p), np.zeros(n, of_g) if kind == "aligned" else unaligned(n, of_g)
            p[...], g[...] = rng.standard_normal(n), rng.standard_normal(n)
            params[f"{kind}{n}"], grads[f"{kind}{n}"] = p, g
    grads["aligned31"][3:9] = 0, np.inf, -np.inf, np.nan, 1e-30, -1e-30  # also squares below the normal range
    other = fo.Group("*7*", lr=0.03, weight_decay=0.2, maximize=True)
    try:
        return params, grads, rule(params, groups=[other], **options(rule, chosen))
    except fo.ConfigError as error:
        pytest.skip(f"no such variant: {error}")


@needs_numba_cuda
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_executed_ptx_has_the_bits_of_the_cpu(variant, dtypes, monkeypatch):
    monkeypatch.setattr(scratch, "CHUNK", 24)
    rule, chosen = variant
    params, grads, cpu = make(variant, dtypes)
    twin_params, twin_grads, twin = make(variant, dtypes)
    for step in range(2):
        cpu.step(grads)
        # the very tables of a CPU launch, given to the CUDA kernel instead
        twin._gradients.read(twin_grads)
        ready = twin._aim(None)
        (launch,) = ready.launches
        launch.write_hyper(twin._settings, step + 1)
        tables = [launch.work, launch.addresses, launch.hyper]
        states = [a for s in twin._segments for a in s.state.values()]
        text = cuda.ptx(rule.name, lower(rule, chosen), *dtypes, (9, 0), precise=True)
        widest = interpreter.run(
            text,
            [len(launch.work), *(t.ctypes.data for t in tables)],
            [*tables, *twin_params.values(), *twin_grads.values(), *states],
            blocks=2,
            threads=3,
        )
        assert widest == {"ld": 16, "st": 16}
        twin._clock[0] += 1  # the launch's own counting is the CPU kernel's
        twin._clock[2:] += 1
    for name, p in params.items():
        assert p.tobytes() == twin_params[name].tobytes(), name
        for state in cpu.state:
            assert cpu.state[state][name].tobytes() == twin.state[state][name].tobytes(), (state, name)


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_source_reads_like_the_formula(variant):
    rule, chosen = variant
    text = fo.source(rule, "cuda", **dict(chosen))
    compile(text, rule.name, "exec")
    for line in lower(rule, chosen).passes[0].body:
        assert f"    {line}\n" in text


def test_without_numba_cuda_the_error_says_how_to_get_it(monkeypatch):
    import numba

    monkeypatch.delattr(numba, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    with pytest.raises(DeviceError, match=r'needs numba-cuda: pip install "fastopt\[cu13\]"'):
        toolkit.require()
