"""Other libraries' readings of the rules, by name. Apart from the catalogue, so that only those who ask load them."""

from fastopt.rules import keras, optax
from fastopt.schema import Rule

READINGS: dict[str, Rule] = {
    rule.name: rule for module in (keras, optax) for rule in vars(module).values() if isinstance(rule, Rule)
}
