"""The cases of the rules that conftest's RULES drives through every layout; here they meet the catalogue's problems."""

from catalogue import Case
from conftest import RULES
from oracles import ORACLES

CASES = [Case(v.rule, ORACLES[v.rule], {**v.hyper, "lr": 0.1 * v.hyper["lr"]}, v.other) for v in RULES]
