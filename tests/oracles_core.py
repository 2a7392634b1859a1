"""The cases of the rules that conftest's RULES drives through every layout; here they meet the catalogue's problems."""

from catalogue import Case
from conftest import RULES
from oracles import ORACLES, Oracle


class ColdSGLD(Oracle):
    """Welling & Teh 2011 at temperature 0; test_noise.py has the rest."""

    def update(self, g, *, lr, temperature, weight_decay, seed):
        assert temperature == 0
        self.p = self.p - lr * (g + weight_decay * self.p)


CASES = [Case(v.rule, ORACLES[v.rule], {**v.hyper, "lr": 0.1 * v.hyper["lr"]}, v.other) for v in RULES]
CASES += [Case("sgld", ColdSGLD, dict(lr=0.01, weight_decay=0.1, temperature=0.0), dict(lr=0.02))]
