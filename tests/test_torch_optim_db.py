"""torch's own database of optimizer inputs and error inputs, with these classes in place of torch's."""

import copy
import inspect
import warnings

import pytest
import torch

import fastopt.torch as ft

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest; pip install expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch's internals, while they are imported
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

NAMES = "Adadelta Adagrad Adam Adamax AdamW ASGD Muon NAdam RAdam RMSprop Rprop SGD SparseAdam Adafactor LBFGS".split()
DB = {info.optim_cls.__name__: info for info in optim_db}
INPUTS = [pytest.param(n, i, id=f"{n}-{i.desc or 'default'}") for n in NAMES for i in DB[n].optim_inputs_func("cpu")]
ERRORS = [
    pytest.param(n, e, id=f"{n}-{e.optimizer_error_input.desc}")
    for n in NAMES
    for e in DB[n].optim_error_inputs_func("cpu", torch.float32)
]
SHAPES = {"Muon": [(10, 5), (5, 10), (6, 6)], "SparseAdam": [(10, 5), (7,), (3, 4, 2)]}
PER_STEP = {
    # Newton-Schulz in bfloat16 (8 bits) there and in float32 here, five times on end
    "Muon": dict(rtol=0.05, atol=0.05),
    # many curved steps, of which each goes on from the differences of the last ones; in float64
    "LBFGS": dict(rtol=1e-7, atol=1e-7),
    # a dozen float32 roundings a step, in another order; RMSprop's v - ga^2 and Adam's first steps divide small numbers
    None: dict(rtol=2e-5, atol=2e-5),
}


def made(name, seed=0):
    torch.manual_seed(seed)
    shapes = SHAPES.get(name, [(10, 5), (7,), (), (3, 4, 2)])
    dtype = torch.float64 if name == "LBFGS" else torch.float32
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype)) for s in shapes]


def descend(opt, params, steps, seed=1, start=0):
    """Steps with gradients of their own; in every third one the second parameter has none."""
    for t in range(start, start + steps):
        rng = torch.Generator().manual_seed(100 * seed + t)
        for k, p in enumerate(params):
            g = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            g = g.to_sparse(1) if isinstance(opt, torch.optim.SparseAdam) else g
            p.grad = None if t % 3 == 2 and k == 1 else g
        opt.step(*[curved(params)] * isinstance(opt, torch.optim.LBFGS))


def curved(params):
    """What `LBFGS` steps by: a loss with a minimum where it is not quadratic."""

    def closure():
        loss = torch.zeros((), dtype=torch.float64)
        for k, p in enumerate(params):
            curves = torch.linspace(1, 30, p.numel(), dtype=p.dtype).reshape(p.shape)
            x = p.detach() - k
            p.grad = curves * (x + x**3)
            loss += (curves * (x**2 / 2 + x**4 / 4)).sum()
        return loss

    return closure


def same(ours, theirs, name):
    torch.testing.assert_close(ours, theirs, **PER_STEP.get(name, PER_STEP[None]))


@pytest.mark.parametrize("name", NAMES)
def test_signature_and_defaults_are_torchs(name):
    ours, theirs = getattr(ft, name), DB[name].optim_cls
    assert issubclass(ours, theirs)
    mine = inspect.signature(ours)
    if name != "LBFGS":  # docs/memory.md
        assert list(mine.parameters)[-4:] == ["state_dtype", "rounding", "master", "memory"]
        mine = mine.replace(parameters=list(mine.parameters.values())[:-4])
    assert mine == inspect.signature(theirs)
    assert repr(ours(made(name))) == repr(theirs(made(name)))


@pytest.mark.parametrize("name, given", INPUTS)
def test_inputs(name, given):
    """The same parameters, state and groups after seven steps, of which three come after a checkpoint is exchanged."""
    ours, theirs = getattr(ft, name), DB[name].optim_cls
    a, b = made(name), made(name)
    opt, ref = ours(a, **copy.deepcopy(given.kwargs)), theirs(b, **copy.deepcopy(given.kwargs))
    if given.kwargs.get("capturable"):
        for o, ps in ((opt, a), (ref, b)):  # on the CPU torch refuses it in the step, so we do
            with pytest.raises(AssertionError, match="capturable"):
                descend(o, ps, 1)
        return
    descend(opt, a, 4), descend(ref, b, 4)
    same(a, b, name)
    saved, expected = opt.state_dict(), ref.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for k, state in expected["state"].items():
        assert list(saved["state"][k]) == list(state)  # in torch's order
        saved["state"][k].pop("al", None), state.pop("al", None)  # of LBFGS, which is no state
        same(saved["state"][k], state, name)  # with torch's dtypes and shapes, which assert_close compares
    opt, ref = ours(a, **copy.deepcopy(given.kwargs)), theirs(b, **copy.deepcopy(given.kwargs))
    opt.load_state_dict(copy.deepcopy(expected)), ref.load_state_dict(copy.deepcopy(saved))
    descend(opt, a, 3, start=4), descend(ref, b, 3, start=4)
    same(a, b, name)


@pytest.mark.parametrize("flag", ["foreach", "fused", "differentiable"])
@pytest.mark.parametrize("name", NAMES)
def test_flags(name, flag):
    if flag not in DB[name].supported_impls:
        with pytest.raises(TypeError, match=flag):
            getattr(ft, name)(made(name), **{flag: True})
        return
    a, b = made(name), made(name)
    opt, ref = getattr(ft, name)(a, **{flag: True}), DB[name].optim_cls(b, **{flag: True})
    if flag == "differentiable":  # the step is then part of a graph, where a leaf cannot change in place
        a, b = [p.detach().clone() for p in a], [p.detach().clone() for p in b]
        opt, ref = getattr(ft, name)(a, differentiable=True), DB[name].optim_cls(b, differentiable=True)
    descend(opt, a, 3), descend(ref, b, 3)
    same(a, b, name)
    assert opt.state_dict()["param_groups"] == ref.state_dict()["param_groups"]


@pytest.mark.parametrize("name, error", ERRORS)
def test_error_inputs(name, error):
    given = error.optimizer_error_input
    params = given.params if given.params is not None else made(name)

    def call():
        opt = getattr(ft, name)(params, **given.kwargs)
        if error.error_on is OptimizerErrorEnum.STEP_ERROR:
            opt.step()

    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            call()
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            call()
