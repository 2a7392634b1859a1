"""Gradients of rows beside torch's sparse optimizers: `python benchmarks/sparse.py [--rows N ...] [--out FILE.json]`.

A float32 table of N x 64, gradients of k rows, uniform or Zipf indices: fastopt's adagrad, and its adam as
torch.optim.SparseAdam has it (`keras.adam`), with the lazy reading. In turns in one process on two threads; figures are
medians, a ratio is the median of the ratios of neighbours in time. Every call gets the next of a few gradients, so that
no row is in a cache because the last step had it. torch gets its gradient as a sparse tensor that is not coalesced, as
`torch.nn.Embedding(sparse=True)` makes it, and fastopt its indices and values.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

THREADS = 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import fastopt as fo  # noqa: E402
from fastopt.commands.bench import interleave  # noqa: E402

COLUMNS, DRAWS = 64, 4


def indices(kind: str, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """uniform; zipf: rank r in proportion to r**-1.1, ranks scattered over the table, as words of a text would be."""
    if kind == "uniform":
        return rng.integers(0, n, k)
    ranks = np.empty(0, np.int64)
    while len(ranks) < k:
        more = rng.zipf(1.1, 2 * k)
        ranks = np.concatenate([ranks, more[more <= n]])
    return (ranks[:k] * 7_368_787) % n  # a prime that divides neither n


def ours(name: str, table: np.ndarray, drawn: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[], None]:
    rule = fo.adagrad if name == "adagrad" else fo.keras.adam
    opt, given = rule({"w": table}, lr=0.01), itertools.cycle(drawn)
    return lambda: opt.step({"w": fo.rows(*next(given))})


def theirs(name: str, table: np.ndarray, drawn: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[], None]:
    w = torch.nn.Parameter(torch.from_numpy(table))
    opt = (torch.optim.Adagrad if name == "adagrad" else torch.optim.SparseAdam)([w], lr=0.01)
    pairs = [(torch.from_numpy(i)[None], torch.from_numpy(v)) for i, v in drawn]
    given = itertools.cycle(pairs)

    def step() -> None:
        i, v = next(given)
        w.grad = torch.sparse_coo_tensor(i, v, w.shape, check_invariants=False)
        opt.step()

    return step


def measure(name: str, n: int, ks: list[int], repeat: int, budget: float) -> list[dict]:
    """The rows of one rule and table size. Both sides' tables are in memory at the same time."""
    rng, rows = np.random.default_rng(0), []
    a, b = (np.full((n, COLUMNS), 0.5, np.float32) for _ in range(2))
    mine = yours = None
    for kind, k in itertools.product(("uniform", "zipf"), ks):
        drawn = [(indices(kind, n, k, rng), rng.standard_normal((k, COLUMNS)).astype(np.float32)) for _ in range(DRAWS)]
        mine = yours = None  # the state of the last ones goes before there is a new one
        gc.collect()
        mine, yours = ours(name, a, drawn), theirs(name, b, drawn)
        samples = interleave({"fastopt": mine, "torch": yours}, repeat=repeat, budget=budget, warmup=DRAWS)
        mean = float(np.mean([len(np.unique(i)) for i, _ in drawn]))
        rows.append(
            {
                "rule": name,
                "rows": n,
                "k": k,
                "indices": kind,
                "distinct": mean,
                "seconds": {contender: s.median for contender, s in samples.items()},
                "fastest": {contender: min(s.seconds) for contender, s in samples.items()},
                "faster": samples["fastopt"].times_faster_than(samples["torch"]),
            }
        )
        r = rows[-1]
        times = ", ".join(f"{contender} {1e6 * t:,.0f} us" for contender, t in r["seconds"].items())
        print(f"{name}, {n:,} rows, {k:,} {kind} ({mean:,.0f} distinct): {times}, {r['faster']:.2f}x", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2 * 10**6, 10**7], metavar="N", help="of the table")
    parser.add_argument("--k", type=int, nargs="+", default=[10**2, 10**3, 10**4, 10**5], metavar="K")
    parser.add_argument("--repeat", type=int, default=41)
    parser.add_argument("--budget", type=float, default=8.0, metavar="S", help="seconds for each measurement")
    parser.add_argument("--threads", type=int, default=THREADS, metavar="N", help="of both sides, %(default)s at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sparse.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, but without the warning
    fo.set_num_threads(args.threads)
    load, rows = os.getloadavg(), []
    for n in args.rows:
        for name, buffers in (("adagrad", 2), ("adam", 3)):
            need, free = 2 * buffers * 4 * n * COLUMNS, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if need > 0.85 * free:
                print(
                    f"{name}, {n:,} rows left out: {need / 1e9:.1f} GB needed, {free / 1e9:.1f} free", file=sys.stderr
                )
                continue
            rows += measure(name, n, args.k, args.repeat, args.budget)
            gc.collect()
    found = {
        "machine": platform.processor() or platform.machine(),
        "versions": {"numpy": np.__version__, "torch": torch.__version__},
        "threads": args.threads,
        "wait policy": os.environ.get("OMP_WAIT_POLICY", "the library's"),
        "load before": load,
        "load after": os.getloadavg(),
        "columns": COLUMNS,
        "rows": rows,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
