"""Sparse gradients in the torch classes: over the rows they name, with torch's numbers, state and errors."""

import copy
import functools
import weakref

import numpy as np
import pytest
import torch
from test_torch import one_thread  # noqa: F401
from torch import nn

import fastopt as fo
import fastopt.torch as ft

# torch's Adagrad makes sparse tensors itself, and torch warns once that it does not check them
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

ROWS, COLUMNS = 40, 6
MADE = {
    "SGD": dict(lr=0.1),
    "SGD maximize": dict(lr=torch.tensor(0.1), maximize=True),
    "SGD momentum": dict(lr=0.05, momentum=0.9),
    "Adagrad": dict(lr=0.1),
    "Adagrad lr_decay": dict(lr=0.1, lr_decay=0.01, initial_accumulator_value=0.5, maximize=True),
    "SparseAdam": dict(lr=0.05),
    "SparseAdam betas": dict(lr=0.05, betas=(0.5, 0.9), eps=1e-3, maximize=True),
}


def sparse(indices, values, shape):
    return torch.sparse_coo_tensor(torch.as_tensor(indices), values, shape, check_invariants=True)


def drawn(shape, axes, seed, dtype=torch.float32):
    """A gradient over the first `axes` axes: empty, with and without duplicates, coalesced, or with gaps."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 12))
    indices = [rng.integers(0, size, n) for size in shape[:axes]]
    values = torch.from_numpy(rng.standard_normal((n, *shape[axes:]))).to(dtype)
    if (
        seed % 5 == 0 and len(shape) - axes == 1 and n > 1
    ):  # of one row with strides (1, 1) torch 2.13 adds wrong numbers
        values = torch.from_numpy(rng.standard_normal((shape[-1], n))).to(dtype).t()
    g = sparse(np.array(indices).reshape(axes, n), values, shape)
    return g.coalesce() if seed % 4 == 0 else g


def run(lib, name, steps=120, dtype=torch.float32, exchange=None):
    """Tables with gradients over one and two axes, one that is dense now and then, and dense layers beside them."""
    rng = torch.Generator().manual_seed(0)
    shapes = [(ROWS, COLUMNS), (5, 4, 3), (ROWS,), (ROWS, COLUMNS), (7, 3), (3,)]
    axes = [1, 2, 1, 1, 0, 0]
    if name.startswith("SparseAdam"):
        shapes, axes = shapes[:4], axes[:4]
    params = [nn.Parameter(torch.randn(s, generator=rng, dtype=dtype)) for s in shapes]
    opt = getattr(lib, name.split()[0])(params, **copy.deepcopy(MADE[name]))
    mixed = not name.startswith("SparseAdam") and "momentum" not in MADE[name]  # which torch's momentum buffer is not
    for t in range(steps):
        for k, (p, s, a) in enumerate(zip(params, shapes, axes, strict=True)):
            if a and not (mixed and k == 3 and t % 7 > 4):
                p.grad = drawn(s, a, 100 * t + k, dtype)
            else:
                p.grad = torch.randn(s, generator=torch.Generator().manual_seed(100 * t + k), dtype=dtype)
        if t % 10 == 9:
            params[0].grad = None
        if t == steps // 2:
            opt.param_groups[0]["lr"] *= 0.5
            if exchange:
                saved = copy.deepcopy(opt.state_dict())
                opt = getattr(exchange, name.split()[0])(params, **copy.deepcopy(MADE[name]))
                opt.load_state_dict(saved)
        opt.step()
    return opt, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MADE)
def test_torchs_numbers_over_random_steps(name, dtype):
    # float32: duplicates are summed in another order, a hundred steps long
    near = dict(rtol=1e-4, atol=2e-5) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-12)
    ref, theirs = run(torch.optim, name, dtype=dtype)
    for other in (None, torch.optim):
        opt, ours = run(ft, name, dtype=dtype, exchange=other)
        torch.testing.assert_close(ours, theirs, **near)
        saved, expected = opt.state_dict(), ref.state_dict()
        assert saved["param_groups"] == expected["param_groups"]
        for k, state in expected["state"].items():
            assert list(saved["state"][k]) == list(state)
            for key, value in state.items():
                assert type(saved["state"][k][key]) is type(value)
                mine = saved["state"][k][key]
                if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
                    mine, value = mine.to_dense(), value.to_dense()
                torch.testing.assert_close(mine, value, **near)
    assert run(torch.optim, name, dtype=dtype, exchange=ft)[1][0].isfinite().all()


@pytest.mark.parametrize("name", [n for n in MADE if "momentum" not in n])
def test_kernels_take_the_steps(name, monkeypatch):
    """None of them is torch's own."""
    monkeypatch.setattr(ft.base.Fast, "_by_torch", lambda self, params, unscaled: pytest.fail("stepped by torch"))
    run(ft, name, steps=8)


def test_rows_that_are_not_touched_wait():
    p = nn.Parameter(torch.ones(ROWS, COLUMNS))
    opt = ft.SparseAdam([p], lr=0.1)
    for t in range(3):
        p.grad = sparse([[t, t, 7]], torch.ones(3, COLUMNS), p.shape)
        opt.step()
    touched = [0, 1, 2, 7]
    assert torch.equal((p != 1).all(1).nonzero().flatten(), torch.tensor(touched))
    assert torch.equal(opt.state[p]["exp_avg"].any(1).nonzero().flatten(), torch.tensor(touched))
    assert opt.state[p]["step"] == 3 and type(opt.state[p]["step"]) is int


def test_an_embedding_learns_as_it_does_with_torch():
    losses = []
    for lib in (ft, torch.optim):
        torch.manual_seed(0)
        words, head = nn.EmbeddingBag(50, 8, sparse=True, mode="sum"), nn.Linear(8, 3)
        opts = lib.SparseAdam(words.parameters(), lr=0.2), lib.AdamW(head.parameters(), lr=0.02)
        rng = torch.Generator().manual_seed(1)
        mine = []
        for _ in range(100):
            x = torch.randint(50, (32, 1), generator=rng)
            loss = nn.functional.cross_entropy(head(words(x)), x[:, 0] % 3)
            for opt in opts:
                opt.zero_grad()
            loss.backward()
            for opt in opts:
                opt.step()
            mine.append(loss.detach())
        losses.append(torch.stack(mine))
    assert losses[1][-5:].mean() < 0.7 * losses[1][0]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_grad_scaler():
    result = []
    for lib in (ft, torch.optim):
        torch.manual_seed(0)
        words = nn.Embedding(20, 4, sparse=True)
        opt, scaler = lib.Adagrad(words.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=64.0)
        for t in range(5):
            opt.zero_grad()
            scaler.scale((words(torch.tensor([t, 3, 3])) ** 2).sum()).backward()
            if t == 2:
                words.weight.grad._values()[0, 0] = float("inf")  # this step is left out
            scaler.step(opt)
            scaler.update()
        result.append([words.weight, opt.state[words.weight]["step"]])
    torch.testing.assert_close(*result)


def test_any_rule_that_sees_rows_alone_takes_them_lazily():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((ROWS, COLUMNS)).astype("f4")
    p = nn.Parameter(torch.from_numpy(a.copy()))
    opt, ref = ft.Lion([p], lr=0.1, weight_decay=0.1), fo.lion({"w": a}, lr=0.1, weight_decay=0.1)
    for t in range(20):
        p.grad = drawn(p.shape, 1, t)
        ref.step({"w": fo.rows(p.grad._indices()[0].numpy(), p.grad._values().contiguous().numpy())})
        opt.step()
    assert p.detach().numpy().tobytes() == a.tobytes()  # the same kernel, so the same bits
    assert set(opt.state[p]) == {"step", "exp_avg"} and float(opt.state[p]["step"]) == 20


def test_step_counts_that_are_ints_may_be_written_and_states_replaced():
    result = []
    for lib in (ft, torch.optim):
        p = nn.Parameter(torch.ones(ROWS, COLUMNS))
        opt = lib.SparseAdam([p], lr=0.1)
        for t in range(6):
            if t == 2:
                opt.state[p]["step"] = 50
            if t == 4:
                opt.state[p]["exp_avg"] = torch.ones(ROWS, COLUMNS)
            p.grad = drawn(p.shape, 1, t + 1)
            opt.step()
        result.append([p, opt.state[p]["exp_avg"], torch.tensor(opt.state[p]["step"])])
    torch.testing.assert_close(*result, rtol=1e-5, atol=1e-6)


def test_momentum_of_sparse_gradients_becomes_dense_with_the_first_dense_one():
    """Where torch raises an error, since its buffer is sparse still."""
    ours, dense = (nn.Parameter(torch.ones(ROWS, COLUMNS)) for _ in range(2))
    opt, ref = ft.SGD([ours], lr=0.1, momentum=0.9), torch.optim.SGD([dense], lr=0.1, momentum=0.9)
    for t in range(1, 5):
        g = drawn(ours.shape, 1, t)
        ours.grad, dense.grad = g.to_dense() if t == 3 else g, g.to_dense()
        opt.step(), ref.step()
    torch.testing.assert_close(ours, dense)
    assert opt.state[ours]["momentum_buffer"].layout is torch.strided


def test_gradients_are_not_kept_alive():
    p = nn.Parameter(torch.ones(ROWS, COLUMNS))
    opt = ft.SparseAdam([p])
    for t in range(1, 4):
        p.grad = drawn(p.shape, 1, t)
        opt.step()
    alive = weakref.ref(p.grad._values().untyped_storage())
    opt.zero_grad()
    assert alive() is None


@pytest.mark.parametrize("indices", [[[0, ROWS]], [[-1, 3]], [[0, 2**40]], [[1, 39], [0, COLUMNS]], [[1, 39], [0, -1]]])
def test_indices_outside_are_refused_before_anything_changes(indices):
    """torch does not check them either, and would write beside the table."""
    p, q = nn.Parameter(torch.ones(ROWS, COLUMNS)), nn.Parameter(torch.ones(3))
    for name in ("SGD", "Adagrad", "Lion"):
        opt = getattr(ft, name)([("table", p), ("bias", q)], lr=0.1)
        for good in (True, False):
            q.grad = torch.ones(3)
            where = torch.tensor(indices if not good else [[1]] * len(indices))
            values = torch.ones(where.shape[1], *p.shape[len(where) :])
            p.grad = torch.sparse_coo_tensor(where, values, p.shape, check_invariants=False)
            if good:
                opt.step()
                before = [x.clone() for x in (p, q)], copy.deepcopy(opt.state_dict())
                continue
            with pytest.raises(fo.GradientError, match=r"`table`: index .* expected 0 to"):
                opt.step()
        torch.testing.assert_close([p.data, q.data], [x.data for x in before[0]], rtol=0, atol=0)
        assert str(opt.state_dict()) == str(before[1])
        q.grad, p.grad = torch.ones(3), drawn(p.shape, 1, 1)
        opt.step()  # and it goes on


def test_torchs_own_errors():
    def grads(p):
        return drawn(p.shape, 1, 1)

    for lib in (ft, torch.optim):
        for name, options, given, says in [
            ("SparseAdam", {}, torch.ones_like, "does not support dense gradients, please consider Adam"),
            ("Adagrad", {"weight_decay": 0.1}, grads, "weight_decay option is not compatible with sparse"),
            ("SGD", {"weight_decay": 0.1}, grads, r"add\(sparse, dense\) is not supported"),
            ("SGD", {"fused": True}, grads, "does not support sparse gradients"),
            ("AdamW", {}, grads, "does not support sparse gradients"),
            ("RMSprop", {}, grads, "does not support sparse gradients"),
            ("NAdam", {}, grads, "does not support sparse gradients"),
        ]:
            p = nn.Parameter(torch.ones(ROWS, COLUMNS))
            p.grad = given(p)
            with pytest.raises(RuntimeError, match=says):
                getattr(lib, name)([p], **options).step()
            assert torch.equal(p, torch.ones(ROWS, COLUMNS))


def test_rules_that_look_at_whole_parameters_refuse():
    p = nn.Parameter(torch.ones(ROWS, COLUMNS))
    p.grad = drawn(p.shape, 1, 1)
    for made in (ft.LAMB, functools.partial(ft.from_rule(fo.clip_norm(fo.adamw)), max_norm=1.0)):
        with pytest.raises(fo.ConfigError, match=r"looks at whole parameters; make it dense"):
            made([p]).step()
    assert torch.equal(p, torch.ones(ROWS, COLUMNS))


def test_what_kernels_do_not_take_is_stepped_by_torch():
    """Tables with gaps, complex numbers, other layouts."""
    for make in (
        lambda: nn.Parameter(torch.ones(COLUMNS, ROWS).t()),
        lambda: nn.Parameter(torch.ones(ROWS, COLUMNS, dtype=torch.complex64)),
    ):
        ours, theirs = make(), make()
        for lib, p in ((ft, ours), (torch.optim, theirs)):
            opt = lib.SGD([p], lr=0.1)
            for t in range(1, 4):
                p.grad = drawn(p.shape, 1, t, p.dtype)
                opt.step()
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, make())
