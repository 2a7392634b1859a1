"""The folder of compiled kernels: damaged, full, forbidden, shared by others, or used by many processes at once."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_python

SGD = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np, fastopt as fo
    for _ in range(2):
        p = np.ones(1000, "f4"); opt = fo.sgd(p, lr=0.5)
        for _ in range(2): opt.step(np.ones(1000, "f4"))
        assert (p == 0).all() and opt.t == 2
    fo.adamw(np.ones(1000, "f4")).step(np.ones(1000, "f4"))
told = [w for w in caught if "fastopt" in str(w.message) or "cache" in str(w.message).lower()]
print(len(told), len(caught), *[str(w.message) for w in caught])
"""


def warnings_of(result) -> tuple[int, str]:
    told, _, *text = result.stdout.split(maxsplit=2)
    return int(told), text[0] if text else ""


def files_under(folder: Path, *endings: str) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix in endings)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    """A cache folder that holds the kernels of SGD above; copied for each test that spoils it."""
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    assert warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))[0] == 0
    assert files_under(folder, ".nbi") and files_under(folder, ".nbc") and files_under(folder, ".py")
    return folder


def spoiled(small_cache, tmp_path, how) -> Path:
    folder = tmp_path / "kernels"
    shutil.copytree(small_cache, folder)  # keeps modes and times
    how(folder)
    return folder


def rewrite(*endings, to):
    def spoil(folder):
        files = files_under(folder, *endings)
        assert files
        for f in files:
            data = f.read_bytes()
            f.write_bytes(to(data))

    return spoil


def flip(data: bytes) -> bytes:
    """One bit wrong at each of 16 places."""
    spoilt = bytearray(data)
    for k in range(16):
        spoilt[(2 * k + 1) * len(data) // 32] ^= 1 << k % 8
    return bytes(spoilt)


def flip_code(data: bytes) -> bytes:
    """Bits wrong in the machine code itself, which nothing but a checksum can notice before it runs."""
    start = data.find(b"\x7fELF") + 64
    assert start > 64, "the object code is where this test does not look"
    return data[:start] + bytes(b ^ 0x40 for b in data[start : start + 200]) + data[start + 200 :]


SPOILS = {
    "index truncated": rewrite(".nbi", to=lambda d: d[: len(d) // 2]),
    "index empty": rewrite(".nbi", to=lambda d: b""),
    "index flipped": rewrite(".nbi", to=flip),
    "index garbage": rewrite(".nbi", to=lambda d: b"\xff" * 100),
    "data truncated": rewrite(".nbc", to=lambda d: d[: len(d) // 2]),
    "data empty": rewrite(".nbc", to=lambda d: b""),
    "data flipped": rewrite(".nbc", to=flip),
    "code flipped": rewrite(".nbc", to=flip_code),
    "data gone": lambda folder: [f.unlink() for f in files_under(folder, ".nbc")],
    "source truncated": rewrite(".py", to=lambda d: d[: len(d) // 2]),
    "source empty": rewrite(".py", to=lambda d: b""),
    "source of another": rewrite(".py", to=lambda d: b"raise SystemExit('planted')\n"),
}


@pytest.mark.parametrize("kind", [k for k in SPOILS if k != "code flipped" or sys.platform == "linux"])
def test_a_damaged_cache_still_works(kind, small_cache, tmp_path):
    folder = spoiled(small_cache, tmp_path, SPOILS[kind])
    result = run_python(SGD, FASTOPT_CACHE_DIR=str(folder))
    told, text = warnings_of(result)
    assert told <= 1, text


def test_the_cache_folder_is_private_and_warm_the_second_time(small_cache):
    assert stat.S_IMODE(small_cache.stat().st_mode) & 0o077 == 0
    before = {f: f.stat().st_mtime_ns for f in files_under(small_cache, ".nbi", ".nbc", ".py")}
    run_python(SGD, FASTOPT_CACHE_DIR=str(small_cache))
    assert {f: f.stat().st_mtime_ns for f in files_under(small_cache, ".nbi", ".nbc", ".py")} == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777], ids=oct)
def test_a_folder_that_others_may_write_is_not_trusted(mode, small_cache, tmp_path):
    """Numba's cache files are pickles: one planted by somebody else would run as code."""
    folder = spoiled(small_cache, tmp_path, lambda f: f.chmod(mode))
    before = sorted(folder.rglob("*"))
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))
    assert told == 1 and str(folder) in text, text
    assert sorted(folder.rglob("*")) == before  # neither read nor written


def test_a_folder_that_cannot_be_made_falls_back_with_one_warning(tmp_path):
    """A file in the way is unwritable for every user, root included."""
    (tmp_path / "file").write_text("in the way")
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(tmp_path / "file" / "kernels")))
    assert told == 1 and str(tmp_path / "file") in text, text
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(tmp_path / "file")))
    assert told == 1, text


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_falls_back_with_one_warning(tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir(0o500)
    told, text = warnings_of(run_python(SGD, FASTOPT_CACHE_DIR=str(folder)))
    assert told == 1 and str(folder) in text, text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_falls_back(tmp_path):
    """Numba's own writes fail with OSError: the step must not."""
    script = """
import builtins, errno, os
real = builtins.open
def full(file, mode="r", *a, **k):
    if any(c in mode for c in "wxa") and "kernels" in str(file): raise OSError(errno.ENOSPC, "No space left")
    return real(file, mode, *a, **k)
builtins.open = full
real_open = os.open
def full_open(path, flags, *a, **k):
    if flags & (os.O_WRONLY | os.O_RDWR) and "kernels" in str(path): raise OSError(errno.ENOSPC, "No space left")
    return real_open(path, flags, *a, **k)
os.open = full_open
"""
    told, text = warnings_of(run_python(script + SGD, FASTOPT_CACHE_DIR=str(tmp_path / "kernels")))
    assert told == 1, text


def test_many_processes_may_build_the_same_kernel_at_once(tmp_path):
    folder = tmp_path / "kernels"
    env = {**os.environ, "FASTOPT_CACHE_DIR": str(folder)}
    script = SGD.replace('    fo.adamw(np.ones(1000, "f4")).step(np.ones(1000, "f4"))\n', "")
    command = [sys.executable, "-W", "error", "-c", script]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    results = [(p.communicate(timeout=120), p.returncode) for p in running]
    assert [code for _, code in results] == [0] * 4, results
    assert {out.split()[0] for (out, _), _ in results} == {b"0"}, results
    leftovers = [f for f in folder.rglob("*") if "tmp" in f.name]
    assert leftovers == []
