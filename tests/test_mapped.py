"""State in a file: the same bits, and nothing of anybody else's is overwritten."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo

SHAPES = {"a": (300, 70), "b": (7,), "c": ()}


def tree(rng):
    return {n: np.asarray(rng.normal(size=s), np.float32) for n, s in SHAPES.items()}


@pytest.mark.parametrize("options", [{}, {"memory": "8bit"}], ids=str)
@pytest.mark.parametrize("rule", [fo.adamw, fo.lookahead(fo.nadam)], ids=lambda r: r.name)
def test_the_bits_are_those_of_state_in_memory(rule, options, tmp_path):
    rng = np.random.default_rng(0)
    p = tree(rng)
    q = {n: x.copy() for n, x in p.items()}
    opt, twin = rule(p, state_path=tmp_path / "state.bin", lr=0.1, **options), rule(q, lr=0.1, **options)
    for _ in range(3):
        g = tree(rng)
        opt.step(g)
        twin.step(g)
    assert all(p[n].tobytes() == q[n].tobytes() for n in p)
    saved = opt.state_dict()
    for s, arrays in twin.state_dict()["state"].items():
        assert all(a.tobytes() == saved["state"][s][n].tobytes() for n, a in arrays.items())
    opt.save(tmp_path / "x.safetensors")
    twin.load(tmp_path / "x.safetensors")
    m = opt.state["m"]["a"]
    m[0, 0] = 3 if m.dtype == np.uint8 else 3.5
    assert m[:1, :1].tobytes() in (tmp_path / "state.bin").read_bytes()  # it is the file
    del saved


def test_a_file_is_made_anew_but_not_taken_from_anybody(tmp_path):
    path, other = tmp_path / "state.bin", tmp_path / "thesis.txt"
    other.write_text("years of work")
    p = np.ones(5000, np.float32)
    with pytest.raises(fo.ConfigError, match=r"thesis.txt is a file of something else"):
        fo.adamw(p, state_path=other)
    assert other.read_text() == "years of work"
    opt = fo.adamw(p, state_path=str(path))
    opt.step(np.ones(5000, np.float32))
    with pytest.raises(fo.ConfigError, match="in use by another optimizer"):
        fo.adamw(p.copy(), state_path=path)
    del opt
    again = fo.adamw(p, state_path=path)
    assert not again.state["m"].any() and again.t == 0
    with pytest.raises(fo.ConfigError, match="cannot be opened for writing"):
        fo.adamw(p, state_path=tmp_path / "nowhere" / "state.bin")
    with pytest.raises(fo.ConfigError, match="cannot be opened for writing"):
        fo.adamw(p, state_path=tmp_path)
    with pytest.raises(fo.ConfigError, match="lr"):
        fo.adamw(p.copy(), state_path=tmp_path / "never", lr=-1)
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match=r"no memory for state `m` of adamw"):
        fo.adamw(np.ones(5000, np.float32), state_path=tmp_path / "state.bin")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_state_larger_than_memory_may_be(tmp_path):
    """With 1 GiB of anonymous memory at most, 1.2 GB of state: refused in memory, fine in a file."""
    program = f"""if True:
        import resource
        import numpy as np
        import fastopt as fo
        p = np.ones(150_000_000, np.float32)
        g = np.zeros(150_000_000, np.float32)
        fo.adamw(np.ones(3, np.float32)).step(np.ones(3, np.float32))
        used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # data and stack
        resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), used + (1 << 30)))
        try:
            fo.adamw(p)
        except MemoryError as error:
            print("no memory" in str(error))
        opt = fo.adamw(p, state_path={str(tmp_path / "state.bin")!r})
        opt.step(g)
        print(opt.t, p[0])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "1", "0.99999"], done.stdout + done.stderr
