"""`Optimizer`: a rule, parameters, state and a clock. A step is checked whole before the first element changes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from fastopt import checkpoint, codecs, copies, state, storage
from fastopt import memory as memories
from fastopt import params as arrays
from fastopt.averages import SHOWN, TURNING
from fastopt.devices import place as places
from fastopt.devices.array import DeviceArray
from fastopt.errors import ConcurrentUseError, ConfigError, DeviceError, TornStateError
from fastopt.groups import Group, Settings
from fastopt.memory import Memory
from fastopt.pack import Packed
from fastopt.schema import Rule
from fastopt.sharpness import PERTURBED
from fastopt.stepping import POLICIES, Stepping
from fastopt.touched import BEHIND, READINGS, Touched
from fastopt.tuning import Tuning

_T, _DIRTY = 0, 1  # the clock: steps done, is one under way, then the steps of each parameter


class Optimizer(Stepping, Tuning):
    """Updates parameters in place by a rule: one fused pass over memory per step, on as many threads as pay.

    Args:
        rule: a `Rule`, such as `fastopt.adamw`.
        params: one array, or a list, tuple or (nested) dict of C-contiguous arrays of float32, float64, float16 or
            bfloat16, or what `fastopt.pack` returned; or float32 and float64 arrays on a GPU, of PyTorch, CuPy, Numba
            or anything else that has `__cuda_array_interface__` or DLPack. They stay yours: read and written at every
            step, never copied.
        device: "auto" follows the arrays; "cpu", "cuda" or "cuda:1" insist.
        precise: on a GPU, no fused multiply-add: the bits of the CPU, which never uses it, for rules without totals.
        groups: `Group`s; the first whose pattern matches a parameter's path holds for it.
        sparse: what a step with a gradient of rows (see `rows`) means for the other rows. "lazy": nothing, they wait;
            "exact": what a gradient of zeros would do, done when a row is touched next, or by `catch_up`; "closed": the
            same at once for all the steps missed, where that is linear, but for rounding; "row": nothing, and t counts
            the steps of each row by itself. On a GPU "lazy" alone.
        nonfinite: what a NaN or an infinity in a gradient means. "ignore": nobody looks, and it spreads as in PyTorch;
            "skip": the whole step does not happen, see `last`; "raise": nor that, and `NonFiniteError` names the
            parameter; "zero": that element counts as 0. Rules that begin with a norm of the gradients, as `clip_norm`
            does, look without another pass over them.
        zero_grads: the step sets gradients to 0 when it has read them, in the same pass; not those of rows.
        copy_out: arrays of the structure of `params`, float32, float64, float16 or bfloat16, None for a parameter that
            needs no copy: the step writes what a parameter becomes there, too, in the same pass.
        state_dtype: how states are stored: "float32", "bf16", "f16" or "q8" (8 bits in blocks of 256), for all of them
            or in a dict by name; None: as the parameters. See docs/memory.md.
        rounding: of numbers in fewer than 32 bits. "stochastic": up or down by chance, right on average; "nearest".
        master: what is kept besides of parameters in bfloat16 or float16, as `opt.state["master"]`. "float32": a copy
            that steps go on from; "split": the other half of a float32, of bfloat16s; "kahan": what rounding lost.
        memory: "8bit" is state_dtype="q8", "16bit" is state_dtype="bf16".
        state_path: a file, made anew, that state is mapped from, where it does not fit into memory.
        **hyper: the rule's hyperparameters, numbers or callables of the step t = 1, 2, ...; `maximize=True` ascends.

    Attributes:
        names: the paths of the parameters, in order.
        state: state name -> the structure of the parameters (None where a parameter has no such state). Live arrays.

    Raises `ConfigError`, `ArrayTypeError` or `DeviceError`, which name the parameter or hyperparameter, before anything
    is allocated. State starts at 0 unless the rule says otherwise, and lives in 64-byte aligned buffers.
    """

    def __init__(
        self,
        rule: Rule,
        params: Any,
        *,
        device: str = "auto",
        precise: bool = False,
        groups: Iterable[Group] = (),
        sparse: str = "lazy",
        nonfinite: str = "ignore",
        zero_grads: bool = False,
        copy_out: Any = None,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        master: str | None = None,
        memory: str | None = None,
        state_path: Any = None,
        **hyper: Any,
    ):
        if not isinstance(rule, Rule):
            raise ConfigError(f"rule is a {type(rule).__name__}; expected a rule, such as fastopt.adamw.")
        if not isinstance(precise, bool):
            raise ConfigError(f"`precise` is {precise!r}; expected True or False.")
        if sparse not in READINGS:
            raise ConfigError(f"sparse is {sparse!r}; expected one of {', '.join(map(repr, READINGS))}.")
        if nonfinite not in POLICIES:
            raise ConfigError(f"nonfinite is {nonfinite!r}; expected one of {', '.join(map(repr, POLICIES))}.")
        if not isinstance(zero_grads, bool):
            raise ConfigError(f"zero_grads is {zero_grads!r}; expected True or False.")
        tree, leaves = arrays.survey(params)
        names = tree.names()
        if twice := [n for n, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"two parameters have the path `{twice[0]}`; rename a key.")
        place: Any = places.choose(device, leaves, names, precise)
        self._place = place
        owned = [place.parameter(x, n) for x, n in zip(leaves, names, strict=True)]
        arrays.check_overlap([place.span(a) for a in owned], names)
        self.rule, self.params, self.names = rule, params, names
        self._settings = Settings(rule, hyper, groups, names, owned)
        self._settings.storage = storage.read(
            *(state_dtype, rounding, master, memory),
            states=self._settings.states,
            title=self._settings.title,
            halves=any(codecs.of(a.dtype).coded for a in owned),
        )
        place.check(self._settings, owned, sparse)
        copied = copies.survey(copy_out, tree, names, owned, place)
        zeros = place.zeros if state_path is None else place.mapped(state_path)
        self._segments, flats = state.allocate(self._settings, owned, zeros)
        mends = nonfinite == "zero"
        self._segments = [
            replace(
                s, lowered=s.lowered.around(mends, zero_grads, "" if c is None else codecs.of(c.dtype).name), copy=c
            )
            for s, c in zip(self._segments, copied, strict=True)
        ]
        for segment in self._segments:
            if sparse == "row" and segment.array.ndim:
                segment.state[state.ROW_STEPS] = np.zeros(len(segment.array), np.int64)
        self._clock = place.start(len(owned))
        frozen = [self._settings.frozen[row] for row in self._settings.of]
        packed = params.grads if isinstance(params, Packed) and params.has_grads else None
        self._gradients = place.gradients(
            tree, names, owned, frozen, [*owned, *flats, *(c for c in copied if c is not None)], packed
        )
        self._gradients.zeroed = zero_grads
        self._policy, self._watching, self._tree = nonfinite, nonfinite in ("skip", "raise"), tree
        self._reading, self._touched = sparse, dict[str, Touched]()
        if sparse == "row":
            self._gradients.by_rows |= {n for n, a in zip(names, owned, strict=True) if a.ndim}
        self._lock = threading.Lock()
        self._leaves = () if packed is not None or tree.kind == "leaf" else leaves
        self._list = tree.reader()
        self.state = MappingProxyType(
            {
                s: tree.build(iter([x.state.get(s) for x in self._segments]))
                for s in state.names_of(self._settings, self._segments)
                if self._uses(s)
            }
        )

        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or "_ready" not in self.__dict__:
            return object.__setattr__(self, name, value)
        remedy = f"use opt.set({name}=...)" if name in self._settings.schema(-1) else "it is not for assignment"
        raise ConfigError(f"`{name}` of an optimizer cannot be set: {remedy}.")

    def _uses(self, name: str) -> bool:
        return any(name in s.state for s in self._segments)

    # ---------------------------------------------------------------- the clock
    @property
    def t(self) -> int:
        """Steps done. A parameter whose gradient was None at some of them has done fewer."""
        return int(self._place.read(self._clock)[_T])

    @property
    def control(self) -> DeviceArray:
        """On a GPU, float64 (3,): what the next steps multiply gradients by (1), skip if not 0 (0), and a free place.

        Loss scaling and clipping write here, on the device, so that nobody waits for a number.
        """
        if not hasattr(self._place, "control"):
            raise DeviceError("`control` is for parameters on a GPU; on the CPU scale gradients, or leave out a step.")
        return self._place.control

    @property
    def torn(self) -> bool:
        """Was a step interrupted half-way? Then every step raises `TornStateError` until a state is loaded."""
        return bool(self._clock[_DIRTY]) and self._clock[_DIRTY] not in (SHOWN, TURNING, PERTURBED)

    @property
    def num_parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(s.array.size for s in self._segments)

    # ---------------------------------------------------------------- state
    def memory(self) -> Memory:
        """What parameters and states take, in bytes and as what they are stored. Printed, it is a table."""
        return memories.of(self._segments, tuple(self.state))

    def catch_up(self) -> None:
        """With sparse="exact" or "closed": bring all rows to the present, as whole gradients would.

        `state_dict` does so, too.
        """
        with self._alone():
            self._catch_up()

    def _catch_up(self) -> None:
        if self._clock[_DIRTY]:
            self._torn()
        if self._reading in BEHIND:
            for touched in self._touched.values():
                touched.launch.catch_up(self._clock)

    def state_dict(self) -> dict[str, Any]:
        """State, step counts and hyperparameters as plain dicts, numbers and copies of arrays. Parameters are yours."""
        with self._alone():
            return self._saved()

    def _saved(self, params: bool = False) -> dict[str, Any]:
        self._catch_up()
        saved = state.save(self._settings, self._segments, self._place.read(self._clock), params=params)
        return saved | self._saved_sums()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, by parameter path. Ends a torn state.

        Raises `CheckpointError` with every difference, and changes nothing, if it belongs to another rule or to
        parameters of other names, shapes or dtypes. Schedules stay those of this optimizer.
        """
        with self._alone():
            self._take(saved)

    def _take(self, saved: dict[str, Any]) -> None:
        self._settled()
        state.load(saved, self._settings, self._segments, self._clock, self._place.write)
        self._take_sums(saved.get("accumulated"))
        self._plan = None
        self._touched.clear()  # what was saved had caught up

    def save(self, path: Any, *, params: bool = False, extra: Any = None) -> None:
        """Write the state, and with `params=True` the parameters, to a safetensors file; atomic, flushed to the disk.

        `extra`: what else the run needs, a dict of plain values and NumPy arrays, as {"data": batches.state_dict()}.
        Raises `CheckpointError`, and then the file that was there before is still there, whole.
        """
        checkpoint.write(path, checkpoint.captured(self, params, extra))

    def load(self, path: Any, *, params: bool | None = None, rule_changed: bool = False) -> Any:
        """Take over what `save` wrote, the parameters, too, if they are there; returns `extra`. Ends a torn state.

        params: True if they must be there, False to leave yours alone.
        rule_changed: go on although the formula of a rule is not the one that the file was saved with.

        Raises `CheckpointError` and changes nothing if the file is damaged or does not fit; then it lists every
        difference. Warns of schedules that differ: they are not loaded, only their state.
        """
        return checkpoint.load(self, path, params, rule_changed)

    def _settled(self) -> None:
        """Raise `ConfigError` unless the parameters are those of training."""
        if self._clock[_DIRTY] in (SHOWN, TURNING):
            self._refuse()
        if self._clock[_DIRTY] == PERTURBED:
            raise ConfigError(
                "the parameters are perturbed, since opt.perturb(). Call opt.step(grads) with the gradients there, or "
                "opt.unperturb(): both start from where they were."
            )

    def _torn(self) -> NoReturn:
        self._settled()
        raise TornStateError(
            f"step {self._clock[_T] + 1} of this {self.rule.name} optimizer was interrupted between two kernels: some "
            "parameters took it and some did not. Restore the parameters and call load_state_dict(...)."
        )

    def _alone(self) -> threading.Lock:
        """The lock, if nobody holds it; waiting for it could wait for ourselves."""
        if not self._lock.locked():
            return self._lock
        raise ConcurrentUseError(
            f"this {self.rule.name} optimizer is in use: by another thread, or by its own step (a schedule that calls "
            "it?). Give each thread an optimizer of its own."
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an Optimizer holds addresses of your arrays and cannot be copied or pickled; copy the parameters, build a "
            "new one on them and load_state_dict(state_dict())."
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in self._settings.own[-1].items())
        arrays = "1 array" if len(self.names) == 1 else f"{len(self.names)} arrays"
        return f"<{self.rule.name}({shown}) of {arrays}, {self.num_parameters:,} elements, t={self.t}>"
