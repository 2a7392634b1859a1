"""The readings against the libraries whose they are: fifty steps of Keras's and optax's own optimizers."""

import inspect
import os

import numpy as np
import pytest
from catalogue import cases

os.environ["KERAS_BACKEND"] = "torch"  # the only one of its backends at hand that computes float64 in float64
STEPS = 50
SHAPES = {"matrix": (7, 5), "filters": (3, 2, 4), "vector": (33,), "scalar": ()}

# In float64 both sides compute the same formula; the libraries' other order of operations costs a few units in the last
# place a step. In float32 Keras and optax also compute 1 - beta**t in float32, from a beta rounded to float32: at first
# it has lost up to 1 part in 3e4 for beta2 = 0.999, and the update with it, where fastopt's has not. Fifty updates of
# size lr <= 0.1, momentum stretching them tenfold, give 50 * 0.1 * 3e-5 = 1.5e-4 at worst, in ulps of 1: 1300.
TOLERANCE = {"float64": 1e-12, "float32": 1.5e-4}
ROUNDED = {"keras.ftrl": 1e-6}  # Keras on torch rounds ftrl's constants, such as l2, to float32 in float64, too

KERAS = dict(lr="learning_rate", beta1="beta_1", beta2="beta_2", eps="epsilon", alpha="rho")
KERAS |= {n: f"{n}_regularization_strength" for n in ("l1", "l2", "l2_shrinkage")}
CLASSES = {c.lower(): c for c in "SGD RMSprop Adagrad Adadelta Adamax Adam AdamW Nadam Lion Ftrl".split()}
OPTAX = dict(lr="learning_rate", beta1="b1", beta2="b2", alpha="decay")


def named(case, words):
    """Every hyperparameter of a case, in the library's words."""
    return {words.get(n, n): v for n, v in case.full().items()}


def start(dtype):
    rng = np.random.default_rng(3)
    return {n: np.asarray(rng.normal(size=s), dtype) for n, s in SHAPES.items()}


def gradients(dtype):
    """Fifty gradients of several scales, some of them 0."""
    rng = np.random.default_rng(4)
    for _ in range(STEPS):
        yield {
            n: np.asarray(rng.normal(size=s) * 10 ** rng.uniform(-2, 1) * (rng.uniform(size=s) > 0.1), dtype)
            for n, s in SHAPES.items()
        }


def compare(case, dtype, theirs):
    held = start(dtype)
    opt = case.make(held, **case.hyper)
    for grads in gradients(dtype):
        opt.step(grads)
    bound = max(TOLERANCE[dtype], ROUNDED.get(case.rule, 0.0))
    for n, p in theirs.items():
        assert p.dtype == dtype
        np.testing.assert_allclose(held[n], p, rtol=bound, atol=bound, err_msg=n)
    assert np.abs(held["matrix"] - start(dtype)["matrix"]).max() > 1e-2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras hands torch tensors to NumPy
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", [c for c in cases() if c.rule.startswith("keras.")], ids=str)
def test_fifty_steps_of_keras(case, dtype):
    keras = pytest.importorskip("keras")
    variables = {n: keras.Variable(p, dtype=dtype) for n, p in start(dtype).items()}
    hyper = named(case, KERAS)
    rate = hyper["learning_rate"]  # a number would become a float32 variable
    theirs = getattr(keras.optimizers, CLASSES[case.rule.removeprefix("keras.")])(
        **{**hyper, "learning_rate": lambda: rate}
    )
    theirs.build(list(variables.values()))
    for grads in gradients(dtype):
        theirs.apply([keras.ops.convert_to_tensor(g, dtype=dtype) for g in grads.values()])
    compare(case, dtype, {n: v.value.detach().numpy() for n, v in variables.items()})


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", [c for c in cases() if c.rule.startswith("optax.")], ids=str)
def test_fifty_steps_of_optax(case, dtype):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    hyper = named(case, OPTAX)
    if not hyper.get("momentum", 1):
        hyper["momentum"] = None
    with jax.enable_x64(True):
        theirs = getattr(optax, case.rule.removeprefix("optax."))(**hyper)
        held = {n: jax.numpy.asarray(p) for n, p in start(dtype).items()}
        state, update = theirs.init(held), jax.jit(theirs.update)
        for grads in gradients(dtype):
            change, state = update({n: jax.numpy.asarray(g) for n, g in grads.items()}, state, held)
            held = optax.apply_updates(held, change)
        compare(case, dtype, {n: np.asarray(p) for n, p in held.items()})


def test_defaults_are_keras():
    keras = pytest.importorskip("keras")
    from fastopt.rules.readings import READINGS

    for rule in READINGS.values():
        if rule.name.startswith("keras."):
            theirs = getattr(keras.optimizers, CLASSES[rule.name.removeprefix("keras.")])
            theirs = inspect.signature(theirs.__init__).parameters
            for n, ours in rule.hyper.items():
                given = theirs[KERAS.get(n, n)].default
                assert ours == (0.0 if given is None else given), (rule.name, n)


def test_defaults_are_optax():
    optax = pytest.importorskip("optax")
    from fastopt.rules.readings import READINGS

    for rule in READINGS.values():
        if rule.name.startswith("optax."):
            theirs = inspect.signature(getattr(optax, rule.name.removeprefix("optax."))).parameters
            for n, ours in rule.hyper.items():
                given = theirs[OPTAX.get(n, n)].default
                required = given is inspect.Parameter.empty or (rule.name, n) == ("optax.adadelta", "lr")
                assert ours == (... if required else 0.0 if given is None else given), (rule.name, n)
