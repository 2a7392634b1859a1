"""What `fastopt train`, `bench` and `info` do; `fastopt.cli` reads their options. Nothing else imports from here."""

from fastopt.errors import ConfigError, hint
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule


def rule_named(name: str) -> Rule:
    """A rule of the catalogue. Raises `ConfigError` for an unknown name, with the names there are."""
    if name not in CATALOGUE:
        known = ", ".join(CATALOGUE)
        raise ConfigError(f"there is no rule `{name}`; the catalogue has {known}.{hint(name, CATALOGUE)}")
    return CATALOGUE[name]
