"""Representative steps: `pytest benchmarks --benchmark-enable`. And a test: the peers compute the same."""

from functools import partial

import numpy as np
import pytest

import fastopt as fo
from benchmarks import limits, peers, step
from fastopt.commands import bench
from fastopt.commands import peers as rivals
from fastopt.rules import CATALOGUE

SIZES = (1_000, 20_000, 1_000_000)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", CATALOGUE)
def test_step_of_one_array(benchmark, name: str, n: int) -> None:
    p, g = bench.buffer(n, 0.5), bench.buffer(n, 1e-3)
    benchmark(partial(CATALOGUE[name](p).step, g))


@pytest.mark.parametrize(("count", "each"), [(100, 64), (148, 1_000)])
def test_step_of_many_arrays(benchmark, count: int, each: int) -> None:
    benchmark(step.ours(count, each))


def test_step_of_packed_arrays(benchmark) -> None:
    params = fo.pack(step.loose(148, 1_000)[0])
    params.grads.flat[:] = 1e-3
    benchmark(fo.adamw(params).step)


@pytest.mark.parametrize("kind", ["fused", "foreach"])
def test_step_of_torch(benchmark, kind: str) -> None:
    pytest.importorskip("torch")
    benchmark(rivals.torch_step(fo.adamw, *step.loose(148, 1_000), kind=kind))


@pytest.mark.parametrize("states", [0, 1, 2])
def test_memory_limit(benchmark, states: int) -> None:
    benchmark(limits.read_modify_write(1_000_000, states))


@pytest.mark.parametrize("name", CATALOGUE)
def test_peers_compute_the_same_step(name: str) -> None:
    # A peer that does other work is no peer. 1e-5: six contenders in float32, each with its own order of operations,
    # three steps of at most 1e-2; Lion and the first steps of Adam divide by little, hence gradients away from 0.
    rule, random = CATALOGUE[name], np.random.default_rng(0)
    start = random.normal(size=1_000).astype("f4")
    g = np.copysign(random.uniform(0.1, 1.0, 1_000), random.normal(size=1_000)).astype("f4")
    results = {}
    makers = {
        "fastopt": lambda p: partial(rule(p).step, g),
        "out=": lambda p: rivals.numpy_out(rule, p, g, bench.used_state(rule(p))),
        "torch fused": lambda p: rivals.torch_step(rule, [p], [g], "fused"),
        "torch foreach": lambda p: rivals.torch_step(rule, [p], [g], "foreach"),
        "DeepSpeed": lambda p: peers.deepspeed_step(rule, [p], [g]),
    }
    for who, make in makers.items():
        p = start.copy()
        if take := make(p):
            for _ in range(3):
                take()
            results[who] = p
    assert "out=" in results
    for who, p in results.items():
        np.testing.assert_allclose(p, results["fastopt"], rtol=1e-5, atol=1e-5, err_msg=who)
        assert np.abs(p - start).max() > 1e-5, f"{who} did not move"
