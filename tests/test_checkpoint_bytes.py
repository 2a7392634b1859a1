"""Damaged and hostile files: every one is a clear CheckpointError that changes nothing, in bounded time and memory."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoints import content, put_together, signed, small, take_apart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "x"
    small().save(path, params=True, extra={"data": {"epoch": 1}, "losses": np.arange(4.0)})
    return path.read_bytes()


@pytest.fixture(scope="module")
def refuses(tmp_path_factory):
    """Loading these bytes is refused and changes nothing; or they hold the very state of `good`."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # thousands of small files
    path = Path(tempfile.mkdtemp(dir=memory)) / "x"
    opt, right = small(seed=8), content(small())
    before = content(opt)

    def check(raw: bytes, *says: str, whole: bool = False, quick: bool = False) -> str:
        path.write_bytes(raw)
        try:
            opt.load(path)
        except fo.CheckpointError as error:
            assert quick or content(opt) == before
            assert [s for s in says if s not in str(error)] == [], str(error)
            return str(error)
        assert whole and content(opt) == right
        opt.load_state_dict(SEED_8)
        assert content(opt) == before
        return ""

    SEED_8 = opt.state_dict() | {"params": {n: x.copy() for n, x in opt.params.items()}}
    yield check
    shutil.rmtree(path.parent)


# ---- accidents -------------------------------------------------------------------------------------------------------
def test_truncated_at_every_byte(good, refuses):
    for n in range(len(good)):
        refuses(good[:n], "is damaged", quick=True)  # what any of them changed would show at the end
    for more in (b"\0", b" ", b"{}", bytes(512), good):
        refuses(good + more, "is damaged", "bytes")


def test_a_large_file_truncated_at_every_512_bytes(tmp_path):
    w = np.random.default_rng(0).standard_normal(20_000).astype("f4")
    opt = fo.sgd(w.copy(), momentum=0.9)
    opt.step(w)
    opt.save(tmp_path / "x", params=True)
    raw = (tmp_path / "x").read_bytes()
    before = content(opt)
    for n in range(0, len(raw), 512):
        (tmp_path / "y").write_bytes(raw[:n])
        with pytest.raises(fo.CheckpointError):
            opt.load(tmp_path / "y")
    (tmp_path / "y").write_bytes(raw[:-512] + bytes(512))  # a hole in the last block
    with pytest.raises(fo.CheckpointError, match="the checksum of `state/b/params` does"):
        opt.load(tmp_path / "y")
    assert content(opt) == before


def test_every_byte_of_the_header_changed(good, refuses):
    header = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(1)
    for k in range(header):
        for flip in (1 << (k % 8), int(rng.integers(1, 256))):
            raw = bytearray(good)
            raw[k] ^= flip
            # the spaces at the end may become other spaces
            refuses(bytes(raw), whole=raw[k] in b" \t\r\n" and k > header - 9, quick=True)
    refuses(b"")


def test_a_thousand_bits_of_the_data_flipped(good, refuses):
    start = 8 * (8 + int.from_bytes(good[:8], "little"))
    for bit in np.random.default_rng(2).integers(start, 8 * len(good), 1000):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << (bit % 8)
        refuses(bytes(raw), "the checksum of `", "does not match")


def test_blocks_exchanged_zeroed_and_repeated(good, refuses):
    start = 8 + int.from_bytes(good[:8], "little")
    data = good[start:]
    for cut in range(16, len(data) - 16, 16):
        refuses(good[:start] + data[:cut] + bytes(16) + data[cut + 16 :], whole=data[cut : cut + 16] == bytes(16))
        refuses(good[:start] + data[cut:] + data[:cut])


# ---- malice: the checksums are right ---------------------------------------------------------------------------------
def forged(good, change, sign=True):
    header, data = take_apart(good)
    header = change(header) or header
    return put_together(signed(header, data) if sign else header, data)


def tensor(name, **changes):
    return lambda header: header[name].update(changes)


def offsets(name, a, b):
    return lambda header: header[name].update(data_offsets=[header[name]["data_offsets"][0] + a, b])


STRUCTURE = {
    "offsets that do not fit": tensor("params/w", data_offsets=[0, 10**30]),
    "negative": tensor("params/w", data_offsets=[-84, 0]),
    "floats": tensor("params/w", data_offsets=[0.0, 84.0]),
    "bools": tensor("params/b", shape=[True] * 5),
    "three offsets": tensor("params/w", data_offsets=[0, 84, 84]),
    "negative shape": tensor("params/w", shape=[-7, -3]),
    "float shape": tensor("params/w", shape=[7.0, 3]),
    "huge shape": tensor("params/w", shape=[2**62, 2**62]),
    "overflowing shape": tensor("params/w", shape=[2**64 + 21]),
    "ten thousand dimensions": tensor("params/w", shape=[1] * 10_000 + [7, 3]),
    "40 dimensions": tensor("params/w", shape=[1] * 40 + [7, 3]),
    "unknown dtype": tensor("params/w", dtype="BF16"),
    "no dtype": tensor("params/w", dtype=None),
    "list dtype": tensor("params/w", dtype=["F32"]),
    "object dtype": tensor("params/w", dtype="O"),
    "no table": lambda h: h.update({"params/w": [1]}),
    "more": tensor("params/w", more=1),
    "metadata number": lambda h: h["__metadata__"].update(x=1),
    "metadata list": lambda h: h.update(__metadata__=[]),
    "no metadata": lambda h: (h.pop("__metadata__"), None)[1],
    "no sum": lambda h: (h["__metadata__"].pop("fastopt.sum"), None)[1],
}


@pytest.mark.parametrize("case", STRUCTURE)
def test_structures_that_cannot_be(case, good, refuses):
    refuses(forged(good, STRUCTURE[case], sign=False), "is damaged")


@pytest.mark.parametrize("kind", ["overlap", "hole", "behind the end"])
def test_tensors_that_do_not_lie_side_by_side(kind, good, refuses):
    header, data = take_apart(good)
    if kind == "overlap":  # two names for the same bytes
        header["params/w"]["data_offsets"] = header["state/m/w"]["data_offsets"]
    elif kind == "hole":
        data += bytes(4) + data[slice(*header["state/v/w"]["data_offsets"])]
        header["state/v/w"]["data_offsets"] = [len(data) - 84, len(data)]
    else:
        at = header["state/v/w"]["data_offsets"][0] + 4
        header["state/v/w"]["data_offsets"] = [at, at + 84]
    refuses(put_together(signed(header, data), data), "begins at byte")


def test_zero_elements_of_a_shape_too_large_for_numpy(good, refuses):
    for shape in [0, 2**63 - 1, 2**63 - 1], [0, 2**63], [2**40, 0, 2**40]:
        refuses(forged(good, lambda h, shape=shape: h.update(z=dict(dtype="F64", shape=shape, data_offsets=[0, 0]))))


RAW = {
    "length 0": bytes(8),
    "length 1": b"\1" + bytes(7) + b"{",
    "length 2**63": (2**63).to_bytes(8, "little") + b"{}" * 99,
    "length 2**64 - 1": b"\xff" * 8 + b"{}" * 99,
    "length one too long": put_together({}, b"")[:-1],
    "deep lists": put_together(None, b"", text=b"[" * 100_000),
    "deep dicts": put_together(None, b"", text=b'{"a":' * 100_000),
    "5,000 digits": put_together(None, b"", text=b'{"a":' + b"9" * 5000 + b"}"),
    "NaN": put_together(None, b"", text=b'{"a":NaN}'),
    "Infinity": put_together(None, b"", text=b'{"a":-Infinity}'),
    "twice": put_together(None, b"", text=b'{"a":{},"a":{}}'),
    "list": put_together([], b""),
    "text": put_together("x", b""),
    "null": put_together(None, b""),
    "byte order mark": put_together(None, b"", text=b"\xef\xbb\xbf{}"),
    "UTF-16": put_together(None, b"", text="{}".encode("utf-16")),
    "not UTF-8": put_together(None, b"", text=b'{"\xff":{}}'),
    "empty": put_together({}, b""),
    "pickle": pickle.dumps({"state": [1, 2, 3] * 10}),
    "NumPy": b"\x93NUMPY\x01\x00" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("case", RAW)
def test_files_of_another_kind(case, refuses):
    refuses(RAW[case], "is damaged")


def test_names_given_twice(good, refuses):
    header, data = take_apart(good)
    text = json.dumps(header).encode()
    for name in ("params/w", "state/m/w", "fastopt.run", "fastopt.format", "__metadata__"):
        key, value = json.dumps(name).encode(), header.get(name, header["__metadata__"].get(name))
        twice = text.replace(key + b":", key + b": " + json.dumps(value).encode() + b", " + key + b":", 1)
        assert twice != text
        refuses(put_together(None, data, text=twice), "a name is given twice")


def rerun(change):
    """Change the JSON of `fastopt.run`, and sign."""

    def apply(header):
        run = json.loads(header["__metadata__"]["fastopt.run"])
        run = change(run) or run
        header["__metadata__"]["fastopt.run"] = json.dumps(run)

    return apply


@pytest.mark.parametrize("change", range(14))
def test_contents_that_cannot_be(change, good, refuses):
    changes = [
        lambda r: [1],
        lambda r: r.pop("state") and None,
        lambda r: r["state"].update(averages={"w": 1.0}),
        lambda r: r["state"].update(t=-1),
        lambda r: r["state"].update(steps=[3, 3]),
        lambda r: r["state"].update(state=3),
        lambda r: r["state"]["state"].update(m=[]),
        lambda r: r["state"].update(hyper={"b": 1, "*": []}),
        lambda r: r["state"]["hyper"]["*"].update(lr={"value": 1}),
        lambda r: r["state"]["hyper"]["*"].update(lr=[1]),
        lambda r: r["state"]["params"].update(w={"$tensor": "state/m/w"}),
        lambda r: r["state"]["params"].update(w={"$tensor": ["x"]}),
        lambda r: r["state"]["params"].update(w={"$new": 1}),
        lambda r: r["state"].update(rule=["adamw"]),
    ]
    refuses(forged(good, rerun(changes[change])))


def test_a_file_of_a_newer_format_says_so(good, refuses):
    text = refuses(forged(good, lambda h: h["__metadata__"].update({"fastopt.format": "2"})), "format '2'", "newer")
    assert "damaged" not in text


def test_nan_in_the_state_is_loaded_as_it_was(tmp_path):
    opt = small()
    opt.state["m"]["w"][0, 0] = np.nan
    opt.save(tmp_path / "x")
    other = small(seed=3)
    other.load(tmp_path / "x")
    assert np.isnan(other.state["m"]["w"][0, 0]) and np.isnan(other.state["m"]["w"]).sum() == 1


# ---- names -----------------------------------------------------------------------------------------------------------
def test_names_never_become_paths(tmp_path):
    names = ["../../x", "/etc/passwd", "a\0b", "~", "$HOME", "C:\\x", "__metadata__", "a/b", "\x1b[2J", "ü" * 300, '"']
    (tmp_path / "folder").mkdir()
    params = {n: np.full(3, k, np.float32) for k, n in enumerate(names)}
    opt = fo.sgd(params, momentum=0.9)
    opt.step({n: np.ones(3) for n in names})
    opt.save(tmp_path / "folder" / "x", params=True)
    other = fo.sgd({n: np.zeros(3, np.float32) for n in names}, momentum=0.9)
    other.load(tmp_path / "folder" / "x")
    assert content(other) == content(opt)
    assert [sorted(os.listdir(p)) for p in (tmp_path, tmp_path / "folder")] == [["folder"], ["x"]]
    with pytest.raises(fo.CheckpointError, match="half a character"):
        fo.sgd({"\ud800": np.ones(1)}, momentum=0.9).save(tmp_path / "y")
    assert not (tmp_path / "y").exists()


# ---- memory ----------------------------------------------------------------------------------------------------------
def peak(call) -> int:
    tracemalloc.start()
    try:
        call()
    finally:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return used


def test_a_load_takes_at_most_twice_the_size_of_the_file(tmp_path):
    opt = fo.sgd([np.ones(500_000, "f4"), np.ones(500_000, "f4")], momentum=0.9)
    opt.save(tmp_path / "x", params=True)
    size = (tmp_path / "x").stat().st_size
    assert peak(lambda: opt.load(tmp_path / "x")) < 1.1 * size
    raw = bytearray((tmp_path / "x").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "x").write_bytes(raw)

    def refused():
        with pytest.raises(fo.CheckpointError):
            opt.load(tmp_path / "x")

    assert peak(refused) < 1.1 * size
    # one that does not fit is refused before any of its data is read
    opt.save(tmp_path / "x", params=True)
    opt = fo.sgd([np.ones(3, "f4")])
    assert peak(refused) < 1e6


def test_a_header_cannot_ask_for_memory(tmp_path):
    """Ten megabytes of `[],` would become 200 MB of lists: refused before they are made."""
    opt = small()
    for text in b'{"a":[' + b"[]," * 3_300_000 + b"[]]}", b'{"a":"' + b"x" * 40_000_000 + b'"}':
        (tmp_path / "x").write_bytes(put_together(None, b"", text=text))

        def refused():
            with pytest.raises(fo.CheckpointError, match=r"more memory|is longer than what it describes"):
                opt.load(tmp_path / "x")

        assert peak(refused) < 2 * len(text) + (1 << 26)


# ---- fuzzing ---------------------------------------------------------------------------------------------------------
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(raw=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda t: put_together(None, b"", text=t))))
def test_any_bytes(raw, refuses):
    refuses(raw)


@FUZZ
@given(data=st.data())
def test_any_change_of_the_bytes(data, good, refuses):
    """Pieces cut out, put in, exchanged: never a partial load."""
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        raw[a:b] = data.draw(st.binary(max_size=20))
    refuses(bytes(raw), whole=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
    | st.just({"$tensor": "params/w"}) | st.just({"$float": "nan"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in items:
        yield from places(v, (*path, k))


def put(value, path, new):
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@FUZZ
@given(data=st.data())
def test_any_change_of_the_content_with_right_checksums(data, good, refuses):
    """Somebody who can compute checksums writes what they like: an error, or a state that fits and is taken whole."""
    header, raw = take_apart(good)
    key = data.draw(st.sampled_from(["fastopt.run", "fastopt.run", "fastopt.extra"]))
    value = json.loads(header["__metadata__"][key])
    changed = put(value, data.draw(st.sampled_from(list(places(value)))), data.draw(JSON))
    header["__metadata__"][key] = json.dumps(changed)
    path_raw = put_together(signed(header, raw), raw)
    refuses_or_loads(path_raw)


def refuses_or_loads(raw):
    opt = small(seed=8)
    before = content(opt)
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        try:
            opt.load(file.name)
        except fo.CheckpointError:
            assert content(opt) == before
        else:
            assert not opt.torn
            opt.step({"w": np.ones((7, 3)), "b": np.ones(5)})


def test_a_few_seconds_of_coverage_guided_fuzzing():
    pytest.importorskip("atheris", reason="atheris is not installed")
    here = Path(__file__).parent
    command = [sys.executable, here / "fuzz_checkpoint.py", "-max_total_time=5", "-seed=1"]
    paths = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Done " in done.stderr, done.stdout + done.stderr


EXTRA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=6)
    | st.binary(max_size=8).map(lambda b: np.frombuffer(b, "u1")),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner),
    max_leaves=10,
)  # fmt: skip


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@settings(FUZZ, max_examples=50)  # each is flushed to the disk
@given(extra=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), EXTRA))
def test_any_extra_comes_back(extra, tmp_path):
    opt = small()
    opt.save(tmp_path / "x", extra=extra)
    assert same(extra, opt.load(tmp_path / "x"))
