"""Every exception fastopt raises on purpose. A message says the name, the value, what was expected and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class FastoptError(Exception):
    """Base of all of them."""


class ConfigError(FastoptError, ValueError):
    """A rule, hyperparameter, group, schedule or setting that cannot work. Raised before anything is changed."""


class RuleError(ConfigError):
    """A formula that cannot be compiled; says file, line and reason, when the rule is declared."""


class ArrayTypeError(FastoptError, TypeError):
    """A parameter array that cannot be updated in place (kind, dtype, layout, byte order, writability)."""


class GradientError(FastoptError, ValueError):
    """Gradients that do not fit the parameters. Nothing was changed."""


class NonFiniteError(FastoptError, ArithmeticError):
    """A NaN or an infinity where a finite number is needed."""


class TornStateError(FastoptError, RuntimeError):
    """A step was interrupted half-way: parameters and state no longer belong to one step."""


class ConcurrentUseError(FastoptError, RuntimeError):
    """One optimizer used by two threads at once, or from inside its own step."""


class CheckpointError(FastoptError, ValueError):
    """A saved state that is damaged, or belongs to another rule or other parameters. Nothing was changed."""


class DeviceError(FastoptError, RuntimeError):
    """An array or a setting asks for a device that is not there."""


def hint(name: str, valid: Iterable[str]) -> str:
    """'' or ' Did you mean `x`?', from the valid names close to `name`."""
    close = get_close_matches(str(name), list(valid), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def listing(names: Iterable[object], most: int = 6) -> str:
    """The names in backticks, cut after `most` with the count of the rest."""
    names = list(names)
    text = ", ".join(f"`{n}`" for n in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text
