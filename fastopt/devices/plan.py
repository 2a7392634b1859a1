"""What a step launches on a CUDA device: tables in GPU memory, and calls with nothing left to do but to hand over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import codecs, scratch
from fastopt import work as worklist
from fastopt.codecs import Codec
from fastopt.devices.array import DeviceArray, upload, zeros
from fastopt.devices.launch import DeviceLaunch, Watch, norms
from fastopt.devices.rows import DeviceRows
from fastopt.errors import DeviceError
from fastopt.gradients import Gradients
from fastopt.groups import Settings
from fastopt.launch import Segment
from fastopt.lowered import COPY, Lowered
from fastopt.schema import Rule
from fastopt.staged import stages
from fastopt.targets import cuda, cuda_everywhere, text
from fastopt.targets.driver import Call
from fastopt.touched import lowered as rows_of

if TYPE_CHECKING:
    from fastopt.devices.cuda import Cuda

_CHUNKS = 1 << 11  # about as many for any size, so that there is one for every block of the largest GPU
_SMALLEST, _LARGEST = 1 << 10, 1 << 14  # elements of a chunk: one access of 16 bytes by each thread; see work.CHUNK


@dataclass(eq=False)
class DevicePlan:
    """The launches of a step for gradients of certain dtypes."""

    place: Cuda
    kinds: tuple[str, ...]
    epoch: int
    launches: list[DeviceLaunch]
    steady: bool  # does nobody have to be asked for values at every step?
    calls: list[Call]
    values: DeviceArray  # float64: a row of each launch after the other
    kept: list[Any]
    names: Sequence[str]
    captured: bool = False  # a graph holds these addresses: the tables stay as they are, apart from `values`
    written: int = -1  # the version of the settings that `values` holds, or -1
    _values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _aimed: np.ndarray | None = None  # the gradients whose addresses are on the device
    _aim: np.ndarray | None = None
    _watch: Watch | None = None

    def fixed(self, stream: int | None) -> bool:
        """Must other gradients have a plan of their own?"""
        return self.captured or self.place.capturing(self.place.ready(stream))

    def aim(self, gradients: Gradients | np.ndarray) -> None:
        """Take in where the gradients are, or their addresses."""
        self._aim = gradients if isinstance(gradients, np.ndarray) else gradients.addresses
        for launch in self.launches:
            if launch.touched is not None and isinstance(gradients, Gradients):
                launch.touched.take(gradients.rows[self.names[launch.touched.segment]])

    def run(
        self, settings: Settings, clock: np.ndarray, stream: int | None, factor: float = 1.0, watch: bool = False
    ) -> int:
        place = self.place
        on = place.ready(stream)
        capturing = place.capturing(on)
        try:
            place.follow(on, capturing)  # first: the step before may still read what is copied now
            self._upload(None if capturing else on)
            for launch in self.launches:
                if launch.touched is not None:
                    launch.touched.upload(on, launch.work_at if watch else None)
            if self.written != settings.version and not (capturing and self._values.size):
                self.write(settings, int(clock[0]) + 1, None if capturing else on)
            if capturing and not self.captured:
                self.captured = True
                place.captured.append(self)
            place.unscale(factor, on)
            if watch:
                if capturing:
                    raise DeviceError("a look at the gradients waits for the device, which a CUDA graph cannot")
                self._watch = self._watch or Watch(place, len(self.kinds), self.launches)
                if (bad := self._watch.look(on)) >= 0:
                    return bad
            clock[1] = 1  # torn if the launches are interrupted half-way
            place.driver.run(place.device, self.calls, on)
        except DeviceError as error:
            raise DeviceError(
                f"step {int(clock[0]) + 1} of `{settings.title}` on cuda:{place.device} failed: {error}. If an earlier "
                "kernel, of any library, is to blame, CUDA says so only now; CUDA_LAUNCH_BLOCKING=1 finds it."
            ) from error
        clock[0] += bool(self.calls) and not capturing
        clock[1] = 0
        return -1

    def norms(self) -> tuple[float | None, dict[int, float]]:
        """Of the gradients in the last step, of all and by segment, where they were taken first. Waits."""
        return norms(self.launches)

    def _upload(self, stream: int | None) -> None:
        # a table that has grown is elsewhere
        moved = any(x.touched is not None and x.touched.moved for x in self.launches)
        if self._aim is None or (not moved and self._aimed is not None and np.array_equal(self._aim, self._aimed)):
            return
        before, self._aimed = self._aimed, None
        for launch in self.launches:
            launch.addresses[:, 1] = self._aim
            if launch.touched is not None:
                launch.touched.point(launch.addresses, launch.lowered)
            self.place.copy_in(launch.addresses_at, launch.addresses, stream if before is not None else None)
        self._aimed = self._aim

    def write(self, settings: Settings, t: int, stream: int | None) -> None:
        """Bring the values to step `t`, and to the device if they changed. Raises `ConfigError` and changes nothing."""
        for launch in self.launches:
            launch.write_hyper(settings, t)
        values = np.array([float(v) for launch in self.launches for row in launch.values for v in row])
        if not np.array_equal(values, self._values):
            self.place.copy_in(self.values, values, stream)
            self._values = values
        self.written = settings.version if self.steady else -1


def build(
    place: Cuda,
    settings: Settings,
    segments: Sequence[Segment],
    kinds: tuple[str, ...],
    missed: Sequence[int],
    epoch: int,
) -> DevicePlan:
    """Sort the segments into launches, and load the kernels. `missed[k]`: steps segment k sat out."""
    # a launch each for gradients of rows: what is touched is the parameter's own
    groups: dict[tuple[tuple[Rule, Lowered, Codec, Codec], int], list[int]] = {}
    for k, (segment, kind) in enumerate(zip(segments, kinds, strict=True)):
        if kind:
            rule, lowered, gradient = settings.rule(k), segment.lowered, codecs.of(kind[-1])
            by_rows = kind[:1] == "r"
            if by_rows:
                lowered = rows_of(lowered, "lazy", rule, settings.names[k], segment.array.shape)
            which = rule, lowered, codecs.of(segment.array.dtype), gradient
            groups.setdefault((which, k if by_rows else -1), []).append(k)
    _check_groups(settings, [which for which, _ in groups])
    widths = [len(settings.schema(segments[members[0]].row)) for members in groups.values()]
    rows = [len({(segments[k].row, missed[k]) for k in members}) for members in groups.values()]
    values = zeros(place.driver, place.device, sum(w * n for w, n in zip(widths, rows, strict=True)), np.float64)
    firsts = np.cumsum([0, *(w * n for w, n in zip(widths, rows, strict=True))]).tolist()
    launches = [
        _launch(place, segments, members, missed, values.address + 8 * first, *which)
        for ((which, _), members), first in zip(groups.items(), firsts, strict=False)
    ]
    live = upload(place.driver, place.device, np.array([bool(kind) for kind in kinds], np.uint64))
    calls = [launch.prologue for launch in launches]
    kept: list[Any] = [live]
    for at in sorted({at for launch in launches for at in launch.calls}):
        calls += [launch.calls[at] for launch in launches if at in launch.calls]
        calls += _everywhere(place, launches, at, kept)
    if launches:
        clock = _clock(segments, next(iter(groups))[0])
        arguments = [len(segments), live.address, place.clock.address, place.control.address]
        calls.append(place.call(clock, "epilogue", "one", arguments))
    steady = not any(settings.scheduled(row) for launch in launches for row, _ in launch.rows)
    return DevicePlan(place, kinds, epoch, launches, steady, calls, values, kept, settings.names)


def _check_groups(settings: Settings, kinds: Sequence[tuple[Rule, Lowered, Codec, Codec]]) -> None:
    """Raise `DeviceError` for a total over a group whose parameters would be in several launches."""
    for rule, lowered, *_ in kinds:
        grouped = any(n.total and n.total[1] == "group" for q in lowered.passes for n, _ in q.totals)
        if grouped and sum(other is rule for other, *_ in kinds) > 1:
            raise DeviceError(
                f"`{rule.name}` has a total over a group, which the CUDA target takes of parameters of one dtype, and "
                "gradients of one; convert them, or give each group a rule of its own: Group(pattern, rule=...)."
            )


def _launch(
    place: Cuda,
    segments: Sequence[Segment],
    members: list[int],
    missed: Sequence[int],
    values: int,
    rule: Rule,
    lowered: Lowered,
    dtype: Codec,
    gradient: Codec,
) -> DeviceLaunch:
    rows = {row: k for k, row in enumerate(dict.fromkeys((segments[k].row, missed[k]) for k in members))}
    arrays = [segments[k].array for k in members]
    sizes, groups = [a.size for a in arrays], [rows[segments[k].row, missed[k]] for k in members]
    chunk = min(_LARGEST, max(_SMALLEST, 1 << (sum(sizes) // _CHUNKS).bit_length()))
    work = worklist.chunks(sizes, members, groups, [scratch.step(lowered, a, chunk) for a in arrays])
    parameters = scratch.parameters(work, arrays)
    parameters = np.column_stack([parameters, np.array([segments[k].row for k in members], np.uint64)])
    touched = DeviceRows(place, arrays[0], members[0]) if lowered.touched else None
    places: dict[str, int] = {}
    if touched is not None:
        work, places = touched.work, touched.places

    def empty(size: int, kind: Any) -> DeviceArray:
        return zeros(place.driver, place.device, size, kind)

    def table(host: np.ndarray) -> DeviceArray:
        return upload(place.driver, place.device, host)

    temporary = scratch.buffers(lowered, arrays, empty)
    addresses = np.zeros((len(segments), len(lowered.buffers)), np.uint64)
    for k, mine in zip(members, temporary, strict=True):
        one = segments[k]
        known = {"p": one.array, **one.state, **mine, **({} if one.copy is None else {COPY: one.copy})}
        row = scratch.plain(lowered, one.array, one.key) | places | {b: a.address for b, a in known.items()}
        addresses[k] = [row[b] for b in lowered.buffers]
    columns, totals = 1 + len(lowered.columns), text.totals(lowered)
    tables = {
        "work": table(work),
        "addresses": empty(max(1, addresses.size), np.uint64),
        "hyper": empty(len(rows) * columns, dtype.real),
        "parameters": table(parameters),
        "reduced": empty(len(segments) * lowered.slots, np.float64),
        "partials": empty(len(work) * totals, np.float64),
        "missed": table(np.array([m for _, m in rows], np.int64)),
    }
    at = {name: a.address for name, a in tables.items()}
    arguments = [len(work), len(members), at["work"], at["addresses"], at["hyper"], place.control.address]
    arguments += [place.clock.address, at["parameters"], at["reduced"], at["partials"]]
    module = cuda.kernels(rule.name, lowered, dtype, gradient)
    limits = {"chunks": len(arrays[0]) if touched else len(work), "parameters": len(members), "one": 1}
    calls = {
        _order(name): place.call(module, name, grid, arguments, limits[grid]) for name, _, _, grid in module.LAUNCHES
    }
    clock = cuda.clock(rule.name, tuple(rule.schema), lowered, dtype.real)
    return DeviceLaunch(
        stages=stages(tuple(rule.schema), lowered, dtype.real),
        rows=list(rows),
        hyper=np.zeros((len(rows), columns), dtype.real),
        rule=rule,
        lowered=lowered,
        gradient=gradient,
        n_chunks=len(work),
        work_at=tables["work"],
        reduced=tables["reduced"],
        members=members,
        addresses=addresses,
        addresses_at=tables["addresses"],
        partials=tables["partials"],
        everywhere=module.EVERYWHERE,
        calls=calls,
        prologue=place.call(
            clock,
            "prologue",
            "one",
            [len(rows), values, at["missed"], at["hyper"], place.clock.address, place.control.address],
        ),
        kept=[tables, temporary],
        touched=touched,
    )


def _clock(segments: Sequence[Segment], which: tuple[Rule, Lowered, Codec, Codec]) -> Any:
    rule, lowered, dtype, _ = which
    return cuda.clock(rule.name, tuple(rule.schema), lowered, dtype.real)


def _order(name: str) -> tuple[int, int]:
    """(pass, place in it) of a kernel: `gather_1`, `numbers_1`, `kernel_1`."""
    stem, number = re.fullmatch(r"([a-z]+)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
    return int(number or 0), ("gather", "numbers", "kernel").index(stem)


def _everywhere(place: Cuda, launches: list[DeviceLaunch], at: tuple[int, int], kept: list[Any]) -> list[Call]:
    """Totals over all parameters, where several launches of one rule each know their own part."""
    if at[1]:
        return []
    parts: dict[tuple[Rule, int], list[int]] = {}
    for launch in launches:
        for k in launch.everywhere.get(f"gather_{at[0]}", ()):
            parts.setdefault((launch.rule, k), []).append(launch.partials.address)
    calls = []
    for (_, k), addresses in parts.items():
        if len(addresses) > 1:
            table = upload(place.driver, place.device, np.array(addresses, np.uint64))
            kept.append(table)
            arguments = [len(addresses), k, table.address, place.control.address]
            calls.append(place.call(cuda_everywhere.module(), "everywhere", "one", arguments))
    return calls
