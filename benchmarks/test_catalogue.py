"""The limits that `benchmarks.catalogue` measures against: they move the bytes of a rule, and no others."""

import json

import pytest

import fastopt as fo
from benchmarks import catalogue, limits
from fastopt.rules import CATALOGUE
from fastopt.traffic import moved, usual


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_limit_has_the_streams_of_its_rule(name: str) -> None:
    lowered = usual(CATALOGUE[name])
    seen = moved(lowered)
    assert limits.streams_of(lowered)[0] == (seen.loads, seen.stores)


@pytest.mark.parametrize(
    "rule, written",
    [(fo.sophia, [True, False, True, False]), (fo.mars, [False, True, True, True, True])],  # p g m h; g prev p m v
    ids=["sophia", "mars"],
)
def test_a_limit_writes_what_the_rule_writes(rule, written) -> None:
    step, buffers = limits.streams(1000, usual(rule))
    before = [b.copy() for b in buffers]
    step()
    assert [bool((a != b).any()) for a, b in zip(before, buffers, strict=True)] == written


def test_results_and_their_table(tmp_path, capsys) -> None:
    out = tmp_path / "r.json"
    assert catalogue.main(["--size", "10000", "--repeat", "3", "--rule", "sgd", "mars", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["rule"], r["passes"], r["bytes"]) for r in rows] == [("sgd", 1, 12), ("mars", 2, 44)]
    assert all(r["of the limit"] > 0 for r in rows)
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
