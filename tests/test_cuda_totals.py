"""CUDA kernels that add up: executed by the PTX interpreter against the CPU's, for one grid after another."""

import os
import re
import subprocess
import sys

import numpy as np
import ptx as interpreter
import pytest
from cuda_twin import CAPABILITY, F4, F8, Twin, chosen, compare, label, make, needs_numba_cuda, same_bits, variants
from test_cuda import INEXACT, PASSES, by_rows, chained, everywhere, factored, trust
from test_passes import counted_from_one

import fastopt as fo
from fastopt import scratch
from fastopt.lower import lower
from fastopt.matrices import matrix_function
from fastopt.rules import CATALOGUE
from fastopt.targets import cuda

TOTALS = [v for v in variants([*PASSES, *CATALOGUE.values()]) if lower(*v).slots]
# More than one turn of 256 threads, several chunks, and ends that are no multiple of 4; rows so short that several are
# under way at once, and rows so long that one takes several turns.
SIZES = [(0,), (5,), (700,), (2500,), (1030,)]
SHAPES = [(0, 3), (40, 6), (7, 12), (3, 1100), (2, 1040), (33, 5)]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(scratch, "CHUNK", 900)


def sizes(variant):
    low = lower(*variant)
    return SHAPES if low.shaped or low.matrices or dict(variant[1]).get("matrix") else SIZES


def close(dtype):
    """The sums' order differs: totals in the last bits of float64, numbers after rounding by a unit, then elements."""
    eps = np.finfo(dtype).eps

    def same(a, b, what):
        # a state that is a number is float64 all along; 1e-12 allows for a few thousand terms that cancel in part
        bound = 1e-12 if dtype == F8 or (a.dtype == F8 and dtype == F4) else 4 * eps
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound, err_msg=what)

    return same


def stepped(variant, dtypes=(F4, F4), **options):
    _, grads, opt = make(variant, dtypes, sizes(variant))
    for g in grads:
        for a in g.values():
            a[~np.isfinite(a)] = 1  # or every total is NaN, and with it everything
    twin = Twin(opt, together=("together",), **options)
    for g in grads:
        twin.step(g)
    return grads, opt, twin


@needs_numba_cuda
@pytest.mark.parametrize("variant", TOTALS, ids=label)
def test_executed_ptx_agrees_with_the_cpu(variant):
    rule, on = variant
    grads, opt, twin = stepped(variant)
    _, _, cpu = make(variant, sizes=sizes(variant))
    for g in grads:
        cpu.step(g)
    assert not INEXACT & lower(rule, on).functions, "these need a bound of their own"
    summed = any(q.totals for q in lower(rule, on).passes)
    compare(cpu, opt, close(F4) if summed else same_bits)
    assert twin.widest == {"ld": 16, "st": 16}
    for hyper, want in twin.prologue():
        np.testing.assert_array_max_ulp(hyper, want, 1)


@needs_numba_cuda
@pytest.mark.parametrize("rule", [trust, chained, factored, by_rows, everywhere], ids=lambda r: r.name)
def test_results_have_the_same_bits_for_any_grid(rule):
    _, few, _ = stepped((rule, ()), blocks=1)
    _, many, _ = stepped((rule, ()), blocks=5)
    compare(few, many, same_bits)


@needs_numba_cuda
@pytest.mark.parametrize("dtypes", [(F8, F8), (F4, F8)], ids=["f8", "f4-f8"])
def test_totals_of_other_dtypes(dtypes):
    grads, opt, twin = stepped((by_rows, ()), dtypes)
    _, _, cpu = make((by_rows, ()), dtypes, SHAPES)
    for g in grads:
        cpu.step(g)
    compare(cpu, opt, close(dtypes[0]))
    assert twin.widest == {"ld": 16, "st": 16}


@needs_numba_cuda
def test_a_total_over_all_crosses_launches():
    rng = np.random.default_rng(0)
    shapes = {"a": ((300,), F4), "b": ((1000,), F8), "c": ((5,), F4)}

    def parameters():
        return {n: np.ones(s, d) for n, (s, d) in shapes.items()}

    g = {n: rng.standard_normal(s).astype(d) for n, (s, d) in shapes.items()}
    cpu, opt = everywhere(parameters()), everywhere(parameters())
    cpu.step(g)
    Twin(opt).step(g)
    for n, (_, dtype) in shapes.items():
        close(dtype)(cpu.params[n], opt.params[n], n)


@matrix_function()
def doubled(x):
    return 2 * x


@fo.rule
def with_a_matrix(p, g, m, *, lr=0.1, beta=0.9):
    m = beta * m + g
    u = doubled(m)
    return p - lr * u, m


@needs_numba_cuda
def test_kernels_around_a_function_of_matrices_are_generated():
    variant = (with_a_matrix, ())
    grads, opt, _ = stepped(variant)
    _, _, cpu = make(variant, sizes=SHAPES)
    for g in grads:
        cpu.step(g)
    compare(cpu, opt, same_bits)


@needs_numba_cuda
def test_control_scales_gradients_and_skips_steps():
    variant = (fo.adamw, chosen(fo.adamw))
    _, grads, opt = make(variant)
    _, _, cpu = make(variant)
    twin = Twin(opt)
    twin.control[:] = 0.5, 1.0, np.nan
    before = {n: p.copy() for n, p in opt.params.items()}
    twin.step(grads[0])
    for name, p in opt.params.items():
        same_bits(before[name], p, name)
    assert not opt._clock.any() and not any(a.any() for a in opt.state["m"].values())
    twin.control[1] = 0.0
    twin.step(grads[0])
    cpu.step({n: a * a.dtype.type(0.5) for n, a in grads[0].items()})
    compare(cpu, opt, same_bits)


@needs_numba_cuda
def test_skipped_steps_change_no_number():
    variant = (counted_from_one, ())
    _, grads, opt = make(variant)
    twin = Twin(opt)
    twin.control[1] = 1.0
    twin.step(grads[0])
    assert all(a == 1.0 for a in opt.state["product"].values()) and opt.t == 0
    twin.control[1] = 0.0
    twin.step(grads[0])
    assert all(a == np.float32(0.9) for a in opt.state["product"].values()) and opt.t == 1


@needs_numba_cuda
def test_the_interpreter_sees_a_race_and_a_barrier_that_some_threads_miss():
    """Or its silence would say nothing about the kernels."""
    module = cuda.kernels("everywhere", lower(everywhere, ()), F4, F4)
    text = cuda.ptx(module, "gather_1", CAPABILITY, precise=True)
    partials, control = np.ones((700, 1)), np.array([1.0, 0.0, 0.0])
    given = [len(partials), 0, 0, 0, 0, control.ctypes.data, 0, 0, 0, partials.ctypes.data]
    with pytest.raises(AssertionError, match="a race"):
        interpreter.run(text.replace("bar.sync", "// bar.sync"), given, [partials, control], 1, cuda.THREADS)
    leave = "mov.u32 %r90, %tid.x; setp.eq.u32 %p90, %r90, 3; @%p90 bra $out; bar.sync 0;"
    some = re.sub(r"bar\.sync\s+0;", leave, text, count=1).replace("ret;", "$out: ret;")
    with pytest.raises(AssertionError, match="never reach"):
        interpreter.run(some, given, [partials, control], 1, cuda.THREADS)
    interpreter.run(text, given, [partials, control], 1, cuda.THREADS)
    assert partials[0, 0] == 700


def test_sums_of_a_block_in_the_simulator():
    """Kernels on raw pointers cannot run there; what they add up with can, with real threads and barriers."""
    code = """
import numpy as np
from numba import cuda
from fastopt.targets.cuda_sums import block_total, fold

@cuda.jit
def kernel(given, runs, whole):
    sums = cuda.shared.array((2, 32), np.float64)
    thread = np.uint64(cuda.threadIdx.x)
    sums[0, thread], sums[1, thread] = given[thread], 1.0
    fold(sums, np.uint64(2), thread, np.uint64(8))
    if thread % np.uint64(8) == np.uint64(0):
        runs[0, thread // np.uint64(8)] = sums[0, thread]
        runs[1, thread // np.uint64(8)] = sums[1, thread]
    cuda.syncthreads()
    whole[thread] = block_total(sums, thread, given[thread], np.uint64(32))

given = np.random.default_rng(0).standard_normal(32)
runs, whole = np.zeros((2, 4)), np.zeros(32)
kernel[1, 32](given, runs, whole)

def tree(x):
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]

assert runs[0].tolist() == [tree(x) for x in given.reshape(4, 8)]
assert runs[1].tolist() == [8.0] * 4
assert whole.tolist() == [tree(given)] * 32
print("as expected")
"""
    pytest.importorskip("numba_cuda")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "as expected\n", done.stderr
