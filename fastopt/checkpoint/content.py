"""What the checkpoint of an optimizer holds, and what must be the same where it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastopt
from fastopt import state
from fastopt.checkpoint import files, format, tree
from fastopt.checkpoint.digest import described, digest
from fastopt.checkpoint.files import Damaged
from fastopt.errors import CheckpointError, listing
from fastopt.groups import Settings

if TYPE_CHECKING:
    from fastopt.optimizer import Optimizer


class Saved(NamedTuple):
    """What a file holds: `state` as `Optimizer.state_dict` gives it, with "params" if they were saved; `extra`."""

    state: dict[str, Any]
    extra: Any
    run: dict[str, Any]  # "fastopt": its version, "groups": see `_group`, "members": parameter -> pattern
    header: format.Header

    @property
    def params(self) -> dict[str, np.ndarray] | None:
        """Path -> array, if the parameters were saved."""
        return self.state.get("params")


def captured(opt: Optimizer, params: bool, extra: Any) -> Iterator[memoryview]:
    """The pieces of a file, made of copies: nothing that happens later to the optimizer or to `extra` gets in."""
    if extra is not None and not isinstance(extra, Mapping):
        raise CheckpointError(f"`extra` is a {type(extra).__name__}; expected a dict, such as {{'epoch': 3}}.")
    tensors: dict[str, np.ndarray] = {}
    try:
        more = tree.split(extra, "extra", tensors)
    except RecursionError:
        raise CheckpointError("`extra` is nested too deep, or holds itself.") from None
    for name, a in tensors.items():
        format.code(name, a)
        tensors[name] = a.copy()
    with opt._alone():
        saved, settings = opt._saved(params), opt._settings
        run = {
            "fastopt": fastopt.__version__,
            "groups": {p: _group(settings, k) for k, p in enumerate(settings.patterns)},
            "members": _members(settings),
            # by path: state/m/layer.0.weight, params/layer.0.weight; a new part of the state gets a name of its own
            "state": {k: tree.split(v, k, tensors) for k, v in saved.items()},
        }
    return format.encode(tensors, run, more)


def _members(settings: Settings) -> dict[str, str]:
    return {n: settings.patterns[k] for n, k in zip(settings.names, settings.of, strict=True)}


def _group(settings: Settings, row: int) -> dict[str, Any]:
    rule = settings.rules[row]
    values = {n: settings.value(row, n) for n in settings.schema(row)}
    return {
        "rule": rule.name,
        "digest": digest(rule),
        "frozen": settings.frozen[row],
        "values": {n: None if v is ... or callable(v) or isinstance(v, type) else v for n, v in values.items()},
        "schedules": {n: described(v) for n, v in values.items() if callable(v) and not isinstance(v, type)},
    }


def read(path: Any) -> Saved:
    """Everything a file holds, checked, as plain dicts and arrays: for programs that have no optimizer.

    Raises `CheckpointError` if it is damaged or no checkpoint.
    """
    with files.opened(path) as file:
        header = format.header(file)
        return _saved(file, header, format.tensors(file, header))


def _saved(file: files.File, header: format.Header, tensors: Mapping[str, Any]) -> Saved:
    left = dict(tensors)
    run = header.run
    try:
        if not isinstance(run, dict) or not isinstance(run.get("state"), dict):
            raise CheckpointError("it holds no state.")
        state, extra = tree.join(run["state"], left), tree.join(header.extra, left)
        if left:
            raise CheckpointError(f"nothing refers to its tensor {next(iter(left))!a}.")
    except (CheckpointError, RecursionError) as error:
        raise Damaged(f"{file.path} is no checkpoint that this fastopt can read: {error}") from error
    return Saved(state, extra, {k: v for k, v in run.items() if k != "state"}, header)


def load(
    opt: Optimizer,
    path: Any,
    params: bool | None = None,
    rule_changed: bool = False,
    accept: Callable[[Any], None] | None = None,
) -> Any:
    """`Optimizer.load`: compared with the file's header first, then tensors are read, and only then anything changes.

    `accept` is given `extra` when everything else is in order, and may refuse it.
    """
    with opt._alone():
        settings = opt._settings
        opt._settled()
        with files.opened(path) as file:
            header = format.header(file)
            seen = _saved(file, header, {n: _ghost(file, n, e) for n, e in header.tensors.items()})
            _compare(file, seen, opt, params, rule_changed)
            saved = _saved(file, header, format.tensors(file, header))
            _compare(file, saved, opt, params, rule_changed)  # the values, too
        if params is False:
            saved.state.pop("params", None)
        for text in _other_schedules(saved, settings):
            warnings.warn(text, UserWarning, stacklevel=3)
        if accept is not None:
            accept(saved.extra)
        opt._take(saved.state)
        return saved.extra


def check(path: Any) -> None:
    """Read a file through and compare all checksums. Raises `CheckpointError`."""
    with files.opened(path) as file:
        header = format.header(file)
        if bad := [name for name, _, good in format.verified(file, header) if not good]:
            file.refuse(f"the checksum of {listing(bad, 20)} does not match")


def _ghost(file: files.File, name: str, entry: format.Entry) -> np.ndarray:
    """An array of the shape and dtype to come that takes no memory."""
    try:
        return np.broadcast_to(np.zeros((), entry.dtype), entry.shape)
    except ValueError:
        file.refuse(f"tensor {name!a} has a shape that no array has")


def _compare(file: files.File, saved: Saved, opt: Optimizer, params: bool | None, rule_changed: bool) -> None:
    """Raise `CheckpointError` with everything that keeps the file from being loaded."""
    settings, content = opt._settings, dict(saved.state)
    if params is False:
        content.pop("params", None)
    problems = state.differences(content, settings, opt._segments)[0]
    if params and "params" not in content:
        problems.append("parameters: not in the file; it was saved without params=True")
    was = _table(saved.run.get("members"))
    now = _members(settings)
    problems += [
        f"parameter `{n}`: in group {now[n]!r}, was in {was[n]!r}" for n in now if was.get(n, now[n]) != now[n]
    ]
    for k, pattern in enumerate(settings.patterns):
        group, rule = _table(_table(saved.run.get("groups")).get(pattern)), settings.rules[k]
        if group.get("rule", rule.name) != rule.name:
            problems.append(f"rule of {pattern!r}: `{rule.name}`, was `{group['rule']}`")
        elif group and group.get("digest") != digest(rule) and not rule_changed:
            problems.append(
                f"rule `{rule.name}` of {pattern!r}: its formula or a default has changed since (it was "
                f"{group.get('digest')}, it is {digest(rule)}). If the state still means the same, load it with "
                "rule_changed=True"
            )
    if problems:
        listed = "".join(f"\n  - {p}" for p in dict.fromkeys(problems))
        raise CheckpointError(f"{file.path} does not fit this `{settings.title}` optimizer:{listed}")


def _other_schedules(saved: Saved, settings: Settings) -> list[str]:
    texts = []
    for k, pattern in enumerate(settings.patterns):
        was = _table(_table(_table(saved.run.get("groups")).get(pattern)).get("schedules"))
        own = {n: v for n, v in settings.own[k].items() if callable(v)}
        for name, value in own.items():
            if name in was and was[name] != described(value):
                texts.append(f"`{name}` of {pattern!r} was {was[name]}; from now on it is {described(value)}.")
    return texts


def _table(x: Any) -> Mapping[str, Any]:
    return x if isinstance(x, Mapping) else {}
