"""What a step launches: live parameters sorted into kernels, with each kernel's tables. Built once, run every step."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastopt import scratch, threads
from fastopt import work as worklist
from fastopt.errors import ConfigError
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.lower import Lowered
from fastopt.math import NUMBERS
from fastopt.schema import Rule
from fastopt.targets import cpu, text
from fastopt.touched import Touched, idle
from fastopt.touched import lowered as rows_of


@dataclass(frozen=True, eq=False)
class Segment:
    """One parameter array as kernels see it: `buffers` are p, then its states, by name (g comes with each step)."""

    array: Any  # ndarray, or DeviceArray
    row: int  # in Settings
    lowered: Lowered
    state: dict[str, Any]
    key: int  # of its random numbers


@dataclass(eq=False, kw_only=True)
class Rows:
    """The rows of `hyper` of a launch."""

    stages: tuple[Stage, Stage]  # of all columns, and of those that change with t
    rows: list[tuple[int, int]]  # (row of Settings, steps its segments have missed): a row of `hyper` each
    hyper: np.ndarray
    values: list[list[Any]] = field(default_factory=list)  # of the schema, then `maximize`, as they were written last
    _fixed: list[list[Any] | None] = field(default_factory=list)  # values of the rows without schedules
    _version: int = -1  # of the settings they are from

    def write_hyper(self, settings: Settings, t: int) -> None:
        """Bring the columns of every row to step `t`. Raises `ConfigError` and launches nothing."""
        if self._version != settings.version:
            self._fixed, self._version = [None] * len(self.rows), settings.version
            self.values = [[] for _ in self.rows]
        every, timed = self.stages
        for k, (row, missed) in enumerate(self.rows):
            values = self._fixed[k]
            stage = timed if values is not None else every
            if values is None:
                values = self.values[k] = settings.evaluate(row, t)
            try:
                columns = stage.evaluate(*values, t - missed)
                if math.isfinite(sum(columns)):
                    stage.write(self.hyper, k * self.hyper.strides[0] + stage.offset, *columns)
                    if stage is every and not settings.scheduled(row):
                        self._fixed[k] = values
                    continue
                bad = next((n for n, c in zip(stage.names, columns, strict=True) if not math.isfinite(c)), "their sum")
                reason = f"`{bad}` is not finite"
            except (ArithmeticError, ValueError, struct.error) as error:
                reason = str(error)
            shown = ", ".join(f"{n}={v!r}" for n, v in zip(settings.schema(row), values, strict=True))
            raise ConfigError(f"`{settings.rules[row].name}` cannot be evaluated at step {t} with {shown}: {reason}.")


@dataclass(eq=False, kw_only=True)
class Launch(Rows):
    """The segments of a step that share a lowered rule, a parameter dtype and a gradient dtype: one kernel a pass."""

    kernels: tuple[Callable[..., None], ...]
    parallel: bool
    tasks: np.ndarray
    work: np.ndarray
    addresses: np.ndarray
    reduced: tuple[np.ndarray, ...]  # what kernels with totals take besides: parameters, reduced, partials, lanes
    temporary: list[dict[str, np.ndarray]]  # keeps alive what `addresses` points to
    products: list[list[scratch.Product]]  # the calls of functions of matrices after each pass

    def aim(self, gradients: Gradients) -> None:
        """Take in where the gradients are."""
        self.addresses[:, 1] = gradients.addresses

    @property
    def columns(self) -> np.ndarray:
        """The table of columns that kernels read."""
        return self.hyper

    def run(self, q: int, clock: np.ndarray, last: bool) -> None:
        """Pass `q`."""
        arguments = (self.tasks, self.work, self.addresses, self.columns, clock, last, *self.reduced)
        if self.parallel:
            threads.launch(self.kernels[q], *arguments)
        else:
            self.kernels[q](*arguments)
        for product in self.products[q]:
            product.run(self.hyper)


@dataclass(eq=False, kw_only=True)
class RowsLaunch(Launch):
    """The launch of a parameter with a gradient of rows: what is touched changes from step to step."""

    rule: Rule
    lowered: Lowered
    kinds: tuple[np.dtype, np.dtype]  # of the parameter and of the gradient
    name: str
    segment: int
    touched: Touched
    places: dict[str, int]  # columns of `addresses`
    _n: int = 0
    _values: Sequence[Any] = ()

    def aim(self, gradients: Gradients) -> None:
        self._n, addresses = self.touched.take(gradients.rows[self.name])
        self._point(**addresses)

    def _point(self, **numbers: int) -> None:
        """Write the row of `addresses`, and share out what is touched."""
        for name, number in numbers.items():
            self.addresses[self.segment, self.places[name]] = number
        itemsize = (len(self.lowered.state) + 1) * self.kinds[0].itemsize + self.kinds[1].itemsize
        n_threads = _threads(self._n * self.touched.columns * itemsize)
        if self.parallel != n_threads > 1:
            self.parallel = n_threads > 1
            self.kernels = cpu.kernels(self.rule.name, self.lowered, *self.kinds, self.parallel)
        self.work, self.tasks = self.touched.chunks(self._n, self.segment, n_threads)

    @property
    def columns(self) -> np.ndarray:
        return self.hyper if self.touched.reading == "lazy" else self.touched.table

    def write_hyper(self, settings: Settings, t: int) -> None:
        super().write_hyper(settings, t)
        (row, _), values = self.rows[0], self._fixed[0]
        self._values = settings.evaluate(row, t) if values is None else values

    def run(self, q: int, clock: np.ndarray, last: bool) -> None:
        touched, t = self.touched, int(clock[0]) + 1 - self.rows[0][1]
        if touched.reading == "exact":
            now = touched.settle(t - 1)
            touched.record(now, self.hyper[0])
            hyper = dict(zip(self.rule.schema, self._values, strict=False))
            end = now + (not idle(self.rule, self.lowered, touched.array.ndim == 2, hyper, t))
            self._point(now=now, present=now, end=end)
            touched.pending = t, end
        elif touched.reading == "row":
            for done in np.unique(touched.steps[touched.rows(self._n)]).tolist():
                self.stages[0].write(self.hyper, 0, *self.stages[0].evaluate(*self._values, done + 1))
                touched.record(done, self.hyper[0])
        super().run(q, clock, last)

    def catch_up(self, clock: np.ndarray) -> None:
        """exact: bring all rows to the present."""
        touched = self.touched
        if not touched.settle(int(clock[2 + self.segment])) or touched.steps.min(initial=touched.kept) == touched.kept:
            return
        self._n = len(touched.array)
        none = 2**64 - 1
        self._point(**touched.everything(), now=touched.kept - 1, present=none, end=touched.kept)
        super().run(0, np.zeros(2 + len(self.addresses), np.int64), False)


def _threads(size: int) -> int:
    """Threads for a launch over so many bytes."""
    if size > cpu.PARALLEL_BYTES:
        threads.warn_if_forked()
        return threads.count()
    return 1


@dataclass(eq=False)
class Plan:
    """The launches of a step for gradients of certain dtypes ("": that segment takes no part)."""

    kinds: tuple[str, ...]
    epoch: int  # of the thread policy
    launches: list[Launch]
    steady: bool  # is `hyper` the same at every step?
    calls: list[tuple[Launch, int]]  # (launch, pass), in order: a total over all parameters is known to every launch
    written: int = -1  # the version of the settings that `hyper` holds, or -1

    def fixed(self, stream: Any) -> bool:
        """Must other gradients have a plan of their own?"""
        return False

    def aim(self, gradients: Gradients) -> None:
        for launch in self.launches:
            launch.aim(gradients)

    def run(self, settings: Settings, clock: np.ndarray, stream: Any = None) -> None:
        if self.written != settings.version:
            t = int(clock[0]) + 1
            for launch in self.launches:
                launch.write_hyper(settings, t)
            self.written = settings.version if self.steady else -1
        last = len(self.calls) - 1
        for k, (launch, q) in enumerate(self.calls):
            launch.run(q, clock, k == last)


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
    calls = [(q, k) for k, launch in enumerate(launches) for q in range(len(launch.kernels))]
    return Plan(kinds, epoch, launches, steady, [(launches[k], q) for q, k in sorted(calls)])


def _launches(
    settings: Settings,
    segments: Sequence[Segment],
    gradients: tuple[str, ...],
    missed: Sequence[int],
    touched: dict[str, Touched],
    reading: str,
) -> list[Launch]:
    alike: dict[tuple[Rule, Lowered, np.dtype, np.dtype], list[int]] = {}
    apart: dict[int, tuple[Rule, Lowered, np.dtype, np.dtype]] = {}  # gradients of rows
    for k, (segment, kind) in enumerate(zip(segments, gradients, strict=True)):
        rule, low = settings.rule(k), segment.lowered
        if kind[:1] == "r":
            low = rows_of(low, reading, rule, settings.names[k])
            apart[k] = rule, low, segment.array.dtype, np.dtype(kind[1])
        elif kind:
            alike.setdefault((rule, low, segment.array.dtype, np.dtype(kind)), []).append(k)
    for k in apart:
        array, steps = segments[k].array, segments[k].state.get("row_steps")
        if settings.names[k] not in touched:
            steps = np.zeros(len(array) if reading == "exact" else 0, np.int64) if steps is None else steps
            touched[settings.names[k]] = Touched(array, reading, steps)
    # shared by a rule's launches, whose totals over all it adds up; rows of parameters that take no part stay 0
    slots: dict[Rule, int] = {}
    for rule, low, *_ in (*alike, *apart.values()):
        slots[rule] = max(slots.get(rule, 0), low.slots)
    reduced = {rule: np.zeros((len(segments), n)) for rule, n in slots.items()}
    launches = [_launch(segments, members, missed, reduced[which[0]], *which) for which, members in alike.items()]
    for k, which in apart.items():
        mine = touched[settings.names[k]]
        whole = vars(_launch(segments, [k], missed, reduced[which[0]], *which, mine))
        rule, low, dtype, gradient = which
        mine.launch = RowsLaunch(
            **whole,
            rule=rule,
            lowered=low,
            kinds=(dtype, gradient),
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
    dtype: np.dtype,
    gradient: np.dtype,
    touched: Touched | None = None,
) -> Launch:
    rows = {row: k for k, row in enumerate(dict.fromkeys((segments[k].row, missed[k]) for k in members))}
    arrays = [segments[k].array for k in members]
    sizes, groups = [a.size for a in arrays], [rows[segments[k].row, missed[k]] for k in members]
    work = worklist.chunks(sizes, members, groups, [scratch.step(lowered, a) for a in arrays])
    buffers = len(lowered.state) - len(lowered.levels) + 1
    n_threads = 1 if touched else _threads(sum(sizes) * (buffers * dtype.itemsize + gradient.itemsize))
    tasks = worklist.tasks(work, n_threads)
    temporary = scratch.buffers(lowered, arrays)
    addresses = np.zeros((len(segments), len(lowered.buffers)), np.uint64)
    for k, mine in zip(members, temporary, strict=True):
        s = segments[k]
        known = {"p": s.array, **s.state, **mine}
        table = scratch.plain(lowered, s.array, s.key) | {b: a.ctypes.data for b, a in known.items()}
        table |= touched.fixed() if touched else {}
        addresses[k] = [table.get(b, 0) for b in lowered.buffers]
    return Launch(
        kernels=cpu.kernels(rule.name, lowered, dtype, gradient, n_threads > 1),
        parallel=n_threads > 1,
        stages=stages(tuple(rule.schema), lowered, dtype),
        rows=list(rows),
        tasks=tasks,
        work=work,
        addresses=addresses,
        hyper=np.zeros((len(rows), 1 + len(lowered.columns)), dtype),
        reduced=scratch.tables(lowered, work, arrays, len(tasks) - 1, reduced),
        temporary=temporary,
        products=scratch.products(
            lowered, text.names(lowered), groups, [segments[k].state for k in members], temporary
        ),
    )


class Stage(NamedTuple):
    """Neighbouring columns of `hyper`: the functions that compute and write them, rounded to `hyper`'s dtype."""

    names: tuple[str, ...]
    evaluate: Callable[..., tuple[float, ...]]  # of the schema's values, `maximize`, and t
    write: Callable[..., None]
    offset: int  # bytes from the row's start


@lru_cache(maxsize=512)
def stages(schema: tuple[str, ...], lowered: Lowered, dtype: np.dtype) -> tuple[Stage, Stage]:
    """All columns of a row, and the last ones alone, which change with t."""
    expressions = ("-1.0 if maximize else 1.0", *(c.expression for c in lowered.columns))

    def stage(first: int) -> Stage:
        chosen = expressions[first:]
        # expressions that lower.py wrote from the rule's own syntax tree
        # "=": unlike the native format, it raises for a number that the dtype cannot hold
        function = eval(
            f"lambda {', '.join((*schema, 'maximize', 't'))}: ({''.join(f'{e}, ' for e in chosen)})", dict(NUMBERS)
        )
        return Stage(chosen, function, struct.Struct(f"={len(chosen)}{dtype.char}").pack_into, first * dtype.itemsize)

    return stage(0), stage(len(expressions) - lowered.timed)
