"""Gradients from other libraries for NumPy parameters: read where they lie, or refused with the reason."""

import numpy as np
import pytest
import torch
from conftest import snapshot

import fastopt as fo
from fastopt.params import foreign


class DLPack:
    """What a library shows that knows nothing of NumPy."""

    def __init__(self, x, device=None):
        self.x, self.device_id = x, device

    def __dlpack__(self, **how):
        return self.x.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.device_id or self.x.__dlpack_device__()


class Interface:
    def __init__(self, x):
        self.x, self.__array_interface__ = x, x.__array_interface__


class Array:
    """As TensorFlow's: a device that is text, and `__array__`."""

    device = "/job:localhost/replica:0/task:0/device:CPU:0"

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


PRODUCERS = {
    "DLPack": DLPack,
    "__array_interface__": Interface,
    "__array__": Array,
    "buffer": memoryview,
    "torch": torch.from_numpy,
    "torch, part of a graph": lambda x: torch.from_numpy(x).requires_grad_().view(3, 4),
}


@pytest.mark.parametrize("make", PRODUCERS.values(), ids=PRODUCERS)
def test_a_gradient_is_read_where_it_lies(make):
    p, g = np.ones((3, 4), "f4"), np.arange(12, dtype="f4").reshape(3, 4)
    fo.sgd({"w": p}, lr=1.0).step({"w": make(g)})
    np.testing.assert_array_equal(p, 1 - g)
    assert np.shares_memory(foreign(make(g), "w"), g)


def test_gradients_that_cannot_be_read():
    opt = fo.sgd({"w": np.ones((3, 4), "f4")}, lr=1.0)
    ones = np.ones((3, 4), "f4")
    for g, error, says in [
        (DLPack(ones, device=(2, 0)), fo.DeviceError, "gradient of w.*lives on a GPU"),
        (torch.ones((3, 3), dtype=torch.bfloat16), fo.GradientError, "gradient of `w`: shape"),
        (torch.ones((3, 4), device="meta"), fo.DeviceError, "lives on a GPU"),
        (memoryview(b"x" * 12), fo.GradientError, "uint8"),
    ]:
        before = snapshot(opt)
        with pytest.raises(error, match=says):
            opt.step({"w": g})
        assert snapshot(opt) == before


def test_gradients_of_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    p = {"w": np.ones((3, 4), "f4"), "b": np.zeros(3, "f4")}
    grads = jax.grad(lambda q: (q["w"].sum(1) + q["b"]).sum())(p)
    pointer = grads["w"].unsafe_buffer_pointer()
    assert foreign(grads["w"], "w").ctypes.data == pointer  # no copy
    opt = fo.sgd(p, lr=1.0)
    opt.step(grads)
    assert not p["w"].any() and (p["b"] == -1).all()
    with pytest.raises(fo.ArrayTypeError, match="read-only"):  # JAX's arrays never change, so they are no parameters
        fo.sgd(grads)


@pytest.mark.filterwarnings("ignore")  # of TensorFlow's imports
def test_gradients_of_tensorflow(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    w = tf.Variable(tf.ones((3, 4)))
    with tf.GradientTape(persistent=True) as tape:
        square, some = tf.reduce_sum(w * w), tf.reduce_sum(tf.gather(w, [0, 0, 2]))
    g, slices = tape.gradient(square, w), tape.gradient(some, w)
    assert np.shares_memory(foreign(g, "w"), memoryview(g))  # no copy
    p = np.ones((3, 4), "f4")
    opt = fo.sgd({"w": p}, lr=0.25)
    opt.step({"w": g})
    assert (p == 0.5).all()
    opt.step({"w": fo.rows(slices.indices, slices.values)})
    assert p[:, 0].tolist() == [0.0, 0.5, 0.25]


def test_gradients_of_mlx():
    mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
    g = mx.grad(lambda w: (w * w).sum())(mx.ones((3, 4)))
    assert np.shares_memory(foreign(g, "w"), memoryview(g))
    p = np.ones((3, 4), "f4")
    opt = fo.sgd({"w": p}, lr=0.25)
    opt.step({"w": g})
    assert (p == 0.5).all()
    with pytest.raises(fo.GradientError, match="bfloat16"):
        opt.step({"w": g.astype(mx.bfloat16)})
    assert (p == 0.5).all()
