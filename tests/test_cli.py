"""The command line: in this process by `main(argv)`, and as a user starts it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastopt import cli
from fastopt.commands import train as contest
from fastopt.rules import CATALOGUE


def run(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fastopt.cli", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8", **environment},
    )


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def small_file(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.standard_normal((120, 5)) + 4 * np.eye(3, 5)[y]
    np.savez(tmp_path / "mine.npz", X=x, y=y)
    return str(tmp_path / "mine.npz")


# ---- train -----------------------------------------------------------------------------------------------------------


def test_train_as_a_user_starts_it(tmp_path):
    plot = tmp_path / "curves.png"
    done = run("train", "--rule", "adamw", "--model", "softmax", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("softmax", "adamw", "held-out accuracy", "1438", "x", "curves.png"))
    assert done.stderr == "" and plot.stat().st_size > 1000


def test_train_on_own_data_with_own_settings(tmp_path, capsys):
    path = small_file(tmp_path)
    argv = [
        "train",
        "--data",
        path,
        "--rule",
        "sgd",
        "lion",
        "sgd",
        "--epochs",
        "2",
        "--batch-size",
        "999",
        "--lr",
        "0.01",
    ]
    assert cli.main([*argv, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "mine.npz" in out and out.count("lion") == 2 and out.count("sgd") == 2 and "0.01" in out  # two models


def test_train_runs_every_rule_by_default(monkeypatch):
    seen = {}

    def fake(data, models, rules, **options):
        seen.update(models=models, rules=[r.name for r in rules], **options)
        return []

    monkeypatch.setattr(contest, "contest", fake)
    assert cli.main(["train"]) == 0
    assert seen["models"] == ("softmax", "mlp") and seen["rules"] == list(CATALOGUE)
    assert (seen["epochs"], seen["batch_size"], seen["lr"]) == (contest.EPOCHS, None, None)


@pytest.mark.parametrize("extra, status", [([], 1), (["--epochs", "2"], 0), (["--lr", "1"], 0), (["--data", "x"], 0)])
def test_a_rule_that_misses_fails_the_default_run_only(monkeypatch, capsys, tmp_path, extra, status):
    row = contest.Row("mlp", "sgd", 0.1, 0.93, 1e-5, 4.0, (2.0, 1.5), "epochs")
    monkeypatch.setattr(contest, "contest", lambda *a, **k: [row])
    extra = [small_file(tmp_path) if word == "x" else word for word in extra]
    assert cli.main(["train", *extra]) == status
    assert ("sgd on mlp (0.930)" in capsys.readouterr().err) == bool(status)


def test_divergence_is_told(tmp_path, capsys):
    assert cli.main(["train", "--data", small_file(tmp_path), "--rule", "sgd", "--lr", "1e30", "--epochs", "3"]) == 0
    assert "stopped early, non-finite loss; try a lower --lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train", "--rule", "adamm"], "no rule `adamm`; the catalogue has sgd.*Did you mean `adam`"),
        (["train", "--data", "missing.npz"], "cannot read missing.npz"),
        (["train", "--plot", "no/such/folder/x.png"], "does not exist"),
        (["source", "adamm"], "Did you mean `adam`"),
        (["bench", "--rule", "adamm"], "no rule `adamm`; the catalogue has sgd.*Did you mean `adam`"),
        (["bench", "--sizes", "1e3", "many"], "--sizes: 'many' is no number of elements"),
        (["bench", "--plot", "no/such/folder/x.png"], "does not exist"),
        (["bench", "--plot", "x.gnp"], "ends in 'gnp'"),
        (["source", "adam", "--set", "amsgrad"], "--set: got 'amsgrad'"),
        (["source", "adam", "--set", "amsgrad=maybe"], "--set: got 'amsgrad=maybe'"),
        (["source", "adam", "--set", "nesterov=true"], "`nesterov`"),
        (["source", "adam", "--target", "abacus"], "abacus"),
    ],
)
def test_wrong_calls_say_why_in_one_line(argv, words, capsys, monkeypatch):
    import re

    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0), raising=False)  # nothing else is said before
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fastopt {argv[0]}: ") and err.count("\n") == 1 and re.search(words, err)


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "required"),
        (["fly"], "invalid choice"),
        (["train", "--epochs", "0"], "whole number >= 1"),
        (["train", "--batch-size", "x"], "whole number >= 1"),
        (["train", "--lr", "nan"], "number > 0"),
        (["train", "--lr", "-1"], "number > 0"),
        (["train", "--model", "cnn"], "invalid choice"),
        (["train", "--ep", "3"], "unrecognized arguments: --ep 3"),
        (["info", "more"], "unrecognized arguments"),
    ],
)
def test_argparse_refuses(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "missing, argv",
    [
        ("rich", ["train"]),
        ("sklearn", ["train"]),
        ("matplotlib", ["train", "--plot", "x.png"]),
        ("rich", ["bench"]),
        ("matplotlib", ["bench", "--plot", "x.png"]),
    ],
)
def test_missing_extras_are_one_line_with_the_command(tmp_path, missing, argv):
    (tmp_path / missing).mkdir()
    (tmp_path / missing / "__init__.py").write_text("raise ImportError('hidden')")
    done = run(*argv, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and 'pip install ".[demo]" in a checkout' in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child on Windows")
def test_ctrl_c_exits_130_without_a_traceback():
    code = "import sys, fastopt.cli; print('ready', flush=True); sys.exit(fastopt.cli.main(sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "train", "--epochs", "100000", "--rule", "sgd"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    time.sleep(2)  # it is training by then, or still importing: both must be quiet
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130 and "Traceback" not in err


def test_ctrl_c_inside_any_command(monkeypatch):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(contest, "contest", interrupted)
    assert cli.main(["train"]) == 130


# ---- source, info, bench ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(CATALOGUE))
def test_source_prints_a_kernel(rule, capsys):
    assert cli.main(["source", rule]) == 0
    text = capsys.readouterr().out
    compile(text, "kernel", "exec")
    assert "njit" in text


def test_source_with_switches(capsys):
    texts = []
    for more in ([], ["--set", "amsgrad=true"], ["--set", "amsgrad=false"], ["--target", "cpu", "--set", "amsgrad=1"]):
        assert cli.main(["source", "adam", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[2] != texts[1] == texts[3]


def test_source_into_a_closed_pipe():
    done = subprocess.run(
        f'"{sys.executable}" -m fastopt.cli source adam | true', shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


def test_info_names_what_matters(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for name in (
        "fastopt",
        "Python",
        "numpy",
        "numba",
        "CPU features",
        "threads",
        "threading layer",
        "cache folder",
        "CUDA",
    ):
        assert name in out
    assert os.environ["FASTOPT_CACHE_DIR"] in out and "not started" not in out


def test_bench_runs_with_its_own_arguments(monkeypatch):
    from fastopt.commands import bench

    seen = []
    monkeypatch.setattr(bench, "main", lambda args: seen.append(args) or 0)
    assert cli.main(["bench", "--rule", "adam", "--sizes", "1e3", "1e4", "--plot", "x.png"]) == 0
    assert (seen[0].rule, seen[0].sizes, seen[0].plot) == ("adam", ["1e3", "1e4"], "x.png")


@pytest.mark.parametrize("rule, torch", [("sgd", True), ("sgd", False), ("lion", True)])
def test_bench_says_what_was_left_out_and_where_the_picture_is(tmp_path, capsys, monkeypatch, rule, torch):
    if torch:
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    plot = tmp_path / "q.png"
    assert cli.main(["bench", "--rule", rule, "--sizes", "10", "20", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert f"picture: {plot}" in out and plot.stat().st_size > 1000
    why = "torch has none for lion" if rule == "lion" else "torch is not installed; pip install torch"
    line = f"left out: torch fused and torch foreach ({why})"
    assert (line in out) == (not torch or rule == "lion") and ("torch fused" in out.replace(line, "")) == (
        line not in out
    )


def test_bench_of_sizes_that_do_not_fit(capsys, monkeypatch):
    from fastopt.commands import bench

    monkeypatch.setattr(bench, "_free_memory", lambda: 1000.0)
    assert cli.main(["bench", "--sizes", "1e3"]) == 2
    assert "1,000 elements left out" in (err := capsys.readouterr().err) and "none fits into the free memory" in err


def test_durations_have_no_exponents():
    from fastopt.commands.bench import duration

    times = {1.2102: "1.21 s", 0.9999: "1 s", 0.312: "312 ms", 1e-3: "1 ms", 9.994e-4: "999 us", 3.47e-6: "3.47 us"}
    assert {t: duration(t) for t in times} == times


def test_ticks_of_a_sweep_do_not_collide():
    from fastopt.commands import picture

    sizes = [1000, 1010, 2000, 3000, 32_000_000]
    drawn = picture.sweep("adam", [(n, {"fastopt": (10.0, 1.0), "torch": (9.0, 1.2)}) for n in sizes])
    drawn.canvas.draw()
    for axis in drawn.axes:
        assert [t.get_text() for t in axis.get_xticklabels()] == ["1k", "32M"]
        assert not axis.get_xticklabels(minor=True) and not axis.get_yticklabels(minor=True)


def test_version_and_the_package_as_a_program():
    import fastopt

    done = subprocess.run([sys.executable, "-m", "fastopt", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"fastopt {fastopt.__version__}\n")


def test_help_of_every_command(capsys):
    for argv in (["--help"], ["train", "--help"], ["source", "--help"], ["info", "--help"], ["bench", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--batch-size" in out and "--sizes" in out
