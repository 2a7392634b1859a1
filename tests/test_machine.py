"""What the machine does: packed instructions, no recompilation, equal bits for any split, threads, forks, caches."""

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import CACHE, RULES, flat, gradient, params, run_python, unflat

import fastopt as fo
from fastopt.targets.cpu import PARALLEL_BYTES

BIG = PARALLEL_BYTES // 8 + 12_345  # above the size from which every rule is parallel, and with a ragged end

# ---- instructions ----------------------------------------------------------------------------------------------------

# Arithmetic and conversions only: moves and masks between registers are typeless, whatever their names say.
if platform.machine().lower() in ("x86_64", "amd64"):
    PACKED = r"\tv?{}ps\b"
    FLOAT64 = r"\tv?(?:(?:add|sub|mul|div|sqrt|min|max|cmp\w*|u?comi|round|fn?m(?:add|sub)\d+)[sp]d|cvt\w*[sp]d\w*)\b"
    WIDE = r"\tvmulps\b.*%[yz]mm"  # all 256 or 512 bits where the processor has them
else:
    PACKED = r"\tf{}(?:\.4s|\s+v\d+\.4s)\b"
    FLOAT64 = r"\tf(?:add|sub|mul|div|sqrt|m?cvt\w*)(?:\.2d)?\s+(?:d\d+|v\d+\.2d)\b"
    WIDE = PACKED.format("mul")


def assembly(text: str) -> str:
    """The machine code of a generated kernel, compiled afresh: Numba shows none for what it loads from its cache."""
    module = ModuleType("fastopt_kernel_shown")
    exec(compile(text.replace("cache=True", "cache=False"), "<kernel>", "exec"), vars(module))
    return "\n".join(module.kernel.inspect_asm().values())


def switches(variant) -> dict:
    return {k: variant.full()[k] for k in variant.make.switches}


def check_instructions(code: str, operations: list[str]) -> None:
    from llvmlite import binding

    assert re.findall(FLOAT64, code) == []
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


# ---- threads and forks -----------------------------------------------------------------------------------------------


def has_layer(layer: str) -> bool:
    env = {**os.environ, "NUMBA_THREADING_LAYER": layer}
    code = "import numba; numba.get_num_threads()"  # starts the threads
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0


TWO_THREADS = """
import threading, numpy as np, fastopt as fo
def work(i):
    p = np.full(300_000, 1.0, "f4")
    opt = fo.adagrad([p, np.ones(3)], lr=1.0)
    for _ in range(200): opt.step([np.ones_like(p), np.ones(3)])
    results[i] = (opt.t, set(opt.state["s"][0].tolist()), len(set(p.tolist())))
results = {}
fo.adagrad(np.ones(3_000_000, "f4")).step(np.ones(3_000_000, "f4"))
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert results == {i: (200, {200.0}, 1) for i in range(4)}, results
import numba
print(numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_optimizers_on_several_python_threads_under_each_threading_layer(layer):
    if not has_layer(layer):
        pytest.skip(f"Numba has no {layer} layer here")
    assert run_python(TWO_THREADS, NUMBA_THREADING_LAYER=layer).stdout.strip() == layer


def test_a_threading_layer_that_does_not_exist_changes_nothing():
    """Whether refused or run on one thread: never half a step."""
    script = """
import warnings; warnings.simplefilter("ignore")
import numpy as np, fastopt as fo
p = np.ones(3_000_000, "f4")
try:
    opt = fo.adagrad(p, lr=1.0)
    opt.step(np.ones_like(p))
except Exception as error:
    assert (p == 1).all(); print("refused", type(error).__name__, str(error)[:300])
else:
    assert (p == 0).all() and opt.t == 1; print("works")
"""
    out = run_python(script, NUMBA_THREADING_LAYER="bogus").stdout
    assert out.startswith("works") or ("ConfigError" in out and "bogus" in out), out


FORK = """
import os, sys, time, warnings, numpy as np, fastopt as fo
warnings.simplefilter("always")
p, q = np.ones(3_000_001, "f4"), np.ones(3_000_001, "f4")
opt, twin = fo.adamw(p), fo.adamw(q)
g = np.random.default_rng(0).standard_normal(p.size).astype("f4")
twin.step(g); twin.step(g); opt.step(g)          # a parallel step: a thread pool exists
read, write = os.pipe()
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step(g)
        fo.adamw(np.ones(3_000_001, "f4")).step(g)
        right = p.tobytes() == q.tobytes()
    told = [str(w.message) for w in caught if "fork" in str(w.message)]
    os.write(write, f"{right} {len(told)}".encode()); os._exit(0)
deadline = time.time() + 40
while time.time() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done: break
    time.sleep(0.02)
else:
    os.kill(child, 9); os.waitpid(child, 0); sys.exit("the child hangs")
assert status == 0, f"the child died: {status}"
print(os.read(read, 100).decode())
opt.step(g); assert p.tobytes() == q.tobytes()    # the parent goes on in parallel
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_a_fork_after_a_parallel_step_neither_hangs_nor_kills_the_child(layer):
    if not has_layer(layer):
        pytest.skip(f"Numba has no {layer} layer here")
    assert run_python(FORK, NUMBA_THREADING_LAYER=layer).stdout.split() == ["True", "1"]


POOL = """
import multiprocessing as mp, warnings, numpy as np
def job(seed):
    import warnings; warnings.simplefilter("ignore")
    import fastopt as fo
    p = np.ones(1_000_000, "f4")
    opt = fo.adamw(p); opt.step(np.full(p.size, seed, "f4")); return float(p.sum(dtype="f8")), opt.t
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    here = [job(s) for s in (1, 2)]
    with mp.get_context("METHOD").Pool(2) as pool: there = pool.map(job, (1, 2))
    assert here == there, (here, there)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_worker_processes(method, tmp_path):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    script = tmp_path / "pool.py"
    script.write_text(POOL.replace("METHOD", method))
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)


# ---- the cache of kernels --------------------------------------------------------------------------------------------

SGD = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np, fastopt as fo
    for _ in range(2):
        p = np.ones(1000, "f4"); opt = fo.sgd(p, lr=0.5)
        for _ in range(2): opt.step(np.ones(1000, "f4"))
        assert (p == 0).all() and opt.t == 2
    fo.adamw(np.ones(1000, "f4")).step(np.ones(1000, "f4"))
told = [w for w in caught if "fastopt" in str(w.message) or "cache" in str(w.message).lower()]
print(len(told), len(caught), *[str(w.message) for w in caught])
"""


def warnings_of(result) -> tuple[int, str]:
    told, _, *text = result.stdout.split(maxsplit=2)
    return int(told), text[0] if text else ""


def files_under(folder: Path, *endings: str) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix in endings)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    """A cache folder that holds the kernels of SGD above; copied for each test that spoils it."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    assert warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))[0] == 0
    assert files_under(folder, ".nbi") and files_under(folder, ".nbc") and files_under(folder, ".py")
    return folder


def spoiled(small_cache, tmp_path, how) -> Path:
    folder = tmp_path / "kernels"
    shutil.copytree(small_cache, folder)  # keeps modes and times
    how(folder)
    return folder


def rewrite(*endings, to):
    def spoil(folder):
        files = files_under(folder, *endings)
        assert files
        for f in files:
            data = f.read_bytes()
            f.write_bytes(to(data))

    return spoil


def flip(data: bytes) -> bytes:
    """One bit wrong at each of 16 places."""
    spoilt = bytearray(data)
    for k in range(16):
        spoilt[(2 * k + 1) * len(data) // 32] ^= 1 << k % 8
    return bytes(spoilt)


def flip_code(data: bytes) -> bytes:
    """Bits wrong in the machine code itself, which nothing but a checksum can notice before it runs."""
    start = data.find(b"\x7fELF") + 64
    assert start > 64, "the object code is where this test does not look"
    return data[:start] + bytes(b ^ 0x40 for b in data[start : start + 200]) + data[start + 200 :]


SPOILS = {
    "index truncated": rewrite(".nbi", to=lambda d: d[: len(d) // 2]),
    "index empty": rewrite(".nbi", to=lambda d: b""),
    "index flipped": rewrite(".nbi", to=flip),
    "index garbage": rewrite(".nbi", to=lambda d: b"\xff" * 100),
    "data truncated": rewrite(".nbc", to=lambda d: d[: len(d) // 2]),
    "data empty": rewrite(".nbc", to=lambda d: b""),
    "data flipped": rewrite(".nbc", to=flip),
    "code flipped": rewrite(".nbc", to=flip_code),
    "data gone": lambda folder: [f.unlink() for f in files_under(folder, ".nbc")],
    "source truncated": rewrite(".py", to=lambda d: d[: len(d) // 2]),
    "source empty": rewrite(".py", to=lambda d: b""),
    "source of another": rewrite(".py", to=lambda d: b"raise SystemExit('planted')\n"),
}


@pytest.mark.parametrize("kind", [k for k in SPOILS if k != "code flipped" or sys.platform == "linux"])
def test_a_damaged_cache_still_works(kind, small_cache, tmp_path):
    folder = spoiled(small_cache, tmp_path, SPOILS[kind])
    result = run_python(SGD, FASTOPT_CACHE_DIR=str(folder))
    told, text = warnings_of(result)
    assert told <= 1, text


def test_the_cache_folder_is_private_and_warm_the_second_time(small_cache):
    assert stat.S_IMODE(small_cache.stat().st_mode) & 0o077 == 0
    before = {f: f.stat().st_mtime_ns for f in files_under(small_cache, ".nbi", ".nbc", ".py")}
    run_python(SGD, FASTOPT_CACHE_DIR=str(small_cache))
    assert {f: f.stat().st_mtime_ns for f in files_under(small_cache, ".nbi", ".nbc", ".py")} == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777], ids=oct)
def test_a_folder_that_others_may_write_is_not_trusted(mode, small_cache, tmp_path):
    """Numba's cache files are pickles: one planted by somebody else would run as code."""
    folder = spoiled(small_cache, tmp_path, lambda f: f.chmod(mode))
    before = sorted(folder.rglob("*"))
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))
    assert told == 1 and str(folder) in text, text
    assert sorted(folder.rglob("*")) == before  # neither read nor written


def test_a_folder_that_cannot_be_made_falls_back_with_one_warning(tmp_path):
    """A file in the way is unwritable for every user, root included."""
    (tmp_path / "file").write_text("in the way")
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(tmp_path / "file" / "kernels")))
    assert told == 1 and str(tmp_path / "file") in text, text
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(tmp_path / "file")))
    assert told == 1, text


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_falls_back_with_one_warning(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir(0o500)
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))
    assert told == 1 and str(folder) in text, text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_falls_back(tmp_path):
    """Numba's own writes fail with OSError: the step must not."""
    script = """
import builtins, errno, os
real = builtins.open
def full(file, mode="r", *a, **k):
    if any(c in mode for c in "wxa") and "kernels" in str(file): raise OSError(errno.ENOSPC, "No space left")
    return real(file, mode, *a, **k)
builtins.open = full
real_open = os.open
def full_open(path, flags, *a, **k):
    if flags & (os.O_WRONLY | os.O_RDWR) and "kernels" in str(path): raise OSError(errno.ENOSPC, "No space left")
    return real_open(path, flags, *a, **k)
os.open = full_open
"""
    told, text = warnings_of(run_python(script + SGD, FASTOPT_CACHE_DIR=str(tmp_path / "kernels")))
    assert told == 1, text


def test_many_processes_may_build_the_same_kernel_at_once(tmp_path):
    folder = tmp_path / "kernels"
    env = {**os.environ, "FASTOPT_CACHE_DIR": str(folder)}
    script = SGD.replace('    fo.adamw(np.ones(1000, "f4")).step(np.ones(1000, "f4"))\n', "")
    command = [sys.executable, "-W", "error", "-c", script]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    results = [(p.communicate(timeout=120), p.returncode) for p in running]
    assert [code for _, code in results] == [0] * 4, results
    assert {out.split()[0] for (out, _), _ in results} == {b"0"}, results
    leftovers = [f for f in folder.rglob("*") if "tmp" in f.name]
    assert leftovers == []


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
