"""An optimizer whose steps are taken by its CUDA kernels, executed as PTX on the tables of a CPU launch."""

from functools import cache

import numpy as np
import ptx as interpreter
import pytest

import fastopt as fo
from fastopt import codecs
from fastopt.errors import DeviceError
from fastopt.lower import lower
from fastopt.schema import MATRIX
from fastopt.targets import cuda, toolkit

try:
    toolkit.require()
    MISSING = ""
except DeviceError as error:
    MISSING = str(error)
needs_numba_cuda = pytest.mark.skipif(bool(MISSING), reason=MISSING)

CAPABILITY = (9, 0)
F4, F8 = np.dtype("f4"), np.dtype("f8")


def variants(rules):
    """(rule, switches): all off, all on, and for matrices alone."""
    for rule in rules:
        matrix = tuple(n == MATRIX for n in rule.switches)
        truths = [(False,) * len(matrix), (True,) * len(matrix), matrix]
        yield from ((rule, tuple(zip(rule.switches, truth, strict=True))) for truth in dict.fromkeys(truths))


def chosen(rule, **on):
    return tuple((n, on.get(n, False)) for n in rule.switches)


def label(variant):
    rule, chosen = variant
    return "-".join([rule.name, *(n for n, on in chosen if on)])


def options(rule, chosen):
    """Hyperparameters that turn the switches on. Others stay as they are, but that decay is at work."""
    values = {n: True if rule.schema[n].boolean else 0.8 for n, on in chosen if on and n in rule.schema}
    values |= {n: False if rule.schema[n].boolean else 0.0 for n, on in chosen if not on and n in rule.schema}
    needed = {n: 0.01 for n, default in rule.hyper.items() if default is ... and n not in values}
    return {**({"weight_decay": 0.1} if "weight_decay" in rule.schema else {}), **needed, **values}


def matrices(rule, chosen):
    """Does this variant take matrices?"""
    low = lower(rule, chosen)
    return low.shaped or bool(low.matrices) or dict(chosen).get("matrix", False)


def shifted(array):
    """A copy that begins one element behind a 16-byte boundary."""
    raw = np.zeros(array.size + 8, array.dtype)
    first = -(raw.ctypes.data // raw.itemsize) % (16 // raw.itemsize) + 1
    view = raw[first : first + array.size].reshape(array.shape)
    view[...] = array
    return view


SIZES = (0, 1, 3, 8, 31, 70, 131)
SHAPES = ((0, 3), (3, 5), (7, 8), (1, 70), (33, 1), (5, 24))


def make(variant, dtypes=(F4, F4), sizes=None, seed=0, steps=2, **more):
    """Parameters (ragged, some misaligned, in two groups), the gradients of some steps, and an optimizer.

    The last parameter is to be misaligned with all that belongs to it, see `Twin`: its name is "together". `more` are
    options of the optimizer.
    """
    rule, on = variant
    of_p, of_g = dtypes
    rng = np.random.default_rng(seed)
    shapes = sizes or (SHAPES if matrices(rule, on) else [(n,) for n in SIZES])
    names = [f"{'odd' if k % 3 == 2 else 'even'}{k}" for k in range(len(shapes) - 1)] + ["together"]
    params, grads = {}, [{} for _ in range(steps)]
    for name, shape in zip(names, shapes, strict=True):
        place = shifted if name.startswith("odd") else np.array
        params[name] = place(rng.standard_normal(shape).astype(of_p))
        for g in grads:
            g[name] = place(rng.standard_normal(shape).astype(of_g))
    # also squares below the normal range
    some = grads[0][names[-2]].reshape(-1)[:6]
    some[:] = np.array([0, np.inf, -np.inf, np.nan, 1e-30, -1e-30])[: some.size]
    other = fo.Group("*[36]", **({"lr": 0.03} if "lr" in rule.schema else {}), maximize=True)
    groups = [other] if len(names) > 4 else []  # or there is none of that name
    try:
        return params, grads, rule(params, groups=groups, **options(rule, on), **more)
    except fo.ConfigError as error:
        pytest.skip(f"no such variant: {error}")


def compare(opt, twin, same):
    """Parameters, states and clocks of two optimizers, by `same(a, b, what)`."""
    for name, p in opt.params.items():
        same(p, twin.params[name], name)
        for state, of in opt.state.items():
            if of[name] is not None:
                same(of[name], twin.state[state][name], f"{state} of {name}")
    assert opt._clock.tolist() == twin._clock.tolist()


def same_bits(a, b, what):
    assert a.tobytes() == b.tobytes(), f"{what}: {np.sum(a != b)} of {a.size} differ"


class Twin:
    """An optimizer on a dict of arrays, and how its CUDA kernels are launched.

    Args:
        blocks: those of a grid of "chunks"; one of "parameters" has one less, at least one.
        threads: those of blocks that have nothing to add up; others have `cuda.THREADS`.
        together: names of parameters that are given to the kernels misaligned, with their gradient and states alike.
        precise: without fused multiply-add, as the CPU's kernels are.
    """

    def __init__(self, opt: fo.Optimizer, blocks=2, threads=cuda.THREADS, together=(), precise=True):
        self.opt, self.blocks, self.threads, self.together, self.precise = opt, blocks, threads, together, precise
        self.widest = {"ld": 0, "st": 0}
        self.control = np.array([1.0, 0.0, np.nan])
        self.clock = opt._clock

    def step(self, grads: dict[str, np.ndarray]) -> None:
        opt = self.opt
        opt._gradients.read(grads)
        ready = opt._aim(None)
        work = [self.prepare(launch, grads) for launch in ready.launches]
        for launch in ready.launches:
            launch.write_hyper(opt._settings, opt.t + 1)
        for q in range(max(len(lowered.passes) for lowered, *_ in work)):
            for kinds in ("gather",), ("numbers", "kernel"):
                for (lowered, *tables), launch in zip(work, ready.launches, strict=True):
                    self.launch(lowered, q, kinds, launch, *tables)
                if kinds == ("gather",):
                    self.link(q, work)
        for _, _, _, _, moved in work:
            for original, copy in moved:
                original[...] = copy
        live = np.array([bool(kind) for kind in ready.kinds], np.uint64)
        tables = [live, self.clock, self.control]
        interpreter.run(epilogue(), [len(live), *(t.ctypes.data for t in tables)], tables, 1, 32)
        opt._gradients.release()

    def prepare(self, launch, grads):
        """The lowered rule, its module, the kernels' tables, the arrays they point to, and which of them are copies."""
        opt, members = self.opt, list(dict.fromkeys(launch.work[:, 2].tolist()))
        segment, gradient = opt._segments[members[0]], codecs.of(opt._gradients.kinds[members[0]])
        lowered = segment.lowered
        module = cuda.kernels(opt._settings.rule(members[0]).name, lowered, codecs.of(segment.array.dtype), gradient)
        arrays = [a for mine in launch.temporary for a in mine.values()]
        moved, table = [], launch.addresses.copy()
        for k in members:
            mine = {"p": opt._segments[k].array, "g": grads[opt.names[k]], **opt._segments[k].state}
            if opt.names[k] in self.together:
                shape = mine["p"].shape
                for b in [b for b, a in mine.items() if a.shape == shape and b in lowered.buffers]:
                    copy = shifted(mine[b])
                    moved += [(mine[b], copy)] if b != "g" else []
                    mine[b], table[k, lowered.buffers.index(b)] = copy, copy.ctypes.data
            arrays += mine.values()
        parameters, partials = np.zeros((len(members), 8), np.uint64), np.zeros((len(launch.work), 1))
        if lowered.slots:
            parameters, _, partials, *_ = launch.reduced
            rows = np.array([opt._segments[k].row for k in parameters[:, 0].astype(int)], np.uint64)
            parameters = np.column_stack([parameters, rows])
            assert partials.shape[1] == module.TOTALS
        reduced = np.full((len(opt._segments), max(1, lowered.slots)), np.nan)
        tables = [launch.work, table, launch.hyper, self.control, self.clock, parameters, reduced, partials]
        return lowered, module, tables, arrays, moved

    def link(self, q, work):
        """Totals over all parameters: those of several launches are added up, as a runtime has to."""
        for k in {k for _, module, *_ in work for k in module.EVERYWHERE.get(f"gather_{q}", ())}:
            partials = [tables[7] for _, _, tables, _, _ in work]
            whole = sum(p[0, k] for p in partials)
            for p in partials:
                p[0, k] = whole

    def launch(self, lowered, q, kinds, launch, module, tables, arrays, moved):
        """Kernels of pass `q` of a launch."""
        counts = [len(tables[0]), len(tables[5])]
        for name, _, _, grid in module.LAUNCHES:
            if name.split("_")[0] in kinds and (name.endswith(f"_{q}") or (name == "kernel" and q == 0)):
                blocks = {"chunks": self.blocks, "parameters": max(1, self.blocks - 1), "one": 1}[grid]
                threads = cuda.THREADS if lowered.slots else self.threads
                widest = self.run(module, name, counts, tables, arrays, blocks, threads)
                if grid == "chunks":
                    self.widest = {k: max(v, widest[k]) for k, v in self.widest.items()}
        for product in launch.products[q] if "kernel" in kinds and q < len(launch.products) else ():
            product.run(launch.hyper)

    def run(self, module, name, counts, tables, arrays, blocks, threads):
        text = cuda.ptx(module, name, CAPABILITY, precise=self.precise)
        given = [*counts, *(t.ctypes.data for t in tables)]
        return interpreter.run(text, given, [*tables, *arrays], blocks, threads)

    def prologue(self):
        """What the prologue writes into every launch's `hyper` for the next step: (its columns, the CPU's)."""
        opt = self.opt
        found = []
        for launch in opt._plan.launches:
            k = int(launch.work[0, 2])
            values = [opt._settings.evaluate(row, opt.t + 1) for row, _ in launch.rows]
            given = np.array(values, np.float64)
            missed = np.array([m for _, m in launch.rows], np.int64)
            hyper = np.full_like(launch.hyper, np.nan)
            tables = [given, missed, hyper, self.clock, self.control]
            self.run(clock_module(opt, k), "prologue", [len(given)], tables, [], 1, 32)
            launch.write_hyper(opt._settings, opt.t + 1)
            found.append((hyper, launch.hyper))
        return found


@cache
def epilogue():
    """Its PTX, the same for every rule."""
    module = cuda.clock("sgd", tuple(fo.sgd.schema), lower(fo.sgd, chosen(fo.sgd)), F4)
    return cuda.ptx(module, "epilogue", CAPABILITY, precise=True)


def clock_module(opt, k):
    """The module of prologue and epilogue for the launch of parameter `k`."""
    rule, segment = opt._settings.rule(k), opt._segments[k]
    return cuda.clock(rule.name, tuple(rule.schema), segment.lowered, codecs.of(segment.array.dtype).real)
