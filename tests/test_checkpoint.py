"""opt.save and opt.load: exact resume in a new process, other layouts, every difference listed, extra, the format."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from catalogue import cases
from checkpoints import STEPPED, advance, content, header_sum, put_together, setups, signed, small, start, take_apart

import fastopt as fo
from fastopt import cli, scratch
from fastopt.checkpoint.digest import described, digest

HERE = Path(__file__).parent
GOLDEN = HERE / "data" / "checkpoint-format-1.safetensors"


def scatter(opt):
    """Some numbers for parameters, state and clock."""
    for segment in opt._segments:
        rng = np.random.default_rng(len(opt.names))
        for a in (segment.array, *segment.state.values()):
            a[...] = rng.standard_normal(a.shape)
    opt._clock[0], opt._clock[2:] = 7, np.arange(len(opt.names)) % 7


# ---- resume ----------------------------------------------------------------------------------------------------------
def test_every_rule_goes_on_in_a_new_process_with_the_same_bits(tmp_path):
    ends = []
    for k, case in enumerate(setups()):
        params, opt, batches = start(case)
        if case.rule in STEPPED:
            advance(case, params, opt, batches, 5)  # to the middle of the second epoch
        else:
            scatter(opt)
        opt.save(tmp_path / f"{k}.safetensors", params=True, extra={"data": batches.state_dict()})
        if case.rule in STEPPED:
            advance(case, params, opt, batches, 6)
        ends.append(b"".join(content(opt)))
    assert set(STEPPED) <= {case.rule for case in setups()}
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    child = [sys.executable, "-W", "error", HERE / "checkpoints.py", "resume", tmp_path]
    done = subprocess.run(child, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for k, (case, end) in enumerate(zip(setups(), ends, strict=True)):
        assert (tmp_path / f"{k}.end").read_bytes() == end, str(case)


def layouts():
    rng = np.random.default_rng(2)
    tree = {"a": {"w": rng.standard_normal((30, 4)).astype("f4"), "b": rng.standard_normal(9).astype("f4")}}
    groups = [fo.Group("*.w", lr=0.02), fo.Group("*.b", rule=fo.lion, lr=0.01)]
    copy = {"a": {k: v.copy() for k, v in tree["a"].items()}}
    turned = {"a": {k: copy["a"][k] for k in ("b", "w")}}
    return tree, groups, {"packed": fo.pack(tree), "group order": copy, "order": turned, "chunks": copy}


@pytest.mark.parametrize("layout", ["packed", "group order", "order", "chunks"])
def test_another_layout_loads_by_path(layout, tmp_path, monkeypatch):
    tree, groups, others = layouts()
    opt = fo.adamw(tree, groups=groups)

    def go(params, opt, first, last):
        for t in range(first, last):
            rng = np.random.default_rng(t)
            w, b = rng.standard_normal((30, 4)).astype("f4"), rng.standard_normal(9).astype("f4")
            opt.step({"a": {k: {"w": w, "b": b}[k] for k in params["a"]}})

    go(tree, opt, 1, 4)
    opt.save(tmp_path / "x", params=True)
    if layout == "chunks":
        monkeypatch.setattr(scratch, "CHUNK", 11)
    params = others[layout]
    other = fo.adamw(params, groups=groups[::-1] if layout == "group order" else groups)
    other.load(tmp_path / "x")
    go(tree, opt, 4, 7)
    go(params, other, 4, 7)
    for k in ("w", "b"):
        assert params["a"][k].tobytes() == tree["a"][k].tobytes()
        assert other.state["m"]["a"][k].tobytes() == opt.state["m"]["a"][k].tobytes()


def test_parameters_are_loaded_only_where_they_are_and_are_wanted(tmp_path):
    opt = small()
    opt.save(tmp_path / "without")
    opt.save(tmp_path / "with", params=True)
    for path, wanted, loaded in [("without", None, 0), ("with", None, 1), ("with", True, 1), ("with", False, 0)]:
        other = small(seed=1)
        before = other.params["w"].copy()
        assert other.load(tmp_path / path, params=wanted) is None
        assert np.array_equal(other.params["w"], opt.params["w"] if loaded else before)
        assert np.array_equal(other.state["m"]["w"], opt.state["m"]["w"])
    before = content(other)
    with pytest.raises(fo.CheckpointError, match="saved without params=True"):
        other.load(tmp_path / "without", params=True)
    assert content(other) == before


# ---- what does not fit -----------------------------------------------------------------------------------------------
def test_every_difference_is_listed_and_nothing_changes(tmp_path):
    small().save(tmp_path / "x", params=True)
    params = {"w": np.zeros((7, 4), "f4"), "c": np.zeros(5, "f8")}
    other = fo.lion(params, groups=[fo.Group("c", lr=0.1)])
    before = content(other)
    with pytest.raises(fo.CheckpointError) as error:
        other.load(tmp_path / "x")
    for part in [
        "is of rule `adamw`; this optimizer runs `lion`",
        "differing: `b`, `c`",
        "state `m` of `w`: float32 (7, 3), expected float32 (7, 4)",
        "state `m` of `c`: missing",
        "state `m` of `b`: not expected",
        "state `v` of `w`: not expected",
        "parameter `w`: float32 (7, 3), expected float32 (7, 4)",
        "parameter `c`: missing",
        "groups: `b`, `*`, expected `c`, `*`",
    ]:
        assert part in str(error.value), part
    assert content(other) == before


def test_a_parameter_that_went_to_another_group_is_noticed(tmp_path):
    def make(groups):
        return fo.adamw({"a.b": np.ones(3)}, groups=[*groups])

    first, second = fo.Group("a*", lr=0.1), fo.Group("*b", lr=0.2)
    with pytest.raises(fo.ConfigError, match="an earlier group takes all"):
        make([first, second])
    one = fo.adamw({"ab": np.ones(3), "ax": np.ones(3), "xb": np.ones(3)}, groups=[first, second])
    two = fo.adamw({"ab": np.ones(3), "ax": np.ones(3), "xb": np.ones(3)}, groups=[second, first])
    one.save(tmp_path / "x")
    with pytest.raises(fo.CheckpointError, match=r"parameter `ab`: in group '\*b', was in 'a\*'"):
        two.load(tmp_path / "x")


SLOW = 0.5


def own(text, **scope):
    """A rule from text, with names around it."""
    import linecache

    file = f"<own {hash((text, tuple(scope)))}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space = {"fo": fo, "np": np, **scope}
    exec(compile(text, file, "exec"), space)
    return fo.rule(space["heavy"])


HEAVY = """
def heavy(p, g, m, *, lr=0.1, beta=0.9):
    '''A comment for people.'''
    m = beta * m + (1 - beta) * fo.math.sqrt(g * g + HALF)
    return p - lr * m, m
"""


def test_the_digest_is_of_the_formula_and_not_of_its_looks():
    same = digest(own(HEAVY, HALF=0.5))
    assert same == digest(own(HEAVY.replace("A comment for people.", "Another."), HALF=0.5))
    assert same == digest(own(HEAVY.replace("fo.math.sqrt(g * g + HALF)", "( np.sqrt(g*g+0.5) )  # why")))
    assert len(same) == 16
    changes = ["0.9", "0.8"], ["lr=0.1", "lr=0.2"], ["g * g", "g * p"], ["1 - beta", "1 + beta"], ["HALF", "2.0"]
    changed = {digest(own(HEAVY.replace(*c, 1), HALF=0.5)) for c in changes}
    changed.add(digest(own(HEAVY, HALF=0.25)))
    changed.add(digest(own(HEAVY.replace("sqrt", "abs"), HALF=0.5)))
    assert len(changed | {same}) == 8
    assert len({digest(case.make) for case in cases()}) == len({case.make.name for case in cases()})


def test_a_rule_that_changed_is_refused_unless_the_caller_says_so(tmp_path):
    w = np.ones(4)
    opt = own(HEAVY, HALF=0.5)(w)
    opt.step(np.ones(4))
    opt.save(tmp_path / "x")
    own(HEAVY, HALF=0.5)(w).load(tmp_path / "x")
    other = own(HEAVY, HALF=0.25)(w)
    before = content(other)
    with pytest.raises(fo.CheckpointError, match=r"rule `heavy` of '\*': its formula or a default has changed"):
        other.load(tmp_path / "x")
    assert content(other) == before
    other.load(tmp_path / "x", rule_changed=True)
    assert other.t == 1 and np.array_equal(other.state["m"], opt.state["m"])


def test_schedules_keep_their_state_and_a_difference_is_told(tmp_path):
    def make(lr, beta1=0.9):
        return fo.adam(np.ones(3), lr=lr, beta1=beta1)

    plateau = fo.schedules.Plateau(0.1, patience=0)
    opt = make(plateau, fo.schedules.join([0.5, lambda t: 0.9], [2]))
    plateau.update(1.0), plateau.update(2.0)
    opt.save(tmp_path / "x")
    fresh = fo.schedules.Plateau(0.1, patience=0)
    same = make(fresh, fo.schedules.join([0.5, lambda t: 0.9], [2]))
    same.load(tmp_path / "x")  # says nothing: warnings are errors here
    assert fresh.value == plateau.value == same.hyper()["lr"] < 0.1
    other = make(fo.schedules.Plateau(0.1, patience=3), fo.schedules.constant(0.5))
    with pytest.warns(UserWarning) as told:
        other.load(tmp_path / "x")
    texts = [str(w.message) for w in told]
    assert any("patience=0" in t and "from now on it is Plateau(start=0.1" in t for t in texts)
    assert any("was join(schedules=[constant(value=0.5), function" in t for t in texts)
    numbers = make(0.1)
    with pytest.raises(fo.CheckpointError, match="a schedule, which is not saved; build the"):
        numbers.load(tmp_path / "x")
    with pytest.raises(fo.CheckpointError, match="a schedule with a state, expected one without"):
        make(lambda t: 0.1).load(tmp_path / "x")
    strict = make(fo.schedules.Plateau(0.1, patience=3), fo.schedules.constant(0.5))
    before = content(strict)
    with pytest.raises(UserWarning):  # as an error it comes before anything is changed
        strict.load(tmp_path / "x")
    assert content(strict) == before
    assert described(fo.schedules.cosine(peak=1, total=5)) == "cosine(peak=1.0, total=5, warmup=0, floor=0.0)"


def test_a_torn_state_is_not_saved_and_loading_ends_it(tmp_path):
    opt = small()
    opt.save(tmp_path / "x", params=True)
    opt._clock[1] = 1  # what an interrupt between two kernels leaves behind
    with pytest.raises(fo.TornStateError):
        opt.save(tmp_path / "y")
    assert os.listdir(tmp_path) == ["x"]
    opt.load(tmp_path / "x")
    assert not opt.torn


def test_saving_and_loading_during_a_step_are_refused(tmp_path):
    opt = fo.sgd(np.ones(3), lr=lambda t: opt.save(tmp_path / "x"))
    with pytest.raises(fo.ConcurrentUseError):
        opt.step(np.ones(3))
    opt = fo.sgd(np.ones(3), lr=lambda t: opt.load(tmp_path / "x"))
    with pytest.raises(fo.ConcurrentUseError):
        opt.step(np.ones(3))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("sparse", ["lazy", "exact", "row"])
def test_rows_that_wait_are_saved_as_they_would_be_now(sparse, tmp_path):
    def make():
        return fo.adam(np.ones((9, 2), "f4"), lr=0.1, sparse=sparse)

    def go(opt, first, last):
        for t in range(first, last):
            rng = np.random.default_rng(t)
            opt.step(fo.rows(rng.choice(9, 3, replace=False), rng.standard_normal((3, 2)).astype("f4")))

    whole, opt, other = make(), make(), make()
    go(whole, 1, 8)
    go(opt, 1, 5)
    opt.save(tmp_path / "x", params=True)
    go(other, 1, 3)
    other.load(tmp_path / "x")
    go(other, 5, 8)
    assert content(other) == content(whole)


def test_averages_are_not_saved_for_parameters(tmp_path):
    opt = fo.schedule_free_sgd(np.ones(3, "f4"), lr=0.1)
    opt.step(np.ones(3, "f4"))
    opt.save(tmp_path / "x", params=True)
    opt.eval()
    shown = opt.params.copy()
    for call in (lambda: opt.save(tmp_path / "x"), lambda: opt.load(tmp_path / "x")):
        with pytest.raises(fo.ConfigError, match="train"):
            call()
    assert np.array_equal(opt.params, shown)
    opt.train()
    opt.load(tmp_path / "x", params=True)


# ---- extra -----------------------------------------------------------------------------------------------------------
def test_extra_brings_back_what_it_was_given(tmp_path):
    rng = np.random.Generator(np.random.MT19937(4))
    losses, odd = np.arange(6.0).reshape(2, 3)[:, ::-1], np.array([1, 2], ">i4")
    extra = {
        "rng": rng.bit_generator.state, "losses": losses, "odd": odd, "empty": {"list": [], "dict": {}, "none": None},
        "numbers": [1, 2.5, float("inf"), -float("inf"), 2**100, True, np.float32(0.1), np.int64(3), "ü\0\n\x1b"],
        "scalar": np.array(3.0), "nothing": np.zeros((0, 4), "u1"), "a/b": np.ones(1), "a": {"b": np.zeros(1)},
        "nan": float("nan"), "tuple": (1, np.ones(2, bool)),
        "$tensor": {"$tensor": "x", "$$": [{"$float": "nan"}]},
    }  # fmt: skip
    opt = small()
    opt.save(tmp_path / "x", extra=extra)
    extra["empty"]["list"].append(1)
    found = opt.load(tmp_path / "x")
    again = np.random.Generator(np.random.MT19937(9))
    again.bit_generator.state = found["rng"]
    assert again.random() == rng.random()
    assert np.array_equal(found["losses"], losses) and found["odd"].tolist() == [1, 2] and found["odd"].dtype == "i4"
    assert found["empty"] == {"list": [], "dict": {}, "none": None}
    assert found["numbers"][:6] == [1, 2.5, float("inf"), -float("inf"), 2**100, True]
    assert found["numbers"][6:] == [float(np.float32(0.1)), 3, "ü\0\n\x1b"]
    assert found["scalar"].shape == () and found["nothing"].shape == (0, 4) and found["nan"] != found["nan"]
    assert found["a/b"] == 1 and found["a"]["b"] == 0 and found["tuple"][1].tolist() == [True, True]
    assert found["$tensor"] == {"$tensor": "x", "$$": [{"$float": "nan"}]}
    found["losses"][:] = 0  # it is ours: writable


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (3, "`extra` is a int"),
        ({"f": lambda: 0}, "`extra/f` is a function"),
        ({"b": fo.minibatches(np.ones(3), batch_size=1)}, "has a state_dict"),
        ({1: 2}, "key 1"),
        ({"z": np.ones(2, complex)}, "dtype complex128"),
        ({"z": np.array([object()])}, "dtype object"),
        ({"z": np.array(["a"])}, "dtype <U1"),
        ({"z": 1j}, "is a complex"),
        ({"s": "\ud800"}, "half a character"),
        ({"i": 10**5000}, "cannot be saved"),
        ({"m": np.ma.masked_array([1.0])}, "MaskedArray"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_extra_that_cannot_be_saved_is_refused_before_the_file_is_touched(extra, says, tmp_path):
    opt = small()
    opt.save(tmp_path / "x", extra={"old": 1})
    with pytest.raises(fo.CheckpointError) as error:
        opt.save(tmp_path / "x", extra=extra)
    assert says in str(error.value)
    assert opt.load(tmp_path / "x") == {"old": 1} and os.listdir(tmp_path) == ["x"]


def test_extra_that_holds_itself(tmp_path):
    extra = {}
    extra["me"] = extra
    with pytest.raises(fo.CheckpointError, match="nested too deep, or holds itself"):
        small().save(tmp_path / "x", extra=extra)


# ---- the format ------------------------------------------------------------------------------------------------------
def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path):
    opt = small(lr=fo.schedules.cosine(peak=0.1, total=9))
    opt.save(tmp_path / "ours", params=True, extra={"note": "ü", "x": np.arange(3)})
    tensors = safetensors.numpy.load_file(tmp_path / "ours")
    assert np.array_equal(tensors["params/w"], opt.params["w"])
    assert np.array_equal(tensors["state/m/b"], opt.state["m"]["b"])
    with safetensors.safe_open(tmp_path / "ours", "np") as file:
        metadata = file.metadata()
    assert metadata["fastopt.format"] == "1" and json.loads(metadata["fastopt.run"])["state"]["t"] == 3
    # it orders tensors and metadata in its own way
    safetensors.numpy.save_file(tensors, tmp_path / "theirs", metadata=metadata)
    other = small(seed=1, lr=fo.schedules.cosine(peak=0.1, total=9))
    assert other.load(tmp_path / "theirs", params=True)["note"] == "ü"
    assert content(other) == content(opt)


def test_the_checksums_are_what_the_description_says(tmp_path):
    small().save(tmp_path / "x", params=True)
    raw = (tmp_path / "x").read_bytes()
    header, data = take_apart(raw)
    tensors = {n: e for n, e in header.items() if n != "__metadata__"}
    metadata = dict(header["__metadata__"])
    assert metadata.pop("fastopt.sum") == header_sum(metadata, tensors)
    assert put_together(signed(header, data), data) != raw  # other spaces
    (tmp_path / "y").write_bytes(put_together(signed(header, data), data))
    small().load(tmp_path / "y")
    for n, e in tensors.items():
        assert (8 + int.from_bytes(raw[:8], "little") + e["data_offsets"][0]) % 4 == 0, n


def test_read_gives_everything_without_an_optimizer(tmp_path):
    opt = small()
    opt.save(tmp_path / "x", params=True, extra={"epoch": 2})
    saved = fo.checkpoint.read(tmp_path / "x")
    assert saved.extra == {"epoch": 2} and saved.state["t"] == 3
    assert saved.params is not None and np.array_equal(saved.params["w"], opt.params["w"])
    other = small(seed=5)
    other.load_state_dict(saved.state)
    assert content(other) == content(opt)


def golden():
    """A rule of this test's own, so that no change of the catalogue can break the file."""
    params = {"layer": {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.arange(3.0)}}
    rule = own(HEAVY, HALF=0.5)
    return params, rule(params, lr=fo.schedules.cosine(peak=0.1, total=50), groups=[fo.Group("*.b", beta=0.5)])


def test_a_file_of_format_1_loads_for_ever():
    """Written by version 0.1.0 with `golden()` after four steps, parameters and extra={"data": [1, 2.5]}."""
    params, opt = golden()
    extra = opt.load(GOLDEN, params=True)
    assert extra == {"data": [1, 2.5]} and opt.t == 4 and opt.state_dict()["steps"] == {"layer.w": 4, "layer.b": 3}
    assert opt.hyper("*.b")["beta"] == 0.5
    again, other = golden()
    for t in range(1, 5):
        w = np.sin(np.arange(12) + t).astype(np.float32).reshape(4, 3)
        other.step({"layer": {"w": w, "b": None if t == 2 else np.cos(np.arange(3.0) * t)}})
    # + - * / and sqrt are the same on every machine; sin and cos of NumPy need not be
    np.testing.assert_allclose(params["layer"]["w"], again["layer"]["w"], rtol=1e-6)
    np.testing.assert_allclose(opt.state["m"]["layer"]["b"], other.state["m"]["layer"]["b"], rtol=1e-12)


# ---- fastopt inspect -------------------------------------------------------------------------------------------------
def test_inspect_prints_what_is_there(tmp_path, capsys):
    opt = small(lr=fo.schedules.cosine(peak=0.1, total=9))
    opt.step({"w": None, "b": np.ones(5)})
    opt.save(tmp_path / "x", params=True, extra={"data": {"epoch": 1}})
    assert cli.main(["inspect", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    for part in [
        "adamw",
        "steps",
        "4",
        "w 3",
        "cosine(peak=0.1",
        "weight_decay=0.0",
        "data",
        "params/w",
        "(7, 3)",
        "84",
    ]:
        assert part in out, part
    assert out.count(" ok") == 6 and "DAMAGED" not in out


def test_inspect_names_what_is_damaged(tmp_path, capsys):
    small().save(tmp_path / "x", params=True)
    raw = bytearray((tmp_path / "x").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "x").write_bytes(raw)
    assert cli.main(["inspect", str(tmp_path / "x")]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("DAMAGED") == 1 and "1 of 6 tensors are damaged: state/v/w" in shown.err
    raw[20] ^= 1
    (tmp_path / "x").write_bytes(raw)
    for path, says in [(tmp_path / "x", "is damaged"), (tmp_path / "no", "No such file"), (tmp_path, "is a folder")]:
        assert cli.main(["inspect", str(path)]) == 2
        assert says in capsys.readouterr().err


def test_inspect_keeps_the_terminal_safe(tmp_path, capsys):
    opt = fo.sgd({"\x1b[2J": np.ones(2)})
    opt.save(tmp_path / "x", params=True, extra={"\x07": 1})
    assert cli.main(["inspect", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\\x1b[2J" in out


def test_nothing_in_the_library_unpickles():
    """Nor anything else that makes code of data by itself."""
    for path in (HERE.parent / "fastopt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {n.split(".")[0] for n in names}
            assert not roots & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
