"""Order on a CUDA device: streams of every library, and steps that are captured in graphs."""

import numpy as np
import pytest
from cuda_twin import needs_numba_cuda
from device_twin import grads_of, pair, same, small, there

import fastopt as fo

pytestmark = needs_numba_cuda


class Stream:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def test_a_step_waits_for_the_streams_of_its_arrays(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.sgd, params, lr=0.5)
    g = grads_of(params, 0)
    late = there(gpu, {k: np.full_like(x, np.nan) for k, x in g.items()}, stream=77)
    for k, x in late.items():
        gpu.queue(77, lambda x=x, k=k: x.put(g[k]))  # its producer is not done yet
    twin.step(late, stream=5)
    opt.step(g)
    same(opt, twin)
    assert ("wait", 5, 77) in gpu.log and [s for what, s, _ in gpu.log if what == "run"] == [5]
    twin.step(late)  # without a stream: on that of the gradients
    assert gpu.log[-1] == ("run", 77, 3)
    opt.step(g)
    same(opt, twin)


@pytest.mark.parametrize(
    "stream, handle",
    [(9, 9), (Stream(9), 9), (type("T", (), {"cuda_stream": 8})(), 8), (type("C", (), {"ptr": 7})(), 7)],
)
def test_streams_of_every_library(gpu, stream, handle):
    opt = fo.sgd(there(gpu, small()), lr=0.5)
    opt.step(there(gpu, small()), stream=stream)
    assert gpu.log[-1] == ("run", handle, 3)


def test_what_is_no_stream_is_refused(gpu):
    opt = fo.sgd(there(gpu, small()), lr=0.5)
    for bad in ("s", -1, True):
        with pytest.raises(fo.ConfigError, match="stream is"):
            opt.step(there(gpu, small()), stream=bad)
    with pytest.raises(fo.ConfigError, match="in host memory, where there are no streams"):
        fo.sgd(np.ones(3)).step(np.ones(3), stream=3)


def test_a_captured_step_follows_t_and_a_changed_learning_rate(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01)
    held = there(gpu, small())

    def both(t, step):
        g = grads_of(params, t)
        gpu.synchronize(0)
        for k, x in held.items():
            x.put(g[k])
        opt.step(g)
        step()

    both(0, lambda: twin.step(held, stream=4))
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    same(opt, twin)  # nothing has run
    for t in range(1, 4):
        both(t, graph.replay)
    for o in (opt, twin):
        o.set(lr=0.5)
    both(4, graph.replay)
    same(opt, twin)
    assert twin.t == 5
    both(5, lambda: twin.step(there(gpu, grads_of(params, 5)), stream=4))  # in between, with other gradients
    both(6, graph.replay)
    same(opt, twin)


def test_gradients_made_inside_a_graph(gpu):
    params = small()
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=0.01)
    first = grads_of(params, 0)
    opt.step(first), twin.step(there(gpu, first), stream=4)
    inside = there(gpu, grads_of(params, 1))
    with gpu.capture(4) as graph:
        twin.step(inside, stream=4)
    other = grads_of(params, 2)
    opt.step(other), twin.step(there(gpu, other), stream=4)
    graph.replay()
    opt.step(grads_of(params, 1))
    same(opt, twin)


def test_schedules_reach_graphs_by_prepare(gpu):
    params = small()
    lr = fo.schedules.cosine(peak=0.1, warmup=2, total=8)
    opt, twin, _ = pair(gpu, fo.adamw, params, lr=lr)
    g = grads_of(params, 0)
    held = there(gpu, g)
    opt.step(g), twin.step(held, stream=4)
    with gpu.capture(4) as graph:
        twin.step(held, stream=4)
    for _ in range(3):
        opt.step(g)
        twin.prepare(stream=4)
        graph.replay()
    same(opt, twin)
    opt.prepare()  # on the host it does nothing
