"""Representative steps: `pytest benchmarks --benchmark-enable`. And a test: the peers compute the same."""

import json
from functools import partial

import numpy as np
import pytest

import fastopt as fo
from benchmarks import limits, peers, report, step
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


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n in rivals.OUT or n in rivals.TORCH])
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
    assert ("out=" in results) == (name in rivals.OUT)
    for who, p in results.items():
        np.testing.assert_allclose(p, results["fastopt"], rtol=1e-5, atol=1e-5, err_msg=who)
        assert np.abs(p - start).max() > 1e-5, f"{who} did not move"


@pytest.mark.parametrize(
    "value, unit, goal, text",
    [
        (0.99683, "x", 1.0, "0.997x"), (0.99996, "x", 1.0, "0.99996x"), (1.0, "x", 1.0, "1.000x"),
        (62.28, "x", 30.0, "62.28x"), (1.396, "x", 1.4, "1.396x"), (1.5, "s", 1.5, "1.50 s"),
        (0.3004, "s", 0.3, "0.3004 s"), (0.9496, "of", 0.95, "0.9496"), (1.0768, "of", None, "1.077"),
        (None, "x", 1.0, ""),
    ],
)  # fmt: skip
def test_a_rounded_figure_never_seems_to_meet_its_goal(value, unit, goal, text) -> None:
    assert step.value({"value": value, "unit": unit, "goal": goal}) == text


def test_the_sweep_holds_the_memory_limit_for_large_sizes() -> None:
    small, large = ([bench.buffer(n)] for n in (1_000, step.MEMORY_BOUND))
    assert step.limit_step(fo.adamw, small, small) is None
    assert step.limit_step(fo.adamw, large, large) is not None


def _stored(**seconds: float) -> dict[str, dict[str, float]]:
    return {name: {"seconds": s, "q1": 0.9 * s, "q3": 1.1 * s, "gbps": 1 / s} for name, s in seconds.items()}


def test_the_report_lists_every_loss_and_marks_missed_goals(tmp_path) -> None:
    contenders = _stored(fastopt=1.0, torch=0.995) | {"memory limit": _stored(x=0.5)["x"]}
    row = step.Row("k", "AdamW, 9: against torch", 0.996, "x", 1.0, "", contenders)
    races = [{"elements": n, "contenders": _stored(fastopt=1.0, torch=t)} for n, t in ((10, 2.0), (10**8, 0.5))]
    races[1]["contenders"] |= {"memory limit": _stored(x=0.5)["x"]}
    machine = step.facts.machine() | {step.facts.OTHERS: 0.0}
    result = {"quick": False, "machine": machine, "rows": [step.asdict(row) | {"met": row.met}], "sweep": races}
    assert report.slower(result) == [
        "goal missed: AdamW, 9: against torch: 0.996x, wanted >= 1x",
        "AdamW, 9: torch is 1.005 times as fast as fastopt (the quartiles overlap)",
        "sweep, 100,000,000 elements: torch is 2.000 times as fast as fastopt (beyond the quartiles)",
    ]
    (tmp_path / "README.md").write_text("a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nb\n")
    (tmp_path / "r.json").write_text(json.dumps(result))
    words = [str(tmp_path / "r.json"), "--docs", str(tmp_path), "--readme", str(tmp_path / "README.md")]
    assert report.main(words) == 0 and (tmp_path / "img" / "bench_sweep.png").stat().st_size > 1000
    for page, head in (("README.md", "design goal | met |"), ("benchmarks.md", "goal | met | note |")):
        text = (tmp_path / page).read_text()
        assert head in text and "| 0.996x | >= 1x | **no** |" in text
