"""What the machine does: packed instructions, one compilation, the same bits for any split of the work."""

import os
import platform
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import CACHE, RULES, flat, gradient, params, run_python, unflat

import fastopt as fo
from fastopt.rules import CATALOGUE
from fastopt.targets.cpu import PARALLEL_BYTES
from fastopt.traffic import usual

BIG = PARALLEL_BYTES // 8 + 12_345  # above the size from which every rule is parallel, and with a ragged end

# ---- instructions ----------------------------------------------------------------------------------------------------

# Arithmetic and conversions only: moves and masks between registers are typeless, whatever their names say.
if platform.machine().lower() in ("x86_64", "amd64"):
    PACKED = r"\tv?{}ps\b"
    FLOAT64 = r"\tv?(?:(?:add|sub|mul|div|sqrt|min|max|cmp\w*|u?comi|round|fn?m(?:add|sub)\d+)[sp]d|cvt\w*[sp]d\w*)\b"
    # all 256 or 512 bits where the processor has them; of a loop that sums in float64, those of the float64 numbers
    WIDE = r"\tv(?:mulps|addpd)\b.*%[yz]mm"
else:
    PACKED = r"\tf{}(?:\.4s|\s+v\d+\.4s)\b"
    FLOAT64 = r"\tf(?:add|sub|mul|div|sqrt|m?cvt\w*)(?:\.2d)?\s+(?:d\d+|v\d+\.2d)\b"
    WIDE = PACKED.format("mul")


def assembly(text: str) -> str:
    """The machine code of a generated kernel, compiled afresh: Numba shows none for what it loads from its cache."""
    module = ModuleType("fastopt_kernel_shown")
    exec(compile(text.replace("cache=True", "cache=False"), "<kernel>", "exec"), vars(module))
    return "\n".join(text for kernel in module.kernels for text in kernel.inspect_asm().values())


def switches(variant) -> dict:
    return {k: variant.full()[k] for k in variant.make.switches}


def check_instructions(code: str, operations: list[str], alone: bool = True) -> None:
    from llvmlite import binding

    assert not alone or re.findall(FLOAT64, code) == []
    missing = [op for op in operations if not re.search(PACKED.format(op), code)]
    assert missing == []
    assert re.search(WIDE, code) or not binding.get_host_cpu_features().get("avx", True)


def test_float32_kernels_are_packed_and_free_of_float64(variant):
    """One stray Python number makes a kernel scalar float64: a quarter of the speed, and the numbers look right."""
    if platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"):
        pytest.skip("no patterns for this processor")
    text = fo.source(variant.make, "cpu", **switches(variant))
    assert "parallel=True" in text and "prange" in text
    operations = ["add", "mul"] + ["div", "sqrt"] * (variant.rule in ("adagrad", "rmsprop", "adam", "adamw"))
    # without threads the same loop compiles in a third of the time; one rule is checked with them, below
    check_instructions(assembly(text.replace("parallel=True", "parallel=False")), operations)


def operations_of(lowered) -> list[str]:
    """What the statements on elements divide, root and multiply; `real(1) / x` is of a number, once a loop."""
    lines = [line for q in lowered.passes for line in (*q.body, *(value for _, value in (*q.stores, *q.totals)))]
    text = "\n".join(lines)
    found = {"mul": " * ", "div": r"(?<!real\(1\)) / ", "sqrt": r"\bsqrt\("}
    return [name for name, pattern in found.items() if re.search(pattern, text)]


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {v.rule for v in RULES}))
def test_every_rule_of_the_catalogue_is_packed(name):
    """At its defaults. Sums and numbers are float64 on purpose: rules with those are searched for packed code only."""
    if platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"):
        pytest.skip("no patterns for this processor")
    rule, lowered = CATALOGUE[name], usual(CATALOGUE[name], matrix=True)
    if lowered.matrices or lowered.shaped:
        pytest.skip("its loops run along rows, or are products of matrices")
    text = fo.source(
        rule, "cpu", **{s: bool(rule.hyper[s]) for s in rule.switches if s in rule.schema and rule.schema[s].boolean}
    )
    code = assembly(text.replace("parallel=True", "parallel=False"))
    check_instructions(code, operations_of(lowered), alone=not lowered.slots)


def test_threads_leave_the_loop_packed():
    if platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"):
        pytest.skip("no patterns for this processor")
    check_instructions(assembly(fo.source(fo.adamw, "cpu")), ["add", "mul", "div", "sqrt"])


def test_the_patterns_see_what_they_should():
    """A kernel with one float64 in it is caught, and so is one that is not vectorised."""
    text = fo.source(fo.adamw, "cpu").replace("parallel=True", "parallel=False")
    assert re.search(FLOAT64, assembly(text.replace("flush(m)", "flush(m * 1.5)")))
    assert re.search(
        FLOAT64, assembly(fo.source(fo.adamw, "cpu", dtype="f8").replace("parallel=True", "parallel=False"))
    )
    signed = text.replace("for i in range(lo, hi)", "for i in range(np.int64(lo), np.int64(hi))")
    assert signed != text


def test_source_is_what_runs_and_reads_well(variant):
    text = fo.source(variant.make, "cpu", **switches(variant))
    opt = variant.make(np.zeros(BIG, "f4"), **variant.hyper)
    opt.step(np.zeros(BIG, "f4"))
    assert text in [f.read_text() for f in Path(CACHE).glob("*.py")]
    assert max(len(line) for line in text.splitlines()) <= 120
    assert " ** " not in text and "float64" not in text.split("kernel(")[1]


@contextmanager
def compilations():
    """Counts the functions Numba compiles in the block (loading from its cache is not compiling)."""
    from numba.core import event

    with event.install_recorder("numba:compile") as recorder:
        seen: list[str] = []
        yield seen
        seen += [str(e.data["dispatcher"].py_func.__name__) for _, e in recorder.buffer if e.is_start]


# ---- compiled once ---------------------------------------------------------------------------------------------------


def test_a_thousand_mixed_calls_compile_nothing_new():
    """Number types, schedules, set, read-only, strided and other-precision gradients, None, loading: one kernel."""
    tree = params()
    opt = fo.adamw(tree, groups=[fo.Group("layer.*")])
    opt.step(unflat(tree, gradient(1)))
    opt.step(unflat(tree, gradient(1, "float64")))
    fo.adamw(np.zeros(BIG, "f4")).step(np.ones(BIG, "f4"))
    with compilations() as compiled:
        for t in range(1, 251):
            for lr in [1e-3, np.float64(1e-3), np.array(1e-3), np.float32(1e-3), 1, lambda t: 1e-3]:
                opt.set(lr=lr)
            opt.set("layer.*", weight_decay=0.1 * (t % 3), beta1=0.9 - 0.01 * (t % 2))
            grads = unflat(tree, gradient(t, ["float32", "float64"][t % 2]))
            if t % 5 == 0:
                grads["layer"]["0"]["weight"] = None
            if t % 7 == 0:
                grads["embed"]["weight"].flags.writeable = False
            if t % 11 == 0:
                grads["embed"]["weight"] = np.asfortranarray(grads["embed"]["weight"])
            opt.step(grads)
            if t % 50 == 0:
                opt.load_state_dict(opt.state_dict())
        other = fo.adamw(params(), groups=[fo.Group("*.bias", lr=0.5)], lr=lambda t: 1 / t, eps=1e-6)
        other.step(unflat(tree, gradient(1)))
        packed = fo.pack(params())
        fo.adamw(packed).step()
        fo.adamw(np.zeros(BIG, "f4")).step(np.ones(BIG, "f4"))
    assert compiled == []


# ---- the same bits ---------------------------------------------------------------------------------------------------


def test_the_same_bits_for_one_and_two_threads(variant):
    results = set()
    try:
        for threads in [1, 2, None]:
            fo.set_num_threads(threads)
            p = np.random.default_rng(0).standard_normal(BIG).astype("f4")
            opt = variant.make(p, **variant.hyper)
            for t in (1, 2):
                opt.step(np.roll(p, t))
            results.add(p.tobytes())
    finally:
        fo.set_num_threads(None)
    assert len(results) == 1


def test_the_same_bits_for_any_cutting_into_arrays(variant):
    """Lengths around the vector width and around any chunk size, at aligned and unaligned offsets of one buffer."""
    rng = np.random.default_rng(1)
    start = rng.standard_normal(200_000).astype("f4")
    whole = start.copy()
    opt = variant.make(whole, **variant.hyper)
    pieces = start.copy()
    cuts = np.cumsum(
        [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 1000, 1023, 4097, 16_385, 32_769, 65_537]
    )
    many = np.split(pieces, cuts)
    assert all(np.shares_memory(x, pieces) for x in many)
    opt_many = variant.make(many, **variant.hyper)
    for _ in range(3):
        g = rng.standard_normal(200_000).astype("f4")
        opt.step(g)
        opt_many.step(np.split(g, cuts))
    assert whole.tobytes() == pieces.tobytes()


def test_set_num_threads_is_checked_and_leaves_numbas_own_setting_alone():
    import numba

    before = numba.get_num_threads()
    try:
        fo.set_num_threads(1)
        fo.adamw(np.zeros(BIG, "f4")).step(np.ones(BIG, "f4"))
        assert numba.get_num_threads() == before
    finally:
        fo.set_num_threads(None)
    for bad in [0, -1, 1.5, True, "2"]:
        with pytest.raises(fo.ConfigError, match="set_num_threads"):
            fo.set_num_threads(bad)
    numba.set_num_threads(1)
    try:
        fo.adamw(np.zeros(BIG, "f4")).step(np.ones(BIG, "f4"))
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_a_process_bound_to_one_core_gives_the_same_bits():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no CPU affinity on this platform")
    script = STEP_AND_HASH.replace(
        "import numpy", "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nimport numpy"
    )
    assert run_python(script).stdout == run_python(STEP_AND_HASH).stdout


STEP_AND_HASH = """
import numpy as np, fastopt as fo, zlib
p = np.random.default_rng(0).standard_normal(2_000_001).astype("f4")
opt = fo.adamw(p)
for t in range(3): opt.step(np.roll(p, t))
print(zlib.crc32(p.tobytes()))
"""


def test_import_loads_none_of_the_heavy_packages():
    heavy = "numba llvmlite torch scipy sklearn rich matplotlib pandas cupy safetensors".split()
    run_python(f"import sys, fastopt; found = set({heavy}) & set(sys.modules); assert not found, found")


def test_disabled_jit_works_or_says_so():
    script = """
import numpy as np, fastopt as fo
p = np.ones(50, "f4")
try: fo.sgd(p, lr=0.5).step(np.ones(50, "f4"))
except fo.FastoptError as error: assert "NUMBA_DISABLE_JIT" in str(error) and (p == 1).all()
else: assert (p == 0.5).all()
"""
    run_python(script, NUMBA_DISABLE_JIT="1")


def test_the_registry_has_every_switch_once():
    assert max(Counter(str(v) for v in RULES).values()) == 1
    assert flat(params()).size == 1167
