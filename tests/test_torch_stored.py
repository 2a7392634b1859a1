"""`state_dtype=`, `memory=`, `rounding=` and `master=` of the torch classes: the bits of `Optimizer`, torch's files."""

import copy
import inspect
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from test_torch import one_thread, through_file, train  # noqa: F401
from test_torch_halves import codes
from torch import nn

import fastopt as fo
import fastopt.torch as ft
from fastopt import blocks

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NUMPY = {BF16: np.dtype(ml_dtypes.bfloat16), F16: np.dtype(np.float16)}
SHAPES = ((70, 60), (7,))  # in 8 bits the first alone


def weights(dtype=F32, shapes=SHAPES):
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=rng).to(dtype)) for s in shapes]


def array(x):
    """A tensor's memory, in the dtype of ours for its codes."""
    return codes(x).view(NUMPY[x.dtype]) if x.dtype in NUMPY else x.detach().numpy()


def held(opt, p, state):
    """A state of ours in `opt.state[p]`, and its scales: under the names of `Optimizer`."""
    mine, key = opt.state[p], opt.kind.key(state)
    return {
        n: array(mine[k])
        for n, k in ((state, key), (state, f"{key}_q8"), (f"{state}_scale", f"{key}_scale"))
        if k in mine
    }


CASES = [
    (ft.AdamW, fo.adamw, F32, dict(memory="8bit"), {}),
    (ft.AdamW, fo.adamw, F32, dict(state_dtype={"exp_avg_sq": "q8"}, rounding="nearest"), {"state_dtype": {"v": "q8"}}),
    (ft.AdamW, fo.adamw, BF16, dict(memory="8bit", master="split"), {}),
    (ft.AdamW, fo.adamw, BF16, dict(memory="16bit", master="float32"), {}),
    (ft.AdamW, fo.adamw, F16, dict(master="kahan"), {}),
    (ft.SGD, fo.sgd, F32, dict(momentum=0.9, state_dtype=torch.bfloat16), {"state_dtype": "bf16"}),
    (ft.Yogi, fo.yogi, F32, dict(memory="8bit"), {}),  # whose states do not start at 0
]


@pytest.mark.parametrize("made, rule, dtype, given, renamed", CASES)
def test_the_bits_of_optimizer_and_resume(made, rule, dtype, given, renamed):
    params = weights(dtype)
    arrays = [array(p).copy() for p in params]
    opt, ref = made(params, lr=0.01, **given), rule(arrays, lr=0.01, **{**given, **renamed})
    for t in range(6):
        if t == 2:
            saved, opt = through_file(opt.state_dict()), made(params, lr=0.01, **given)
            opt.load_state_dict(saved)
        if t == 4:
            opt = pickle.loads(pickle.dumps(opt))
            params = [p for g in opt.param_groups for p in g["params"]]
        train(opt, params, 1, start=t)
        ref.step([array(p.grad) for p in params])
    for k, p in enumerate(params):
        assert array(p).tobytes() == arrays[k].tobytes()
        mine = {n: x for s in rule.state for n, x in held(opt, p, s).items()}
        if "master" in given:
            mine["master"] = array(opt.state[p]["master"])
        expected = {s: x[k] for s, x in ref.state.items() if x[k] is not None}
        assert mine.keys() == expected.keys()
        for name, x in expected.items():
            assert (mine[name].dtype, mine[name].tobytes()) == (x.dtype, x.tobytes()), name
    assert opt.memory().state_bytes == ref.memory().state_bytes


STORED = dict(lr=0.01, memory="8bit")


def test_torchs_run_goes_on_in_8_bits_and_back():
    """What someone short of memory does: numbers become the nearest ones of the new storage, and no step is lost."""
    params, theirs = weights(), weights()
    ref = torch.optim.AdamW(theirs, lr=0.01)
    train(ref, theirs, 3), train(torch.optim.AdamW(params, lr=0.01), params, 3)
    opt = ft.AdamW(params, **STORED)
    opt.load_state_dict(through_file(ref.state_dict()))
    assert opt.param_groups[0]["state_dtype"] == "q8" and "state_dtype" not in ref.param_groups[0]
    train(opt, params, 1, start=3), train(ref, theirs, 1, start=3)
    # an update is lr in size, and m and v are off by 1 % or so of the largest in their block
    torch.testing.assert_close(params, theirs, rtol=0, atol=2e-3)
    assert opt.state[params[0]]["step"] == 4 and "exp_avg" in opt.state[params[1]]
    saved = through_file(opt.state_dict())
    with pytest.raises(KeyError, match="exp_avg"):  # torch must not take codes for numbers
        plain = torch.optim.AdamW(params)
        plain.load_state_dict(copy.deepcopy(saved))
        plain.step()
    plain = ft.AdamW(params, lr=0.01)
    plain.load_state_dict(saved)
    assert "state_dtype" not in plain.param_groups[0]
    m = blocks.decode(*(opt.state[params[0]][k].numpy().copy() for k in ("exp_avg_q8", "exp_avg_scale")))
    for p in params:
        p.grad.zero_()
    plain.param_groups[0]["betas"] = 0.5, 0.999
    plain.step()
    np.testing.assert_array_equal(plain.state[params[0]]["exp_avg"].numpy(), m / 2)
    last = torch.optim.AdamW(params, lr=0.01)
    last.load_state_dict(plain.state_dict())
    train(last, params, 1, start=5)
    # 16 bits are floating-point tensors, which torch's class casts by itself
    opt, other = ft.AdamW(params, lr=0.01, memory="16bit"), torch.optim.AdamW(params, lr=0.01)
    train(opt, params, 1)
    other.load_state_dict(opt.state_dict())
    assert torch.equal(other.state[params[0]]["exp_avg"], opt.state[params[0]]["exp_avg"].float())
    train(other, params, 1)


def test_groups_and_changes_mid_run():
    """Storage is a key of a group: inherited, its own, or none; and may change between two steps."""
    params = weights(shapes=((70, 60), (70, 60), (70, 60)))
    groups = [{"params": params[:1]}, {"params": params[1:2], "memory": "16bit"}]
    opt = ft.AdamW(groups, **STORED)
    opt.add_param_group({"params": params[2:], "state_dtype": None})
    train(opt, params, 1)
    assert [g["state_dtype"] for g in opt.param_groups] == ["q8", "bfloat16", None]
    assert [opt.state[p].get("exp_avg", torch.zeros(0, dtype=torch.uint8)).dtype for p in params] == [
        torch.uint8,
        BF16,
        F32,
    ]
    before = copy.deepcopy(opt.state_dict()["state"])
    for g, name in zip(opt.param_groups, ("bf16", None, "q8"), strict=True):
        g["state_dtype"] = name
    for p in params:
        p.grad.zero_()
    opt.param_groups[0]["rounding"] = "nearest"
    opt.step()
    assert opt.state[params[1]]["exp_avg"].equal(0.9 * before[1]["exp_avg"].float())
    for k in (0, 2):
        at, was = opt.state[params[k]], before[k]
        now = (
            blocks.decode(at["exp_avg_q8"].numpy(), at["exp_avg_scale"].numpy()) if k else at["exp_avg"].float().numpy()
        )
        old = was["exp_avg"].numpy() if k else blocks.decode(was["exp_avg_q8"].numpy(), was["exp_avg_scale"].numpy())
        # of the largest in its block: half a step of 8 bits, and of bfloat16
        np.testing.assert_allclose(now, 0.9 * old, rtol=0, atol=0.015 * float(np.abs(old).max()))
        assert ("exp_avg" in at) == (k == 0) and ("exp_avg_q8" in at) == (k == 2)


def test_layouts():
    """Gaps, and axes in another order: blocks lie along memory, and a checkpoint may come from another layout."""
    start = torch.randn(8, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    wide = torch.zeros(8, 16, 6, 12)
    wide[..., ::2] = start
    layouts = [start, start.contiguous(memory_format=torch.channels_last), wide[..., ::2]]
    params = [nn.Parameter(x.clone(memory_format=torch.preserve_format)) for x in layouts[:2]]
    params.append(nn.Parameter(layouts[2]))
    opts = [ft.AdamW([p], lr=0.01, memory="8bit", rounding="nearest") for p in params]
    for opt, p in zip(opts, params, strict=True):
        train(opt, [p], 2)
    assert torch.equal(params[0], params[2])  # the same order of elements
    torch.testing.assert_close(params[0], params[1], rtol=0, atol=5e-3)  # other blocks
    opts[1].load_state_dict(opts[0].state_dict())
    train(opts[1], params[1:2], 1)
    mine = opts[1].state[params[1]]
    assert mine["exp_avg_q8"].stride() == params[1].stride() and mine["step"] == 3


def test_averages_put_masters_back():
    made = ft.from_rule(fo.ema(fo.sgd))
    params = weights(BF16)
    opt = made(params, lr=0.1, decay=0.5, master="split")
    train(opt, params, 2)
    training = [(p.tolist(), opt.state[p]["master"].tolist()) for p in params]
    with opt.averaged():
        assert params[0].tolist() != training[0][0]
    assert [(p.tolist(), opt.state[p]["master"].tolist()) for p in params] == training


def test_what_is_refused_changes_nothing():
    params = weights()
    for given, says in [
        ({"state_dtype": "q4"}, "expected one of .*'q8'"),
        ({"state_dtype": {"v": "q8"}}, "`AdamW` has no state 'v'; its states are `exp_avg`, `exp_avg_sq`"),
        ({"memory": "8bit", "state_dtype": "bf16"}, "leave one of them out"),
        ({"memory": "4bit"}, "'8bit', '16bit'"),
        ({"rounding": "up"}, "rounding is 'up'"),
        ({"master": "float32"}, "there are none"),
    ]:
        with pytest.raises(fo.ConfigError, match=says):
            ft.AdamW(params, lr=0.1, **given)
        if "master" not in given:
            with pytest.raises(fo.ConfigError, match=says):
                ft.AdamW([{"params": params, **given}])
    opt = ft.AdamW(params, **STORED)
    with pytest.raises(fo.ConfigError, match="'q4'"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "state_dtype": "q4"})
    assert len(opt.param_groups) == 1
    train(opt, params, 1)
    before = [p.tolist() for p in params], copy.deepcopy(opt.state_dict())
    for change, says in [
        (dict(exp_avg_scale=torch.zeros(3)), "state `exp_avg_q8` is no dense uint8 tensor"),
        (dict(exp_avg_q8=torch.zeros(4, 2, dtype=torch.uint8), exp_avg_scale=torch.zeros(1)), r"has shape \(4, 2\)"),
    ]:
        bad = copy.deepcopy(before[1])
        bad["state"][0].update(change)
        opt.load_state_dict(bad)
        for _ in range(2):
            with pytest.raises(fo.ConfigError, match=says):
                opt.step()
        assert [p.tolist() for p in params] == before[0]
    opt.load_state_dict(before[1])
    params[0].grad = torch.zeros(70, 60).to_sparse(1)
    with pytest.raises(fo.ConfigError, match=r"torch's own code must step, .*'state_dtype': None"):
        opt.step()
    assert [p.tolist() for p in params] == before[0]
    masters = weights(BF16)
    opt, other = ft.AdamW(masters, master="split"), ft.AdamW(masters, master="float32")
    train(other, masters, 1)
    opt.load_state_dict(other.state_dict())
    with pytest.raises(fo.ConfigError, match=r"state `master` .* is torch.float32; master='split' keeps torch.int16"):
        opt.step()


def test_gradients_of_rows_in_8_bits():
    """Of rows that are whole blocks: the bits of `Optimizer`. Others are refused before a state begins."""
    table, narrow = torch.nn.Embedding(40, 256, sparse=True), torch.nn.Embedding(100, 64, sparse=True)
    array = table.weight.detach().numpy().copy()
    opt, ref = ft.Adagrad(table.parameters(), lr=0.05, memory="8bit"), fo.adagrad([array], lr=0.05, memory="8bit")
    for t in range(3):
        rng = torch.Generator().manual_seed(t)
        opt.zero_grad()
        table(torch.randint(40, (20,), generator=rng)).square().sum().backward()
        g = table.weight.grad
        ref.step([fo.rows(g._indices()[0].numpy(), g._values().numpy())])
        opt.step()
    assert array.tobytes() == table.weight.detach().numpy().tobytes()
    opt, before = ft.Adagrad(narrow.parameters(), memory="8bit"), narrow.weight.detach().clone()
    state = copy.deepcopy(opt.state_dict())
    narrow(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(fo.ConfigError, match=r"rows of 64 numbers would share the blocks of 256.*torch.bfloat16"):
        opt.step()
    assert torch.equal(before, narrow.weight) and str(state) == str(opt.state_dict())
    opt = ft.Adagrad([{"params": narrow.parameters(), "state_dtype": torch.bfloat16}], memory="8bit")
    opt.step()
    assert opt.state[narrow.weight]["sum"].dtype == torch.bfloat16


def test_signature_and_table():
    ours, theirs = inspect.signature(ft.AdamW), inspect.signature(torch.optim.AdamW)
    assert list(ours.parameters)[: len(theirs.parameters)] == list(theirs.parameters)
    assert list(ours.parameters)[len(theirs.parameters) :] == ["state_dtype", "rounding", "master", "memory"]
    assert list(inspect.signature(ft.Lion).parameters)[-4:] == ["state_dtype", "rounding", "master", "memory"]
    params = weights()
    opt = ft.AdamW(params, **STORED)
    train(opt, params, 1)
    lines = str(opt.memory()).splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["parameters", "float32", "4,207"],
        ["exp_avg", "q8", "4,200"],
        ["exp_avg_sq", "q8", "4,200"],
    ]
    assert opt.memory().state_bytes == 2 * (4200 + 4 * 17 + 4 * 7)
