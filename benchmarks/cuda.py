"""The step on a CUDA device, in one command of under eight minutes: `python -m benchmarks.cuda [--out FILE.json]`.

Copy bandwidth of the device; each rule's share of it from 2^16 to 2^28 elements; AdamW with state in fewer bits, and
beside whatever peers are installed, for 1, 148 and 1,000 tensors; the torch classes beside torch's, with gradients that
stay and that move; what a launch costs the host; replays of a graph; a sweep of grids and blocks.

Seconds are of the wall clock around many steps and one wait for the device, medians of several such. Nothing is stored
without a real device. `--fake` walks the same way through the tests' fake driver, with tiny arrays and no figures.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from benchmarks import cuda_peers, facts
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule
from fastopt.targets import driver

RESULTS = Path(__file__).parent / "results" / "cuda.json"
VERSIONS = ("fastopt", "numpy", "numba", "numba-cuda", "cuda-core", "cuda-bindings", "torch", "apex", "bitsandbytes")


class Bench:
    """Measures against a deadline and remembers rows: dicts with `what` and figures."""

    def __init__(self, gpu: driver.Driver, seconds: float, fake: bool):
        self.gpu, self.fake, self.end = gpu, fake, time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []

    def seconds(self, step: Callable[[], Any], wait: bool = True) -> float:
        """Of one step: the median of five runs of at least 10 ms. `wait` False: until the host has queued it."""
        step()
        count = 1 if self.fake else self._enough(step)
        times = []
        for _ in range(1 if self.fake else 5):
            self.gpu.synchronize(0)
            begin = time.perf_counter()
            for _ in range(count):
                step()
            if wait:
                self.gpu.synchronize(0)
            times.append((time.perf_counter() - begin) / count)
        return statistics.median(times)

    def _enough(self, step: Callable[[], Any]) -> int:
        self.gpu.synchronize(0)
        begin = time.perf_counter()
        step()
        self.gpu.synchronize(0)
        return max(1, min(200, int(0.01 / (time.perf_counter() - begin))))  # 200 steps fit into the launch queue

    def add(self, what: str, **figures: Any) -> None:
        self.rows.append({"what": what, **figures})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        print(f"{what:<44} {'' if self.fake else shown}", flush=True)

    @property
    def late(self) -> bool:
        if time.monotonic() < self.end:
            return False
        self.add("stopped: the time is used up")
        return True


def traffic(lowered: Lowered, itemsize: int) -> int:
    """Bytes that a step must move per element: every load and store of every pass."""
    return itemsize * sum(len(q.loads) + len(q.stores) for q in lowered.passes)


def packed(rule: Rule, sizes: list[int], **options: Any) -> fo.Optimizer:
    arrays = {f"p{k}": np.broadcast_to(np.float32(0.5), (n,)) for k, n in enumerate(sizes)}
    needed = {n: 1e-3 for n, default in rule.hyper.items() if default is ...}
    return fo.Optimizer(rule, fo.pack(arrays, device="cuda"), **needed, **options)


def bandwidth(bench: Bench) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    n = 1 << (10 if bench.fake else 28)
    flat = fo.pack([np.broadcast_to(np.float32(1), (n,))], device="cuda")
    a, b = flat[0], flat.grads[0]
    rate = 8 * n / bench.seconds(lambda: bench.gpu.copy(0, b.address, a.address, a.nbytes))
    bench.add("copy on the device", gbps=rate / 1e9)
    return rate


def rules(bench: Bench, rate: float) -> None:
    for rule in (fo.sgd, fo.adamw) if bench.fake else CATALOGUE.values():
        low = lower(rule, tuple((n, False) for n in rule.switches))
        if low.shaped or low.matrices:
            continue
        for power in (5, 8) if bench.fake else (16, 20, 24, 28):
            if bench.late:
                return
            try:
                opt = packed(rule, [1 << power])
                seconds = bench.seconds(opt.step)
            except MemoryError:
                bench.add(f"{rule.name} 2^{power}", note="no memory")
                continue
            bench.add(
                f"{rule.name} 2^{power}",
                microseconds=seconds * 1e6,
                fraction=traffic(low, 4) * (1 << power) / seconds / rate,
            )


def fewer_bits(bench: Bench, rate: float) -> None:
    """AdamW by how its state is stored; shares are of the bytes that each moves."""
    for stored in ("q8",) if bench.fake else ("float32", "bf16", "q8"):
        for rounding in ("stochastic",) if bench.fake or stored == "float32" else ("stochastic", "nearest"):
            for power in (12,) if bench.fake else (20, 24, 28):
                if bench.late:
                    return
                opt = packed(fo.adamw, [1 << power], state_dtype=stored, rounding=rounding)
                seconds = bench.seconds(opt.step)
                moved = fo.traffic(fo.adamw, state_dtype=stored).bytes * (1 << power)
                what = f"AdamW 2^{power}, state in {stored}, {rounding}"
                bench.add(what, microseconds=seconds * 1e6, fraction=moved / seconds / rate)


def against_peers(bench: Bench) -> None:
    for count in (1, 5) if bench.fake else (1, 148, 1000):
        for total in (100,) if bench.fake else (10**5, 10**7, 10**8):
            if bench.late:
                return
            each = max(1, total // count)
            contenders: dict[str, Callable[[], Any]] = {"fastopt": packed(fo.adamw, [each] * count).step}
            if not bench.fake:
                contenders |= cuda_peers.adamw(count, each)
            found = {name: bench.seconds(step) for name, step in contenders.items()}
            found = {name: seconds * 1e6 for name, seconds in found.items()}
            bench.add(f"AdamW, {count} tensors of {each}, microseconds", **found)


def launch(bench: Bench) -> None:
    """What a step costs the host, and a whole small one."""
    for name, sizes in (("1 tensor", [64]), ("148 tensors", [64] * (4 if bench.fake else 148))):
        opt = packed(fo.adamw, sizes)
        queued = bench.seconds(opt.step, wait=False)
        bench.add(f"host, AdamW, {name}", microseconds=queued * 1e6, done=bench.seconds(opt.step) * 1e6)


def replay(bench: Bench) -> None:
    if bench.fake or not cuda_peers.torch_on_cuda():
        bench.add("graph replay", note="needs PyTorch with CUDA")
        return
    import torch

    for count, each in ((1, 1 << 16), (1000, 100)):
        params = [torch.zeros(each, device="cuda") for _ in range(count)]
        grads = [torch.ones_like(p) for p in params]
        opt = fo.adamw(params)
        opt.step(grads)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            opt.step(grads)
        eager, again = bench.seconds(lambda o=opt, g=grads: o.step(g)), bench.seconds(graph.replay)
        bench.add(f"graph replay, {count} x {each}", microseconds=again * 1e6, eager=eager * 1e6)


def torch_classes(bench: Bench) -> None:
    """`fastopt.torch.AdamW` beside `torch.optim.AdamW`: the whole step, with all checks, and the host's part."""
    if bench.fake or not cuda_peers.torch_on_cuda():
        bench.add("torch classes", note="needs PyTorch with CUDA")
        return
    for count, each in ((1, 10**7), (148, 1_000), (148, 100_000), (1000, 100)):
        for kind in ("stable", "moving"):
            if bench.late:
                return
            steps = cuda_peers.torch_classes(count, each, kind)
            found = {name: bench.seconds(step) * 1e6 for name, step in steps.items()}
            queued = {f"{name}, host": bench.seconds(step, wait=False) * 1e6 for name, step in steps.items()}
            bench.add(f"torch classes, AdamW, {count} x {each}, {kind}, microseconds", **found, **queued)


def sweep(bench: Bench, rate: float) -> None:
    """Grids and blocks of AdamW's kernel; the library's own choice is the row without numbers in its name."""
    n = 1 << (8 if bench.fake else 26)
    opt = packed(fo.adamw, [n])
    opt.step()
    plan = opt._plan
    chosen, at = list(plan.calls), 1  # prologue, kernel, epilogue
    bytes_moved = traffic(lower(fo.adamw, (("amsgrad", False),)), 4) * n
    for threads in (128, 256, 512):
        for blocks in (1, 2) if bench.fake else (132, 264, 528, 1056, 2112, 4224):
            if bench.late:
                return
            plan.calls[at] = chosen[at]._replace(blocks=blocks, threads=threads)
            seconds = bench.seconds(opt.step)
            bench.add(f"AdamW 2^26, {blocks} blocks of {threads}", fraction=bytes_moved / seconds / rate)
    plan.calls[:] = chosen
    bench.add("AdamW 2^26", fraction=bytes_moved / bench.seconds(opt.step) / rate, blocks=chosen[at].blocks)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.cuda", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=420.0, help="when to stop measuring (%(default)s)")
    parser.add_argument("--fake", action="store_true", help="a dry run without a GPU; measures and stores nothing")
    given = parser.parse_args(arguments)
    if given.fake:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        from fake_cuda import FakeDriver  # type: ignore[import-not-found]

        driver.install(FakeDriver())
    try:
        gpu = driver.get()
    except fo.DeviceError as error:
        print(f"nothing was measured, nothing is stored: {error}", file=sys.stderr)
        return 1
    bench = Bench(gpu, given.seconds, given.fake)
    rate = bandwidth(bench)
    launch(bench)
    replay(bench)
    against_peers(bench)
    torch_classes(bench)
    fewer_bits(bench, rate)
    sweep(bench, rate)
    rules(bench, rate)
    if given.fake:
        print("a dry run: nothing was measured, nothing is stored")
        return 0
    capability = ".".join(map(str, gpu.capability(0)))
    about = {**facts.machine(), "device": gpu.name(0), "capability": capability, "versions": facts.versions(VERSIONS)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": about, "rows": bench.rows}, indent=1) + "\n")
    print(f"stored in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
