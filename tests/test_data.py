"""Mini-batches: each example once an epoch, views and copies, resuming, the parallel gather, what cannot work."""

import copy
import itertools
import json
import math
import pickle

import numpy as np
import pytest
from conftest import run_python
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastopt import data, threads
from fastopt.data import Minibatches, minibatches
from fastopt.errors import ArrayTypeError, CheckpointError, ConcurrentUseError, ConfigError, FastoptError

few = settings(derandomize=True, max_examples=40, deadline=None)

DTYPES = [
    "?", "i1", "<u2", ">u2", "f2", "<f4", ">f4", "i8", "f8", "c8", "g", "M8[s]", "m8[D]", "S3", "U5", "V7",
    [("a", "f4"), ("b", "u1", 3)],
]  # fmt: skip


def numbers(n, *shape, dtype="f8", seed=0):
    """n examples: random bytes, NaNs of all kinds among them, or small integers where not every byte is a value."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind in "?USc" or dtype == "g":
        return rng.integers(0, 99, (n, *shape)).astype(dtype)
    return np.frombuffer(rng.bytes(n * math.prod(shape) * dtype.itemsize), dtype).reshape(n, *shape).copy()


def epoch(batches):
    """Copies of the batches of an epoch, each a list of arrays."""
    return [[np.array(a) for a in (b if isinstance(b, tuple) else (b,))] for b in batches]


def same(a, b):
    return len(a) == len(b) and all(
        x.tobytes() == y.tobytes() for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


# ---- every example once ----------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(), drop_last=st.booleans(), epochs=st.integers(1, 3),
)  # fmt: skip
@example(n=10, batch_size=5, seed=2**64 - 1, shuffle=True, drop_last=True, epochs=2)
@few
def test_each_example_once_in_lock_step(n, batch_size, seed, shuffle, drop_last, epochs):
    if drop_last:
        batch_size = min(batch_size, n)
    X, Y = numbers(n, 3), np.arange(n)
    batches = minibatches(X, Y, batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
    sizes = [min(batch_size, n - lo) for lo in range(0, n, batch_size)]
    if drop_last and n % batch_size:
        sizes.pop()
    for e in range(epochs):
        assert (batches.epoch, batches.position) == (e, 0)
        seen = epoch(batches)
        order = np.concatenate([y for _, y in seen])
        assert [len(y) for _, y in seen] == sizes and len(batches) == len(sizes)
        assert len(set(order)) == sum(sizes)  # no example twice, and without drop_last none missing
        assert np.concatenate([x for x, _ in seen]).tobytes() == X[order].tobytes()
        if not shuffle:
            assert list(order) == list(range(sum(sizes)))


def orders(n, **how):
    batches = minibatches(np.arange(n), batch_size=7, **how)
    return [np.concatenate([b.copy() for b in batches]).tolist() for _ in range(3)]


def test_the_order_depends_on_seed_and_epoch_only():
    assert orders(100) == orders(100, seed=0) == orders(100, seed=np.int64(0))
    different = orders(100) + orders(100, seed=1) + orders(100, seed=2**64 - 1)
    assert len({tuple(order) for order in different}) == 9
    one, *_ = [np.concatenate([b.copy() for b in minibatches(np.arange(100.0), batch_size=99)]).tolist()]
    assert one == orders(100)[0]  # not on the batch size or the dtype
    # nor on anything NumPy may change: only the bits of Philox, which it promises. Written down once
    assert orders(8)[:2] == [[0, 2, 1, 5, 4, 3, 6, 7], [5, 3, 7, 2, 4, 1, 0, 6]]


def test_all_orders_are_equally_likely():
    seen = np.zeros((4, 4))
    batches = minibatches(np.arange(4), batch_size=2, seed=5)
    for _ in range(2_000):
        seen[np.arange(4), np.concatenate([b.copy() for b in batches])] += 1
    # each cell is a binomial count with mean 500 and deviation 19.4; 5 deviations
    assert abs(seen - 500).max() < 97


def test_one_array_gives_arrays_several_give_tuples():
    X = numbers(10, 2, 3)
    for shuffle in (False, True):
        for size in (1, 4, 10):
            (x, *_) = minibatches(X, batch_size=size, shuffle=shuffle)
            assert isinstance(x, np.ndarray) and x.shape == (size, 2, 3)
            batch = next(iter(minibatches(X, X, X, batch_size=size, shuffle=shuffle)))
            assert isinstance(batch, tuple) and len(batch) == 3


# ---- views, buffers, the arrays themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 13, 10**30])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_full_set_is_the_arrays_themselves(size, shuffle):
    X, Y = np.asfortranarray(numbers(12, 3)), [None] * 12
    Y = np.array(Y, object)
    batches = minibatches(X, Y, batch_size=size, shuffle=shuffle)
    for _ in range(3):
        ((x, y),) = batches
        assert x is X and y is Y
    assert batches.batch_size == len(X) and batches.epoch == 3


def test_unshuffled_batches_are_views():
    X = numbers(10, 3)[::-1]
    for lo, x in zip((0, 4, 8), minibatches(X, batch_size=4, shuffle=False), strict=True):
        assert np.shares_memory(x, X) and np.array_equal(x.view("u8"), X[lo : lo + 4].view("u8"))


def test_shuffled_batches_share_a_buffer_and_leave_the_data_alone():
    X = np.arange(10.0)
    places = set()
    for x in minibatches(X, batch_size=3):
        places.add(x.ctypes.data)
        assert not np.shares_memory(x, X) and x.flags.c_contiguous and x.flags.writeable
        x[:] = -1
    assert len(places) == 1 and np.array_equal(X, np.arange(10.0))


# ---- going on --------------------------------------------------------------------------------------------------------


def take(batches, count):
    """Copies of the next `count` batches, over as many epochs as it takes."""
    taken = []
    while len(taken) < count:
        for batch in batches:
            taken += epoch([batch])
            if len(taken) == count:
                break
    return taken


@given(n=st.integers(1, 20), batch_size=st.integers(1, 20), shuffle=st.booleans(), seed=st.integers(0, 9))
@few
def test_resumes_exactly_at_every_position(n, batch_size, shuffle, seed):
    def make():
        return minibatches(np.arange(n), numbers(n, 2), batch_size=batch_size, shuffle=shuffle, seed=seed)

    per = len(make())
    wanted = take(make(), 4 * per)
    going = make()
    for done in range(2 * per + 1):
        saved = json.loads(json.dumps(going.state_dict()))
        assert (saved["epoch"], saved["position"]) == divmod(done, per)
        resumed = make()
        resumed.load_state_dict(saved)
        for again in (resumed, copy.deepcopy(going), pickle.loads(pickle.dumps(going))):
            rest = epoch(again)
            assert len(rest) == per - done % per  # what is left of this epoch
            assert same(rest + epoch(again), wanted[done:][: len(rest) + per])  # and then a whole one
        assert same(take(going, 1), wanted[done : done + 1])


def test_a_broken_off_epoch_goes_on_in_the_next_loop():
    batches = minibatches(np.arange(10), batch_size=3)
    first = [next(iter(batches)).tolist() for _ in range(3)]
    rest = [b.tolist() for b in batches]
    assert sorted(itertools.chain(*first, *rest)) == list(range(10)) and (batches.epoch, batches.position) == (1, 0)
    iter(batches)  # alone it takes nothing
    assert len(epoch(batches)) == 4


def test_two_loops_at_once_are_refused():
    batches = minibatches(np.arange(10), batch_size=3)
    with pytest.raises(ConcurrentUseError, match="overtaken by another loop"):
        for _ in batches:
            for _ in batches:
                pass
    loop = iter(batches)
    next(loop)
    before = batches.state_dict()
    batches.load_state_dict(before)
    with pytest.raises(ConcurrentUseError, match="load_state_dict"):
        next(loop)
    assert batches.state_dict() == before


STATE = {"epoch": 3, "position": 2, "seed": 4, "n": 10, "batch_size": 3, "shuffle": True, "drop_last": False}
BAD_STATES = {
    "none": (None, "expected a dict of `epoch`"),
    "empty": ({}, "expected a dict of `epoch`"),
    "missing": ({k: v for k, v in STATE.items() if k != "n"}, "expected a dict"),
    "more": ({**STATE, "more": 1}, "expected a dict"),
    "negative epoch": ({**STATE, "epoch": -1}, "`epoch` .* is -1; expected an int from 0"),
    "huge epoch": ({**STATE, "epoch": 2**64}, "`epoch` .* expected an int from 0 to 18446744073709551615"),
    "float epoch": ({**STATE, "epoch": 1.0}, "`epoch` .* is 1.0; expected an int"),
    "bool epoch": ({**STATE, "epoch": True}, "`epoch` .* is True; expected an int"),
    "past the end": ({**STATE, "position": 4}, "`position` .* is 4; expected an int from 0 to 3"),
    "other seed": ({**STATE, "seed": 5}, "`seed` was 5 .* is 4 here; .* same data and settings"),
    "other data": ({**STATE, "n": 11}, "`n` was 11 .* is 10 here"),
    "other size": ({**STATE, "batch_size": 4}, "`batch_size` was 4 .* is 3 here"),
    "other order": ({**STATE, "shuffle": False}, "`shuffle` was False .* is True here"),
    "other end": ({**STATE, "drop_last": True}, "`drop_last` was True .* is False here"),
    "int for bool": ({**STATE, "shuffle": 1}, "`shuffle` .* is 1; expected bool"),
    "text": ({**STATE, "seed": "4"}, "`seed` .* is '4'; expected int"),
}


@pytest.mark.parametrize("state, message", BAD_STATES.values(), ids=BAD_STATES)
def test_refuses_a_state_that_does_not_fit(state, message):
    batches = minibatches(np.arange(10), batch_size=3, seed=4)
    batches.load_state_dict({**STATE, "position": 1})
    loop = iter(batches)
    with pytest.raises(CheckpointError, match=message):
        batches.load_state_dict(state)
    assert batches.state_dict() == {**STATE, "position": 1}
    assert len(list(loop)) == 3  # a loop under way goes on


# ---- the gather ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_parallel(monkeypatch):
    """Every gather that can go through the kernel does, in 3 parts; gives the list of its launches."""
    launches = []

    def launch(kernel, *args):
        launches.append(args)
        threads_launch(kernel, *args)

    threads_launch = threads.launch
    monkeypatch.setattr(data, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(data, "PARALLEL_ROW", 1)
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "launch", launch)
    return launches


LAYOUTS = {
    "contiguous": lambda n, d: numbers(n, 5, dtype=d),
    "1-d": lambda n, d: numbers(n, dtype=d),
    "4-d": lambda n, d: numbers(n, 2, 1, 3, dtype=d),
    "every second row": lambda n, d: numbers(2 * n, 5, dtype=d)[::2],
    "backwards": lambda n, d: numbers(n, 5, dtype=d)[::-1],
    "part of each row": lambda n, d: numbers(n, 9, dtype=d)[:, 2:7],
    "one row repeated": lambda n, d: np.broadcast_to(numbers(1, 5, dtype=d), (n, 5)),
    "read-only": lambda n, d: np.frombuffer(numbers(n, 5, dtype=d).tobytes(), d).reshape(n, 5),
    "unaligned": lambda n, d: np.frombuffer(b"x" + numbers(n, 5, dtype=d).tobytes(), d, offset=1).reshape(n, 5),
}  # fmt: skip
SLOW = {  # the rows are not in one piece, or are not plain bytes
    "Fortran": lambda n, d: np.asfortranarray(numbers(n, 5, dtype=d)),
    "every second column": lambda n, d: numbers(n, 10, dtype=d)[:, ::2],
    "one column": lambda n, d: np.broadcast_to(numbers(n, 1, dtype=d), (n, 5)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, *SLOW])
def test_gather_equals_indexing(layout, dtype, in_parallel):
    X = {**LAYOUTS, **SLOW}[layout](11, dtype)
    wanted = X[np.argsort(np.random.Philox(key=np.array([0, 0], "u8")).random_raw(11))].tobytes()
    for kernel in (True, False):
        seen = b"".join(x.tobytes() for x in minibatches(X, batch_size=4))
        assert seen == wanted
        assert len(in_parallel) == (3 if layout in LAYOUTS else 0) or not kernel
        data.PARALLEL_BYTES = 1 << 62  # the fixture puts it back


@given(width=st.integers(1, 200), n=st.integers(1, 50), batch_size=st.integers(1, 50), parts=st.integers(2, 9))
@few
def test_the_kernel_equals_take(width, n, batch_size, parts):
    source = numbers(n, width, dtype="u1", seed=width)
    rows = np.random.default_rng(n).integers(0, n, batch_size)
    out = np.full((batch_size + 2, width), 7, "u1")  # a row before and after, to be left alone
    at, to = source.ctypes.data, out.ctypes.data + width
    threads.launch(data._kernel(), to, at, width, width, rows, parts)
    assert out[1:-1].tobytes() == np.take(source, rows, axis=0).tobytes()
    assert (out[[0, -1]] == 7).all()


def test_big_batches_go_through_the_kernel_by_themselves():
    X = numbers(3_000, 200, dtype="f8")
    batches = minibatches(X, batch_size=2_000)
    assert 2_000 * 200 * 8 > data.PARALLEL_BYTES
    order = np.argsort(np.random.Philox(key=np.array([0, 0], "u8")).random_raw(3_000))
    assert b"".join(x.tobytes() for x in batches) == X[order].tobytes()


def test_objects_keep_their_references(in_parallel):
    X = np.array([[object(), "text"] for _ in range(9)], object)
    seen = {id(o) for x in minibatches(X, batch_size=4) for o in x.ravel()}
    assert seen == {id(o) for o in X.ravel()} and not in_parallel
    mixed = np.array([(1, "a"), (2, "b"), (3, "c")], [("n", "i4"), ("o", object)])
    assert sorted(o for x in minibatches(mixed, batch_size=2) for o in x["o"]) == ["a", "b", "c"] and not in_parallel
    words = np.array(["long" * 20, "", "short"], np.dtypes.StringDType())
    assert sorted(w for x in minibatches(words, batch_size=2) for w in x) == sorted(words) and not in_parallel


def test_examples_without_numbers(in_parallel):
    assert [x.shape for x in minibatches(np.empty((5, 0, 3)), batch_size=2)] == [(2, 0, 3), (2, 0, 3), (1, 0, 3)]


def test_a_file_mapped_into_memory(tmp_path, in_parallel):
    X = np.memmap(tmp_path / "x", np.float32, "w+", shape=(10, 4))
    X[:] = np.arange(40).reshape(10, 4)
    seen = np.concatenate([x.copy() for x in minibatches(X, batch_size=3)])
    assert np.array_equal(np.sort(seen[:, 0]), np.arange(0, 40, 4)) and len(in_parallel) == 4
    batch = next(iter(minibatches(X, batch_size=3)))
    assert type(batch) is np.ndarray


def test_a_forked_child_gathers_alone():
    run_python(
        """
import os, sys, warnings
import numpy as np
from fastopt import data, threads
if not hasattr(os, "fork"): sys.exit()
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork of a process with threads
threads.count = (lambda count: lambda: min(count(), 2) if threads._forked else 2)(threads.count)
X = np.arange(400_000.0).reshape(2_000, 200)
batches = data.minibatches(X, batch_size=1_000)
total = lambda: sum(x.sum() for x in batches)
assert total() == X.sum()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    right = total() == X.sum()
os._exit(0 if right and len(caught) == 1 and "forked" in str(caught[0].message) else 9)
""",
        timeout=60,
    )


def test_importing_and_small_batches_do_not_load_numba():
    run_python(
        "import sys, numpy as np; from fastopt.data import minibatches\n"
        "for x in minibatches(np.ones((100, 10)), batch_size=10): pass\n"
        "assert 'numba' not in sys.modules"
    )


# ---- what cannot work ------------------------------------------------------------------------------------------------

X = np.ones((6, 2))
CANNOT = {
    "nothing": (lambda: minibatches(batch_size=2), ConfigError, "no arrays"),
    "lists": (lambda: minibatches([1, 2, 3], batch_size=2), ArrayTypeError, "array 0 is a list, .* np.asarray"),
    "a list second": (lambda: minibatches(X, [1] * 6, batch_size=2), ArrayTypeError, "array 1 is a list"),
    "none": (lambda: minibatches(X, None, batch_size=2), ArrayTypeError, "array 1 is a NoneType"),
    "a number": (lambda: minibatches(np.float64(3), batch_size=2), ArrayTypeError, "array 0 is a float64"),
    "masked": (lambda: minibatches(np.ma.array(X), batch_size=2), ArrayTypeError, "a MaskedArray.* fill the masked"),
    "0-d": (lambda: minibatches(np.array(3.0), batch_size=1), ConfigError, r"array 0 has shape \(\)"),
    "unequal": (lambda: minibatches(X, np.ones(5), batch_size=2), ConfigError, r"hold \[6, 5\] examples"),
    "empty": (lambda: minibatches(np.ones((0, 2)), batch_size=2), ConfigError, r"hold \[0\] examples"),
    "seed None": (lambda: minibatches(X, batch_size=2, seed=None), ConfigError, "`seed` is None"),
    "seed -1": (
        lambda: minibatches(X, batch_size=2, seed=-1),
        ConfigError,
        "`seed` is -1 .*from 0 to 18446744073709551615",
    ),
    "seed 2**64": (lambda: minibatches(X, batch_size=2, seed=2**64), ConfigError, "`seed` is 18446744073709551616"),
    "seed bool": (lambda: minibatches(X, batch_size=2, seed=True), ConfigError, r"`seed` is True \(bool\)"),
    "seed float": (lambda: minibatches(X, batch_size=2, seed=0.0), ConfigError, "`seed` is 0.0"),
    "shuffle": (lambda: minibatches(X, batch_size=2, shuffle=1), ConfigError, "`shuffle` is 1; expected True or False"),
    "drop_last": (lambda: minibatches(X, batch_size=2, drop_last=None), ConfigError, "`drop_last` is None"),
    "nothing left": (
        lambda: minibatches(X, batch_size=7, drop_last=True),
        ConfigError,
        "`batch_size` is 7 .*from 1 to 6, the number of examples, or nothing is left with drop_last",
    ),
}


@pytest.mark.parametrize("make, error, message", CANNOT.values(), ids=CANNOT)
def test_cannot_work(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert isinstance(caught.value, FastoptError) and str(caught.value).startswith("minibatches: ")


@pytest.mark.parametrize("size", [0, -1, True, np.True_, 2.0, "2", None, [2], np.array([2, 3])], ids=repr)
@pytest.mark.parametrize("drop_last", [True, False])
def test_bad_batch_size(size, drop_last):
    with pytest.raises(ConfigError, match=r"minibatches: `batch_size` is .*; expected an int"):
        minibatches(X, batch_size=size, drop_last=drop_last)


def test_numpy_sizes_are_ints():
    batches = minibatches(X, batch_size=np.int32(4), seed=np.uint64(2**64 - 1))
    assert type(batches) is Minibatches and json.dumps(batches.state_dict())
    assert len(epoch(batches)) == 2


def test_an_array_shrunk_under_way_is_not_read_past_its_end(in_parallel):
    X = np.ones((10, 3))
    batches = iter(minibatches(X, batch_size=5, shuffle=True))
    next(batches)
    X.resize((2, 3), refcheck=False)
    next(batches)
    assert len(in_parallel) == 1


def test_minibatches_can_be_read():
    batches = minibatches(np.ones((4, 2)), np.ones(4), batch_size=2, seed=7)
    next(iter(batches))
    assert repr(batches) == (
        "Minibatches(arrays=2, n=4, epoch=0, position=1, seed=7, batch_size=2, shuffle=True, drop_last=False)"
    )
