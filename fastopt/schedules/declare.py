"""What a schedule is: a formula of the steps done and its checked values. The formulas are in `schedules`."""

import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import update_wrapper
from types import FunctionType
from typing import Annotated, Any, Concatenate, NamedTuple, ParamSpec, get_args

from fastopt.errors import CheckpointError, ConfigError, hint, listing

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """An immutable function of the step t = 1, 2, ... that gives a float; equal to another if name and values are.

    `values` holds (name, value) pairs, all of them. `formula` takes the steps done, e = t - 1, and no more.
    """

    make: Callable[..., "Schedule"]  # the public function it came from
    values: tuple[tuple[str, Any], ...]
    formula: Callable[[int], float] = field(compare=False)

    def __call__(self, t: int) -> float:
        return self.formula(t - 1)

    def __repr__(self) -> str:
        return f"{self.make.__name__}({', '.join(f'{name}={value!r}' for name, value in self.values)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.make, self.values)

    def _parts(self) -> dict[str, Any]:
        """The schedules inside that have a state, `Plateau` above all."""
        parts = [(n, i, p) for n, v in self.values for i, p in enumerate(v if isinstance(v, tuple) else (v,))]
        return {f"{n}.{i}": p for n, i, p in parts if getattr(p, "state_dict", lambda: None)() is not None}

    def state_dict(self) -> dict[str, Any] | None:
        """The states of the schedules inside, by place; None for a function of t alone."""
        return {place: part.state_dict() for place, part in self._parts().items()} or None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `CheckpointError`; then nothing is changed."""
        parts, before = self._parts(), self.state_dict() or {}
        if not isinstance(state, Mapping) or state.keys() != parts.keys():
            raise CheckpointError(f"schedules.{self}: the state is {state!r}; expected a dict of {listing(parts)}.")
        try:
            for place, part in parts.items():
                part.load_state_dict(state[place])
        except CheckpointError:
            for place, part in parts.items():
                part.load_state_dict(before[place])
            raise


def _remake(make: Callable[..., Schedule], values: tuple[tuple[str, Any], ...]) -> Schedule:
    return make(**dict(values))


class Kind(NamedTuple):
    """What a value must be: in words, and as a function that gives it as a plain Python value or raises."""

    expected: str
    read: Callable[[Any], Any]

    def __repr__(self) -> str:  # help() shows it inside the annotation
        return repr(self.expected)


def number(value: Any) -> float:
    """Any scalar, a 0-d array or tensor too, as a float. Raises what `float` raises, `TypeError` for text and bools."""
    boolean = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if boolean or isinstance(value, str | bytes) or getattr(value, "ndim", 0):
        raise TypeError
    return float(value)


def real(expected: str, ok: Callable[[float], bool]) -> Kind:
    def read(value: Any) -> float:
        plain = number(value)
        if not (math.isfinite(plain) and ok(plain)):
            raise ValueError
        return plain

    return Kind(expected, read)


def whole(low: int) -> Kind:
    def read(value: Any) -> int:
        plain = -1 if isinstance(value, bool) else operator.index(value)
        if not low <= plain <= 2**53:  # a step beyond is not exact as a float
            raise ValueError
        return plain

    return Kind(f"an int >= {low}", read)


def one_of(*valid: object) -> Kind:
    def read(value: Any) -> Any:
        if type(value) is not type(valid[0]) or value not in valid:  # 1 == True
            raise ValueError
        return value

    return Kind(f"one of {listing(valid)}", read)


def or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.expected}, or None", lambda value: None if value is None else kind.read(value))


def read(owner: str, name: str, annotation: Any, value: Any) -> Any:
    """`value` as its annotation, an `Annotated[type, Kind]`, wants it; `ConfigError` if it cannot be that."""
    kind: Kind = get_args(annotation)[-1]
    try:
        return kind.read(value)
    except (TypeError, ValueError, OverflowError):
        got = f"{reprlib.repr(value)} ({type(value).__name__})"
        raise ConfigError(f"schedules.{owner}: `{name}` is {got}; expected {kind.expected}.") from None


NUMBER = real("a finite number >= 0", lambda x: x >= 0)
Number = Annotated[float, NUMBER]
Positive = Annotated[float, real("a finite number > 0", lambda x: x > 0)]
Share = Annotated[float, real("a number in [0, 1]", lambda x: 0 <= x <= 1)]
Fraction = Annotated[float, real("a number in [0, 1)", lambda x: 0 <= x < 1)]
STEPS = whole(1)
Steps = Annotated[int, STEPS]
Count = Annotated[int, whole(0)]
Switch = Annotated[bool, one_of(False, True)]


def schedule(
    needs: str = "", ok: Callable[[dict[str, Any]], bool] = lambda values: True
) -> Callable[[Callable[Concatenate[int, P], float]], Callable[P, Schedule]]:
    """Declare a formula: `formula(e, **values) -> float`, e = t - 1 steps done, each value annotated with its `Kind`.

    What comes back takes the values, checks each alone and then all together (`ok`, in words `needs`), and gives a
    `Schedule`. Raises `ConfigError`.
    """

    def declare(formula: Callable[Concatenate[int, P], float]) -> Callable[P, Schedule]:
        name = formula.__name__
        assert isinstance(formula, FunctionType)
        signature = inspect.signature(formula)
        positional = formula.__code__.co_argcount - 1
        kinds = {p.name: p.annotation for p in list(signature.parameters.values())[1:]}
        signature = signature.replace(parameters=[signature.parameters[k] for k in kinds], return_annotation=Schedule)

        def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                close = "".join(hint(k, kinds) for k in kwargs if k not in kinds)
                raise ConfigError(f"schedules.{name}: {error}; it takes {listing(kinds, 9)}.{close}") from None
            bound.apply_defaults()
            values = {k: read(name, k, kinds[k], v) for k, v in bound.arguments.items()}
            # the same code with `values` as its defaults: to call it costs less than a `partial`
            bare = FunctionType(formula.__code__, formula.__globals__, name, (*values.values(),)[:positional])
            bare.__kwdefaults__ = values
            made = Schedule(public, tuple(values.items()), bare)
            if not ok(values):
                raise ConfigError(f"schedules.{made}: expected {needs}.")
            return made

        public = update_wrapper(make, formula)
        public.__dict__.update(__signature__=signature, makes_schedules=True)
        return public

    return declare
