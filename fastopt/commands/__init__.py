"""What `fastopt train`, `bench` and `info` do; `fastopt.cli` reads their options. Nothing else imports from here."""

from fastopt.errors import ConfigError, hint
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule


def rule_named(name: str) -> Rule:
    """A rule of the catalogue, or a reading such as keras.adam. Raises `ConfigError` with the names there are."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    from fastopt.rules.readings import READINGS

    if name not in READINGS:
        known, readings = ", ".join(CATALOGUE), ", ".join(READINGS)
        close = hint(name, {**CATALOGUE, **READINGS})
        raise ConfigError(f"there is no rule `{name}`; the catalogue has {known}; the readings are {readings}.{close}")
    return READINGS[name]
