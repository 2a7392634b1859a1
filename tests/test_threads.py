"""Several optimizers at once, under every threading layer of Numba; forks; worker processes. No abort, no hang."""

import os
import subprocess
import sys

import pytest
from conftest import run_python


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
