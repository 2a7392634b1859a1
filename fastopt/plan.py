"""What a step launches: live parameters sorted into kernels, with each kernel's tables. Built once, run every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import codecs, scratch, threads
from fastopt import work as worklist
from fastopt.codecs import Codec
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Launch, Segment, threads_for
from fastopt.lowered import COPY, Lowered
from fastopt.rows_launch import RowsLaunch
from fastopt.schema import Rule
from fastopt.staged import stages
from fastopt.targets import cpu, text
from fastopt.touched import BEHIND, Touched
from fastopt.touched import lowered as rows_of


@dataclass(eq=False)
class Plan:
    """The launches of a step for gradients of certain dtypes ("": that segment takes no part)."""

    kinds: tuple[str, ...]
    epoch: int  # of the thread policy
    launches: list[Launch]
    steady: bool  # is `hyper` the same at every step?
    calls: list[tuple[Launch, int]]  # (launch, pass), in order: a total over all parameters is known to every launch
    looks: int  # how many of them, the first ones, leave everything as it is but totals
    written: int = -1  # the version of the settings that `hyper` holds, or -1
    factor: float = 1.0  # of the gradients, in `hyper`

    def fixed(self, stream: Any) -> bool:
        """Must other gradients have a plan of their own?"""
        return False

    def aim(self, gradients: Gradients) -> None:
        for launch in self.launches:
            launch.aim(gradients)

    def run(
        self, settings: Settings, clock: np.ndarray, stream: Any = None, factor: float = 1.0, watch: bool = False
    ) -> int:
        """Take the step, of gradients times `factor`. With `watch` only if all of them are finite.

        The first segment whose gradient is not, and then nothing was changed; or -1.
        """
        if self.written != settings.version:
            t = int(clock[0]) + 1
            for launch in self.launches:
                launch.write_hyper(settings, t)
            self.written = settings.version if self.steady else -1
        if factor != 1.0 or self.factor != 1.0:
            for launch in self.launches:
                launch.unscale(factor)
            self.factor = factor
        calls = self.calls
        if watch:
            for launch, q in self.calls[: self.looks]:
                launch.run(q, clock, False)
            if bad := [k for launch in self.launches if (k := launch.offender()) >= 0]:
                clock[1] = 0
                return min(bad)
            calls = calls[self.looks :]
        last = len(calls) - 1
        for k, (launch, q) in enumerate(calls):
            launch.run(q, clock, k == last)
        return -1

    def norms(self) -> tuple[float | None, dict[int, float]]:
        """Of the gradients in the last step, of all and by segment, where a launch took them before anything else."""
        each = {k: n for launch in self.launches for k, n in launch.norms().items()}
        return (math.hypot(*each.values()) if each else None), each


def build(
    settings: Settings,
    segments: Sequence[Segment],
    kinds: tuple[str, ...],
    missed: Sequence[int],
    touched: dict[str, Touched] | None = None,
    reading: str = "lazy",
) -> Plan:
    """Sort the segments into launches. Compiles what is not compiled yet.

    `missed[k]`: steps segment k sat out. `touched` grows by the parameters whose first gradient of rows this is, and
    `reading` says how rows without one are read.
    """
    epoch = threads.epoch
    launches = _launches(settings, segments, kinds, missed, {} if touched is None else touched, reading)
    scheduled = any(settings.scheduled(row) for launch in launches for row, _ in launch.rows)
    by_row = reading == "row" and any(isinstance(launch, RowsLaunch) for launch in launches)
    steady = not scheduled and not by_row and not any(launch.stages[1].names for launch in launches)
    calls = sorted((q >= x.lowered.looks, q, k) for k, x in enumerate(launches) for q in range(len(x.kernels)))
    looks = sum(not writes for writes, *_ in calls)
    return Plan(kinds, epoch, launches, steady, [(launches[k], q) for _, q, k in calls], looks)


def _launches(
    settings: Settings,
    segments: Sequence[Segment],
    gradients: tuple[str, ...],
    missed: Sequence[int],
    touched: dict[str, Touched],
    reading: str,
) -> list[Launch]:
    alike: dict[tuple[Rule, Lowered, Codec, Codec], list[int]] = {}
    apart: dict[int, tuple[Rule, Lowered, Codec, Codec]] = {}  # gradients of rows
    for k, (segment, kind) in enumerate(zip(segments, gradients, strict=True)):
        rule, low = settings.rule(k), segment.lowered
        if kind[:1] == "r":
            low = rows_of(low, reading, rule, settings.names[k], segment.array.shape)
            apart[k] = rule, low, codecs.of(segment.array.dtype), codecs.of(kind[1])
        elif kind:
            alike.setdefault((rule, low, codecs.of(segment.array.dtype), codecs.of(kind)), []).append(k)
    for k in apart:
        array, steps = segments[k].array, segments[k].state.get("row_steps")
        if settings.names[k] not in touched:
            steps = np.zeros(len(array) if reading in BEHIND else 0, np.int64) if steps is None else steps
            touched[settings.names[k]] = Touched(array, reading, steps)
    # shared by a rule's launches, whose totals over all it adds up; rows of parameters that take no part stay 0
    slots: dict[Rule, int] = {}
    for rule, low, *_ in (*alike, *apart.values()):
        slots[rule] = max(slots.get(rule, 0), low.slots)
    reduced = {rule: np.zeros((len(segments), n + 1)) for rule, n in slots.items()}
    for numbers in reduced.values():
        numbers[:, -1] = [segment.row for segment in segments]
    launches = [_launch(segments, members, missed, reduced[which[0]], *which) for which, members in alike.items()]
    for k, which in apart.items():
        mine = touched[settings.names[k]]
        whole = vars(_launch(segments, [k], missed, reduced[which[0]], *which, mine))
        rule, low, dtype, _ = which
        mine.launch = RowsLaunch(
            **whole,
            rule=rule,
            dtype=dtype,
            name=settings.names[k],
            segment=k,
            touched=mine,
            places={name: column for column, name in enumerate(low.buffers)},
        )
        launches.append(mine.launch)
    return launches


def _launch(
    segments: Sequence[Segment],
    members: list[int],
    missed: Sequence[int],
    reduced: np.ndarray,
    rule: Rule,
    lowered: Lowered,
    dtype: Codec,
    gradient: Codec,
    touched: Touched | None = None,
) -> Launch:
    rows = {row: k for k, row in enumerate(dict.fromkeys((segments[k].row, missed[k]) for k in members))}
    arrays = [segments[k].array for k in members]
    sizes, groups = [a.size for a in arrays], [rows[segments[k].row, missed[k]] for k in members]
    work = worklist.chunks(sizes, members, groups, [scratch.step(lowered, a) for a in arrays])
    buffers = len(lowered.state) - len(lowered.levels) + 1
    n_threads = 1 if touched else threads_for(sum(sizes) * (buffers * dtype.itemsize + gradient.itemsize))
    tasks = worklist.tasks(work, n_threads)
    n_tasks = threads.count() if touched else len(tasks) - 1  # of rows there may be more at the next step
    temporary = scratch.buffers(lowered, arrays)
    addresses = np.zeros((len(segments), len(lowered.buffers)), np.uint64)
    for k, mine in zip(members, temporary, strict=True):
        s = segments[k]
        known = {"p": s.array, **s.state, **mine, **({} if s.copy is None else {COPY: s.copy})}
        table = scratch.plain(lowered, s.array, s.key) | {b: a.ctypes.data for b, a in known.items()}
        table |= touched.addresses if touched else {}
        addresses[k] = [table.get(b, 0) for b in lowered.buffers]
    rooms = scratch.rooms(lowered, n_tasks)
    return Launch(
        lowered=lowered,
        gradient=gradient,
        kernels=cpu.kernels(rule.name, lowered, dtype, gradient, n_threads > 1),
        parallel=n_threads > 1,
        stages=stages(tuple(rule.schema), lowered, dtype.real),
        rows=list(rows),
        tasks=tasks,
        work=work,
        addresses=addresses,
        hyper=np.zeros((len(rows), 1 + len(lowered.columns)), dtype.real),
        reduced=(*scratch.tables(lowered, work, arrays, n_tasks, reduced), *list(rooms.values())[:1]),
        temporary=[*temporary, rooms],
        products=scratch.products(
            lowered, text.names(lowered), groups, [segments[k].state for k in members], temporary
        ),
    )
