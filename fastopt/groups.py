"""Which hyperparameters hold for which parameter: patterns on paths, inheritance, schedules, changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np

from fastopt import codecs, storage
from fastopt.errors import ConcurrentUseError, ConfigError, listing
from fastopt.group import Group
from fastopt.lower import lower
from fastopt.lowered import Lowered
from fastopt.schema import MATRIX, REQUIRED, Domain, Hyper, Rule
from fastopt.storage import Storage

Setting = float | bool | Callable[[int], float]
MAXIMIZE = Hyper("maximize", False, Domain())  # every rule has it: the sign of the gradient, a column of the kernel


class Settings:
    """The hyperparameters of an optimizer: one row per group, the last for parameters that match none.

    `own[k]` holds what row k says itself; `value` adds inheritance. Numbers are checked when they are set, schedules
    when they are called. `storages` says how the states of each row are stored.
    """

    def __init__(
        self,
        rule: Rule,
        given: Mapping[str, Any],
        groups: Iterable[Group],
        names: Sequence[str],
        params: Sequence[np.ndarray],
    ):
        if not isinstance(groups, Iterable):
            raise ConfigError(f"groups is a {type(groups).__name__}; expected a list of fastopt.Group(pattern, ...).")
        groups = tuple(groups)
        if bad := [g for g in groups if not isinstance(g, Group)]:
            raise ConfigError(f"groups: {bad[0]!r} is a {type(bad[0]).__name__}; expected fastopt.Group(pattern, ...).")
        self.rules = (*(g.rule or rule for g in groups), rule)
        self._heirs = (*(g.rule is None for g in groups), True)  # of the optimizer's own row
        self._schemas = [{**r.schema, MAXIMIZE.name: MAXIMIZE} for r in self.rules]
        self.patterns = (*(g.pattern for g in groups), "*")
        if "*" in self.patterns[:-1]:
            raise ConfigError(
                "groups: '*' is the optimizer itself; give it the hyperparameters, as in rule(params, lr=...)."
            )
        if twice := [p for p in self.patterns if self.patterns.count(p) > 1]:
            raise ConfigError(f"groups: the pattern {twice[0]!r} is given twice.")
        self.frozen = (*(g.frozen for g in groups), False)
        self._stored = (*(g.stored for g in groups), {})
        self.storages: Sequence[Storage] = [Storage()] * len(self.rules)
        self.of = [next(k for k, p in enumerate(self.patterns) if fnmatchcase(n, p)) for n in names]
        self.names = tuple(names)
        for k, pattern in enumerate(self.patterns[:-1]):
            if k not in self.of:
                matched = any(fnmatchcase(n, pattern) for n in names)
                why = "an earlier group takes all it matches" if matched else f"the parameters are {listing(names)}"
                raise ConfigError(f"groups: nothing is left for the pattern {pattern!r}; {why}.")
        self.dtype = [
            min(
                (codecs.of(p.dtype).real for p, g in zip(params, self.of, strict=True) if g == k),
                default=np.dtype(np.float64),
                key=lambda d: d.itemsize,
            )
            for k in range(len(self.patterns))
        ]
        self.own: list[dict[str, Setting]] = [dict(g.hyper) for g in groups] + [dict(given)]
        for k in set(self.of):
            name = self.rules[k].name
            if missing := [n for n in self.schema(k) if self.value(k, n) is REQUIRED]:
                raise ConfigError(f"`{name}` needs a value for `{missing[0]}`: {name}(params, {missing[0]}=...).")
        self.own = self._checked(self.own)
        self.version = 0  # grows with every change
        for k in set(self.of):
            self._check_switches(k)

    def row(self, pattern: str | None) -> int:
        if pattern is None:
            return len(self.patterns) - 1
        if pattern in self.names and pattern not in self.patterns:
            return self.of[self.names.index(pattern)]
        if pattern not in self.patterns:
            raise ConfigError(f"no group has the pattern {pattern!r}; the groups are {listing(self.patterns)}.")
        return self.patterns.index(pattern)

    def value(self, row: int, name: str, own: Sequence[Mapping[str, Setting]] | None = None) -> Setting:
        own = self.own if own is None else own
        heir = self._heirs[row] or name == MAXIMIZE.name
        for given in (own[row], own[-1] if heir else {}):
            if name in given:
                return given[name]
        return self.schema(row)[name].default

    def switches(self, row: int, own: Sequence[Mapping[str, Setting]] | None = None) -> tuple[tuple[str, bool], ...]:
        """(name, truth) of the switches of the row's rule; a schedule counts as true."""
        rule = self.rules[row]
        return tuple((n, bool(self.value(row, n, own))) for n in rule.switches if n in rule.schema)

    def lowered(self, k: int, param: Any) -> Lowered:
        """The lowered rule of parameter `k`."""
        return self.stored(lower(self.rule(k), self.chosen(k, param)), k, param)

    def stored(self, lowered: Lowered, k: int, param: Any) -> Lowered:
        """A lowered rule of parameter `k` with the codecs of its states."""
        return self.storages[self.of[k]].applied(lowered, self.rule(k), param)

    def store(self, options: Mapping[str, Any], params: Sequence[Any], by_rows: bool) -> None:
        """Decide how states are stored, by the options of the optimizer and what groups say. Raises `ConfigError`."""
        every = storage.read(*_about(self.rules, params), **options, otherwise=Storage(by_rows=by_rows))
        self.storages = [every] * len(self.rules)
        for k, own in enumerate(self._stored):
            mine = [p for p, row in zip(params, self.of, strict=True) if row == k]
            try:
                given = {"rounding": options["rounding"], **own}
                self.storages[k] = storage.read(*_about([self.rules[k]], mine), **given, otherwise=every)
            except ConfigError as error:
                raise ConfigError(f"Group({self.patterns[k]!r}): {error}") from None

    def chosen(self, k: int, param: np.ndarray) -> tuple[tuple[str, bool], ...]:
        """(name, truth) of all switches of the rule of parameter `k`."""
        supplied = ((n, param.ndim == 2) for n in self.rule(k).switches if n == MATRIX)
        return (*self.switches(self.of[k]), *supplied)

    def rule(self, k: int) -> Rule:
        """The rule of parameter `k`."""
        return self.rules[self.of[k]]

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states of all rules."""
        return tuple(dict.fromkeys(s for rule in self.rules for s in rule.state))

    @property
    def title(self) -> str:
        """The names of the rules, the optimizer's own first."""
        return " + ".join(dict.fromkeys(rule.name for rule in reversed(self.rules)))

    def schema(self, row: int) -> dict[str, Hyper]:
        """The hyperparameters of a row, in the order of its rule's signature."""
        return self._schemas[row]

    def scheduled(self, row: int) -> bool:
        return any(callable(self.value(row, n)) for n in self.schema(row))

    def evaluate(self, row: int, t: int) -> list[float | bool]:
        """The values of a row at step `t`, in the order of the schema. Raises `ConfigError` for a bad schedule."""
        values = []
        for name, hyper in self.schema(row).items():
            value = self.value(row, name)
            if callable(value):
                where = f"the schedule of `{name}` at step {t}"
                try:
                    result = value(t)
                except ConcurrentUseError:
                    raise  # a schedule that calls the optimizer it belongs to
                except Exception as error:
                    raise ConfigError(f"{where} raised {type(error).__name__}: {error}") from error
                value = hyper.check(result, self.dtype[row], where)
            values.append(value)
        return values

    def update(self, pattern: str | None, changes: Mapping[str, Any]) -> None:
        """Change a row, all of `changes` or nothing. Raises `ConfigError`."""
        row = self.row(pattern)
        if pattern in self.names and pattern not in self.patterns:
            raise ConfigError(f"`{pattern}` is one parameter of the group {self.patterns[row]!r}; set the group.")
        if "frozen" in changes:
            raise ConfigError(
                "`frozen` decides which state exists, so it is fixed at construction; build a new optimizer."
            )
        own = [dict(o) for o in self.own]
        own[row].update(changes)
        own = self._checked(own)
        for k in set(self.of):
            before, after = dict(self.switches(k)), dict(self.switches(k, own))
            if changed := [n for n in before if before[n] != after[n]]:
                raise ConfigError(
                    f"`{changed[0]}` switches between kernels with different state, so it is fixed at construction "
                    f"(it was {self.value(k, changed[0])!r}); build a new optimizer."
                )
        self.own, self.version = own, self.version + 1

    def state_dict(self) -> dict[str, Any]:
        """Pattern -> name -> value; a schedule as its own state_dict if it has one, else as None."""
        return {
            p: {n: v if not callable(v) else getattr(v, "state_dict", lambda: None)() for n, v in own.items()}
            for p, own in zip(self.patterns, self.own, strict=True)
        }

    def compare(self, saved: Any) -> list[str]:
        """What keeps `saved` from being loaded here."""
        if not isinstance(saved, Mapping) or set(saved) != set(self.patterns):
            found = listing(saved) if isinstance(saved, Mapping) else repr(saved)
            return [f"groups: {found}, expected {listing(self.patterns)}"]
        problems = []
        for k, p in enumerate(self.patterns):
            if not isinstance(saved[p], Mapping):
                problems.append(f"hyperparameters of {p!r}: {saved[p]!r}, expected a dict")
                continue
            for name, value in saved[p].items():
                live = self.own[k].get(name, 0.0)
                if isinstance(value, Mapping) and callable(live) and not hasattr(live, "load_state_dict"):
                    problems.append(f"`{name}` of {p!r}: a schedule with a state, expected one without")
                if not callable(live) and (value is None or isinstance(value, Mapping)):
                    problems.append(f"`{name}` of {p!r}: a schedule, which is not saved; build the optimizer with it")
        if not problems:
            try:
                own = self._restored(saved)
                problems += [
                    f"switches of {self.patterns[k]!r} differ"
                    for k in set(self.of)
                    if self.switches(k) != self.switches(k, own)
                ]
            except ConfigError as error:
                problems.append(str(error))
        return problems

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over numbers (one set over a schedule, too) and the live schedules' own state. All or nothing."""
        own = self._restored(saved)
        pairs = [(cast(Any, own[k][n]), v) for k, p in enumerate(self.patterns) for n, v in saved[p].items()]
        stateful = [(schedule, state, schedule.state_dict()) for schedule, state in pairs if isinstance(state, Mapping)]
        try:
            for schedule, state, _ in stateful:
                schedule.load_state_dict(state)
        except BaseException:
            for schedule, _, before in stateful:
                schedule.load_state_dict(before)
            raise
        self.own, self.version = own, self.version + 1

    def _restored(self, saved: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Setting]]:
        numbers = [
            {n: v for n, v in saved[p].items() if v is not None and not isinstance(v, Mapping)} for p in self.patterns
        ]
        schedules = [{n: v for n, v in own.items() if callable(v)} for own in self.own]
        return self._checked([{**s, **n} for s, n in zip(schedules, numbers, strict=True)])

    def _checked(self, own: Sequence[Mapping[str, Any]]) -> list[dict[str, Setting]]:
        checked: list[dict[str, Setting]] = []
        for k, settings in enumerate(own):
            rule = self.rules[k]
            where = f"`{rule.name}`" if k == len(own) - 1 else f"`{rule.name}`, group {self.patterns[k]!r}"
            row: dict[str, Any] = {}
            for name, value in settings.items():
                hyper = self.schema(k).get(name)
                if hyper is None:
                    raise rule.unknown(name)
                if isinstance(value, type) or hasattr(value, "makes_schedules"):
                    raise ConfigError(f"{where}: `{name}` is {value.__name__} itself; call it, with its settings.")
                free = callable(value) and not hyper.boolean  # checked when it is called
                row[name] = value if free else hyper.check(value, self.dtype[k], where)
            checked.append(row)
        for k in set(self.of):  # what is inherited must suit the heir's dtype, too
            for name, hyper in self.schema(k).items():
                value = self.value(k, name, checked)
                if not callable(value):
                    hyper.check(value, self.dtype[k], f"`{self.rules[k].name}`")
        return checked

    def _check_switches(self, row: int) -> None:
        rule, chosen = self.rules[row], self.switches(row)
        supplied = tuple((n, True) for n in rule.switches if n == MATRIX)
        for name, truth in chosen:
            off = tuple((n, v and n != name) for n, v in chosen)
            if truth and lower(rule, off + supplied) == lower(rule, chosen + supplied):
                others = ", ".join(f"{n}={self.value(row, n)!r}" for n, _ in chosen if n != name)
                raise ConfigError(f"`{rule.name}`: `{name}={self.value(row, name)!r}` has no effect with {others}.")


def _about(rules: Sequence[Rule], params: Sequence[Any]) -> tuple[tuple[str, ...], str, bool]:
    """The states of rules, their names, and whether there are parameters in 16 bits."""
    states = tuple(dict.fromkeys(s for rule in rules for s in rule.state))
    return states, " + ".join(dict.fromkeys(rule.name for rule in rules)), any(codecs.of(p.dtype).coded for p in params)
