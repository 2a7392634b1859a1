"""The CUDA target without a GPU: the PTX of every rule is read, assembled, and executed against the CPU kernel."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import test_passes
from cuda_twin import CAPABILITY, F4, F8, Twin, chosen, compare, label, make, needs_numba_cuda, same_bits, variants

import fastopt as fo
from fastopt import scratch
from fastopt.errors import DeviceError
from fastopt.lower import lower
from fastopt.rules import CATALOGUE
from fastopt.targets import cuda, toolkit

trust, chained, factored, by_rows, everywhere, counted = PASSES = [
    getattr(test_passes, n) for n in "trust chained factored by_rows everywhere counted_from_one".split()
]
EVERY = [*variants([*CATALOGUE.values(), *PASSES])]
VARIANTS = [v for v in variants(CATALOGUE.values()) if not lower(*v).slots]  # the others: test_cuda_totals.py
# One rule of each kind: elements alone, numbers as states, totals, rows and columns.
KINDS = [(fo.adamw, chosen(fo.adamw)), (counted, ()), (everywhere, ()), (by_rows, ())]
DTYPES = {"f8": (F8, F8), "f4-f8": (F4, F8), "f8-f4": (F8, F4)}
# What another machine's library computes: its last bits differ.
INEXACT = {"exp", "expm1", "log", "log1p", "sin", "cos", "tanh"}


def entry(text):
    return text[text.index(".entry") :]


def kernels(variant, dtypes=(F4, F4), capability=CAPABILITY, precise=True, only=""):
    """(name, grid, its pass, PTX) of a variant's kernels whose name begins with `only`."""
    rule, on = variant
    low = lower(rule, on)
    module = cuda.kernels(rule.name, low, *dtypes)
    for name, _, _, grid in (launch for launch in module.LAUNCHES if launch[0].startswith(only)):
        q = low.passes[int(name.rpartition("_")[2])] if "_" in name else low.passes[0]
        yield name, grid, q, cuda.ptx(module, name, capability, precise)


def float64_stays_outside(body, q):
    """In a float32 kernel it is for sums, for what `control` and numbers hold, and for nothing that elements need."""
    found = re.findall(r"^\s*(?:@!?%p\d+ )?((?:\w+\.)+f64\S*|ld\.global\.[bu]64|mov\.b64)\s+(.*);", body, re.M)
    sums = {"add.rn.f64", "mul.rn.f64", "fma.rn.f64", "mov.f64", "cvt.f64.f32", "selp.f64", "ld.shared.f64"}
    sums |= {"st.shared.f64", "st.global.f64"}
    allowed = {"ld.global.f64", "setp.neu.f64", "setp.eq.f64", "cvt.rn.f32.f64"} | (sums if q.totals else set())
    operations = {op for op, _ in found if "f64" in op}
    assert operations <= allowed, f"a float64 has crept in: {operations - allowed}"
    loaded = {rest.split(",")[0] for op, rest in found if op.startswith("ld.global")}
    narrowed = {rest.split(", ")[1] for op, rest in found if op == "cvt.rn.f32.f64"}
    assert narrowed <= loaded, "a float64 was computed and went back to float32"
    assert len(re.findall(r"setp\.\w+\.f64", body)) == 1, "the test of `control`"


@needs_numba_cuda
@pytest.mark.parametrize("variant", EVERY, ids=label)
def test_ptx_has_vector_accesses_and_nothing_it_should_not_have(variant):
    for _, grid, q, text in kernels(variant):
        well_made(variant, grid, q, text)


@needs_numba_cuda
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (10, 0)], ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_ptx_for_other_generations(capability):
    for variant in KINDS:
        for _, grid, q, text in kernels(variant, capability=capability, only="kernel"):
            assert f".target sm_{capability[0]}{capability[1]}\n" in text
            well_made(variant, grid, q, text)


def well_made(variant, grid, q, text):
    body = entry(text)
    assert ".local" not in text
    assert not re.search(r"\b(ld|st)\.([fbu](32|64)|v[24])\b", body), "a generic access"
    assert "fma.rn.f32" not in body or INEXACT & lower(*variant).functions
    if grid != "chunks":
        return
    assert not re.search(r"\bcall\b", body)
    wide = re.findall(r"\b(ld|st)\.global\.v4\.[fb]32", body)  # sm_100's compiler writes b32
    # at least: where a choice by a column is worth a branch, both sides have loads of their own
    assert wide.count("ld") >= len(q.loads), "a 16-byte load per buffer"
    assert wide.count("st") >= len(q.stores)
    by_rows = "columns" in lower(*variant).buffers
    divisions = re.findall(r"\b(?:div|rem)\.[us]64", body)
    assert len(divisions) <= 2 * by_rows, "64-bit divisions, but for the place of a chunk's first row"
    float64_stays_outside(body, q)


@needs_numba_cuda
@pytest.mark.parametrize("variant", KINDS, ids=label)
def test_ptx_of_float64_and_with_fused_multiply_add(variant):
    for _, _, q, text in kernels(variant, (F8, F8), only="kernel"):
        assert text.count("ld.global.v2.f64") >= len(q.loads) and ".f32" not in text
    fused = [text for _, _, _, text in kernels(variant, precise=False)]
    assert any("fma.rn.f32" in text for text in fused) or variant not in (KINDS[0], KINDS[3])


@needs_numba_cuda
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas is not installed")
@pytest.mark.parametrize(
    "variant, precise",
    [(v, True) for v in EVERY] + [(v, False) for v in KINDS],
    ids=lambda x: label(x) if x in EVERY else str(x),
)
def test_ptxas_spills_nothing(variant, precise, tmp_path):
    for name, _, _, text in kernels(variant, precise=precise):
        text = re.sub(r"^\.version .*$", ".version 8.0", text, flags=re.M)  # NVVM may be newer than this ptxas
        file = tmp_path / f"{name}.ptx"
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
        assert registers <= 80, "three blocks of 256 threads no longer fit on a multiprocessor"


def agree(variant):
    """How close a GPU's results must be to the CPU's: the same bits, but for other libraries' functions."""
    if not INEXACT & lower(*variant).functions:
        return same_bits
    # their errors are up to 2 units in the last place, and subtractions enlarge them
    return lambda a, b, what: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=what)


def executed(variant, dtypes, monkeypatch, **options):
    monkeypatch.setattr(scratch, "CHUNK", 40)  # or every parameter would be one chunk
    _, grads, cpu = make(variant, dtypes)
    _, _, opt = make(variant, dtypes)
    twin = Twin(opt, **options)
    for g in grads:
        cpu.step(g)
        twin.step(g)
    compare(cpu, opt, agree(variant))
    return twin


@needs_numba_cuda
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_executed_ptx_has_the_bits_of_the_cpu(variant, monkeypatch):
    twin = executed(variant, (F4, F4), monkeypatch, blocks=2, threads=3, together=("together",))
    assert twin.widest == {"ld": 16, "st": 16}
    # expm1, log and pow of another library, rounded to float32: the neighbouring number at most
    for hyper, want in twin.prologue():
        np.testing.assert_array_max_ulp(hyper, want, 1)


@needs_numba_cuda
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rule", [fo.sgd, fo.adamw], ids=lambda r: r.name)
def test_executed_ptx_of_other_dtypes(rule, dtypes, monkeypatch):
    variant = (rule, chosen(rule))
    twin = executed(variant, dtypes, monkeypatch, blocks=3, threads=5, together=("together",))
    assert twin.widest == {"ld": 16, "st": 16}


@needs_numba_cuda
def test_arrays_that_are_misaligned_alike_have_vectors_after_a_head():
    _, (g, _), opt = make((fo.sgd, chosen(fo.sgd)), sizes=[(3,), (64,)])
    del g["even0"]
    twin = Twin(opt, threads=4, together=("together",))
    twin.step({"even0": None, **g})
    assert twin.widest == {"ld": 16, "st": 16}
    want = make((fo.sgd, chosen(fo.sgd)), sizes=[(3,), (64,)])[2]
    want.step({"even0": None, **g})
    compare(want, opt, same_bits)


@needs_numba_cuda
@pytest.mark.parametrize("dtype", [F4, F8], ids=str)
def test_the_prologue_follows_schedules_pauses_and_large_steps(dtype):
    params = {n: np.ones(3, dtype) for n in "ab"}
    opt = fo.adamw(params, lr=lambda t: 1e-3 / t, beta1=0.0, groups=[fo.Group("a", beta1=0.95, beta2=0.9)])
    g = {n: np.ones(3, dtype) for n in "ab"}
    opt.step(g)
    opt.step({**g, "a": None})
    opt.step(g)
    twin = Twin(opt)
    for t in (3, 1000, 10**6):
        opt._clock[0] = t
        ((hyper, want),) = twin.prologue()
        assert len(want) == 2 and np.isfinite(want).all()
        np.testing.assert_array_max_ulp(hyper, want, 1 if dtype == F4 else 4)  # float64: the libraries' own errors


@pytest.mark.parametrize("variant", EVERY, ids=label)
def test_source_reads_like_the_formula(variant):
    rule, on = variant
    text = fo.source(rule, "cuda", **dict(on))
    compile(text, rule.name, "exec")
    for q in lower(rule, on).passes:
        for line in q.body:
            assert f"    {line}\n" in text
    assert "def prologue(" in text and "def epilogue(" in text


def test_what_the_target_cannot_do_is_refused_with_the_remedy():
    low = lower(fo.adamw, chosen(fo.adamw))
    with pytest.raises(DeviceError, match=r"sparse='exact' of `adamw` is for the CPU"):
        cuda.source("adamw", replace(low, touched="exact"), F4, F4)
    sums = " + ".join(f"total(g * {k}.0, 'column')" for k in range(1, 8))
    many = fo.rule(f"def many(p, g, *, lr):\n    return p - lr * ({sums})")
    with pytest.raises(DeviceError, match="adds up 7 totals at once, in 57,344 bytes"):
        fo.source(many, "cuda")


@needs_numba_cuda
def test_machine_code_is_made_without_a_driver_or_the_error_says_why(monkeypatch):
    ((_, _, _, text),) = kernels((fo.sgd, chosen(fo.sgd)))
    assert toolkit.cubin(text, CAPABILITY)[:4] == b"\x7fELF"
    assert toolkit.entry(text) in text and "kernel" in toolkit.entry(text)
    with pytest.raises(DeviceError, match=r"no code for compute capability 7\.5"):
        toolkit.cubin(text, (7, 5))
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(DeviceError, match=r"needs cuda-core: pip install"):
        toolkit.cubin(text, CAPABILITY)


def test_without_numba_cuda_the_error_says_how_to_get_it(monkeypatch):
    import numba

    monkeypatch.delattr(numba, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    with pytest.raises(DeviceError, match=r'needs numba-cuda: pip install "fastopt\[cu13\]"'):
        toolkit.require()
