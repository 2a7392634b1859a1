"""What a user waits for before the first step: import, and the first step without and with cached kernels."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

# The array is large enough for the parallel kernel, whose compilation and thread start are the longer ones.
_FIRST_STEP = """
import json, time
begin = time.perf_counter()
import fastopt as fo
imported = time.perf_counter()
import numpy as np
p, g = np.ones({n}, "f4"), np.ones({n}, "f4")
ready = time.perf_counter()
opt = fo.adamw(p)
opt.step(g)
print(json.dumps([imported - begin, time.perf_counter() - ready]))
"""
_NUMBA = """
import json, time
import numpy
begin = time.perf_counter()
import numba
print(json.dumps([time.perf_counter() - begin]))
"""


def _run(program: str, cache: str) -> list[float]:
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"FASTOPT_CACHE_DIR": cache, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a fresh process failed with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(repeat: int, n: int = 1_000_000) -> dict[str, float]:
    """Medians over `repeat` fresh processes each, in seconds.

    import: `import fastopt`, NumPy included. cold, warm: `fo.adamw(p)` and one step over n float32 elements, Numba's
    own import included, with an empty folder of kernels and with a filled one. numba: that import alone.
    """
    program, imports, cold, warm, numba = _FIRST_STEP.format(n=n), [], [], [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:
            for times in (cold, warm):
                imported, first = _run(program, cache)
                imports.append(imported)
                times.append(first)
            numba += _run(_NUMBA, cache)
    return {"import": median(imports), "cold": median(cold), "warm": median(warm), "numba": median(numba)}
