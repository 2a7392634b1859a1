"""An optimizer whose steps are taken by its CUDA kernels, executed as PTX on the tables of a CPU launch."""

import numpy as np
import ptx as interpreter

import fastopt as fo
from fastopt.lower import lower
from fastopt.targets import cuda

CAPABILITY = (9, 0)


def variants(rules):
    """(rule, switches): none on, all on, and each alone."""
    for rule in rules:
        n = len(rule.switches)
        truths = [(False,) * n, (True,) * n, *(tuple(i == k for i in range(n)) for k in range(n))]
        yield from ((rule, tuple(zip(rule.switches, truth, strict=True))) for truth in dict.fromkeys(truths))


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
            for (lowered, *tables), launch in zip(work, ready.launches, strict=True):
                self.launch(lowered, q, launch, *tables)
        for _, _, _, _, moved in work:
            for original, copy in moved:
                original[...] = copy
        live = np.array([bool(kind) for kind in ready.kinds], np.uint64)
        module = clock_module(opt, int(ready.launches[0].work[0, 2]))
        self.run(module, "epilogue", [len(live)], [live, self.clock, self.control], [], 1, 32)
        opt._gradients.release()

    def prepare(self, launch, grads):
        """The lowered rule, the generated module, the kernels' tables, all arrays they point to, and which are copies."""
        opt, members = self.opt, list(dict.fromkeys(launch.work[:, 2].tolist()))
        segment, gradient = opt._segments[members[0]], np.dtype(opt._gradients.kinds[members[0]])
        lowered = segment.lowered
        module = cuda.kernels(opt._settings.rule(members[0]).name, lowered, segment.array.dtype, gradient)
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
        parameters, partials = np.zeros((len(members), 7), np.uint64), np.zeros((len(launch.work), 1))
        if launch.reduced:
            parameters, _, partials, _ = launch.reduced
            assert partials.shape[1] == module.TOTALS
        reduced = np.full((len(opt._segments), max(1, lowered.slots)), np.nan)
        tables = [launch.work, table, launch.hyper, self.control, self.clock, parameters, reduced, partials]
        return lowered, module, tables, arrays, moved

    def launch(self, lowered, q, launch, module, tables, arrays, moved):
        """Pass `q` of a launch."""
        counts = [len(tables[0]), len(tables[5])]
        for name, _, _, grid in module.LAUNCHES:
            if (name == "kernel" and q == 0) or name.endswith(f"_{q}"):
                blocks = {"chunks": self.blocks, "parameters": max(1, self.blocks - 1), "one": 1}[grid]
                threads = cuda.THREADS if lowered.slots else self.threads
                widest = self.run(module, name, counts, tables, arrays, blocks, threads)
                if grid == "chunks":
                    self.widest = {k: max(v, widest[k]) for k, v in self.widest.items()}
        for product in launch.products[q] if q < len(launch.products) else ():
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


def clock_module(opt, k):
    """The module of prologue and epilogue for the launch of parameter `k`."""
    rule, segment = opt._settings.rule(k), opt._segments[k]
    return cuda.clock(rule.name, tuple(rule.schema), segment.lowered, segment.array.dtype)
