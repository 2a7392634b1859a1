"""The schedule-free rules against the authors' own package: training, evaluation, training again."""

import numpy as np
import pytest
from oracles_schedule_free import CASES

# In float64 the sums differ in the last place alone. In float32 fifty steps round about five times each, and
# 1 - 1/beta stretches the last roundings a little: 250 * 2**-24 = 1.5e-5, and the largest element is about 3.
TOLERANCE = {"float64": 1e-12, "float32": 5e-5}
CLASSES = {"schedule_free_sgd": "SGDScheduleFree", "schedule_free_adamw": "AdamWScheduleFree"}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fifty_steps_with_eval_and_train(case, dtype):
    schedulefree, torch = pytest.importorskip("schedulefree"), pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    ours = [np.asarray(rng.normal(size=s), dtype) for s in ((7, 5), (33,), ())]
    tensors = [torch.tensor(p) for p in ours]
    hyper = case.full()
    opt = case.make(ours, **hyper)
    if "beta1" in hyper:
        hyper["betas"] = (hyper.pop("beta1"), hyper.pop("beta2"))
    theirs = getattr(schedulefree, CLASSES[case.rule])(tensors, foreach=False, **hyper)
    theirs.train()
    for t in range(1, 51):
        grads = [np.asarray(rng.normal(size=p.shape), dtype) for p in ours]
        opt.step(grads)
        for x, g in zip(tensors, grads, strict=True):
            x.grad = torch.tensor(g)
        theirs.step()
        if t % 7 == 0:
            opt.eval()
            theirs.eval()
            compare(ours, tensors, TOLERANCE[dtype], f"eval at step {t}")
            opt.train()
            theirs.train()
    compare(ours, tensors, TOLERANCE[dtype], "the end")


def compare(ours, tensors, bound, when):
    for p, x in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(p, x.numpy(), rtol=bound, atol=bound, err_msg=when)


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_the_authors(name):
    schedulefree = pytest.importorskip("schedulefree")
    import inspect

    import fastopt as fo

    parameters = inspect.signature(getattr(schedulefree, CLASSES[name])).parameters
    theirs = {n: q.default for n, q in parameters.items()}
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    ours = getattr(fo, name).hyper
    assert ours == {n: theirs[n] for n in ours}
