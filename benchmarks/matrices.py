"""Rules of matrices and L-BFGS, beside torch and scipy: `python benchmarks/matrices.py [--repeat N] [--out FILE.json]`.

Muon: a step of fastopt, of torch.optim.Muon as it is (its products are bfloat16) and kept in float32, interleaved in
one process on two threads; and which part of our step is spent in matrix products. L-BFGS: a step with ten pairs at
10^6 float64 parameters, the loss and its gradient taken off, beside scipy's L-BFGS-B and torch's LBFGS.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

THREADS = 2
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, str(THREADS))

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import torch  # noqa: E402

import fastopt as fo  # noqa: E402
from fastopt import linalg  # noqa: E402
from fastopt.commands.bench import interleave  # noqa: E402

SHAPES = [(1024, 1024), (4096, 1024)]


def torch_muon(p: np.ndarray, g: np.ndarray, exact: bool):
    """step() of torch's Muon; `exact`: its bfloat16 conversion replaced by a copy."""
    x = torch.nn.Parameter(torch.tensor(p))
    x.grad = torch.tensor(g)
    opt, rounded = torch.optim.Muon([x]), torch.Tensor.bfloat16

    def step() -> None:
        torch.Tensor.bfloat16 = torch.Tensor.clone if exact else rounded
        try:
            opt.step()
        finally:
            torch.Tensor.bfloat16 = rounded

    return step


class Products:
    """Seconds spent in the products of `linalg`, which are timed one by one while this is open."""

    def __enter__(self) -> "Products":
        self.seconds, self._plain = 0.0, np.matmul
        np.matmul = self._timed
        return self

    def __exit__(self, *_) -> None:
        np.matmul = self._plain

    def _timed(self, *args, **options):
        begin = time.perf_counter()
        try:
            return self._plain(*args, **options)
        finally:
            self.seconds += time.perf_counter() - begin


def muon(shape: tuple[int, int], repeat: int) -> dict:
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    ours = fo.muon(p.copy())
    samples = interleave(
        {
            "fastopt": lambda: ours.step(g),
            "torch bfloat16": torch_muon(p, g, False),
            "torch float32": torch_muon(p, g, True),
        },
        repeat=repeat,
        warmup=2,
    )
    shares = []
    for _ in range(repeat):
        begin = time.perf_counter()
        with Products() as products:
            ours.step(g)
        shares.append(products.seconds / (time.perf_counter() - begin))
    gauge = linalg.newton_schulz(g.astype(np.float64))
    rounded = torch.optim._muon._zeropower_via_newtonschulz(torch.tensor(g), linalg.QUINTIC, 5, 1e-7)

    def off(x: np.ndarray) -> float:
        return float(np.linalg.norm(x - gauge) / np.linalg.norm(gauge))

    return {
        "shape": shape,
        "seconds": {name: s.median for name, s in samples.items()},
        "fastest": {name: min(s.seconds) for name, s in samples.items()},
        "share of products": statistics.median(shares),
        "error": {"fastopt": off(linalg.newton_schulz(g)), "torch": off(rounded.float().numpy())},
    }


def lbfgs(n: int, repeat: int, steps: int = 20) -> dict:
    """Seconds a step, without the time spent in the function itself, and evaluations a step."""
    curve = np.logspace(0, 4, n)
    start = np.random.default_rng(0).standard_normal(n)
    inside, calls = [0.0], [0]

    def function(x):
        begin = time.perf_counter()
        g = curve * x
        loss = 0.5 * float(x @ g)
        inside[0] += time.perf_counter() - begin
        calls[0] += 1
        return loss, g

    def run_fastopt():
        rule = fo.lbfgs(history=10, gtol=0.0, ftol=0.0)
        return fo.minimize(function, start.copy(), rule=rule, steps=steps).steps

    def run_scipy():
        options = dict(maxcor=10, gtol=0.0, ftol=0.0, maxiter=steps)
        return scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options).nit

    def run_torch():
        x = torch.tensor(start, requires_grad=True)
        opt = torch.optim.LBFGS(
            [x], max_iter=steps, max_eval=10**6, history_size=10, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=0.0,
        )  # fmt: skip

        def closure():
            loss, g = function(x.detach().numpy())
            x.grad = torch.from_numpy(g)
            return torch.tensor(loss)

        opt.step(closure)
        return opt.state[x]["n_iter"]

    seconds, evaluations = {}, {}
    runs = {"fastopt": run_fastopt, "scipy": run_scipy, "torch": run_torch}
    for _ in range(repeat):
        for name, run in runs.items():
            inside[0] = calls[0] = 0
            begin = time.perf_counter()
            done = run()
            seconds.setdefault(name, []).append((time.perf_counter() - begin - inside[0]) / done)
            evaluations[name] = calls[0] / done
    return {
        "n": n,
        "steps": steps,
        "seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "fastest": {name: min(s) for name, s in seconds.items()},
        "evaluations": evaluations,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--n", type=int, default=10**6, help="parameters of L-BFGS")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matrices.json")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    fo.set_num_threads(THREADS)
    load = os.getloadavg()
    fo.minimize(lambda x: (float(x @ x), 2 * x), np.ones(10**6), rule=fo.lbfgs(), steps=2)  # compiles
    found = {
        "machine": platform.processor() or platform.machine(),
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "scipy": scipy.__version__},
        "threads": THREADS,
        "load before": load,
        "muon": [muon(shape, args.repeat) for shape in SHAPES],
        "lbfgs": lbfgs(args.n, args.repeat),
    }
    for row in found["muon"]:
        times = ", ".join(
            f"{name} {1e3 * s:.0f} ms (fastest {1e3 * row['fastest'][name]:.0f})" for name, s in row["seconds"].items()
        )
        print(f"muon {row['shape']}: {times}; {row['share of products']:.1%} of our step in products")
        print("  error of the orthogonal matrix: " + ", ".join(f"{k} {e:.1e}" for k, e in row["error"].items()))
    row = found["lbfgs"]
    times = ", ".join(
        f"{name} {1e3 * s:.1f} ms (fastest {1e3 * row['fastest'][name]:.1f})" for name, s in row["seconds"].items()
    )
    print(f"lbfgs, n = {row['n']:,}, ten pairs, a step without the function: {times}; load average {load[0]:.1f}")
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
