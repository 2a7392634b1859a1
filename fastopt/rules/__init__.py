"""The catalogue: one family a file, in order of increasing complexity. Tests, benchmarks, docs and the CLI read it."""

from fastopt.rules.adabelief import adabelief
from fastopt.rules.adadelta import adadelta
from fastopt.rules.adagrad import adagrad
from fastopt.rules.adam import adam, adamw
from fastopt.rules.adamax import adamax
from fastopt.rules.adan import adan
from fastopt.rules.ademamix import ademamix
from fastopt.rules.adopt import adopt
from fastopt.rules.asgd import asgd
from fastopt.rules.ftrl import ftrl
from fastopt.rules.laprop import laprop
from fastopt.rules.lion import lion
from fastopt.rules.madgrad import madgrad
from fastopt.rules.mars import mars
from fastopt.rules.nadam import nadam
from fastopt.rules.qhm import qhadam, qhm
from fastopt.rules.radam import radam
from fastopt.rules.rmsprop import rmsprop
from fastopt.rules.rprop import rprop
from fastopt.rules.sgd import sgd
from fastopt.rules.sgld import sgld
from fastopt.rules.signs import signsgd, signum
from fastopt.rules.sophia import sophia
from fastopt.rules.yogi import yogi
from fastopt.schema import Rule

# One line a family, as in the docs.
_ORDER = (
    (sgd, sgld, qhm, asgd, signsgd, signum, lion, sophia, rprop),  # no second moment
    (adagrad, rmsprop, adadelta, ftrl, madgrad),
    (adam, adamw, adamax, nadam, radam, adabelief, yogi, laprop, adopt, qhadam, ademamix, adan, mars),
)
CATALOGUE: dict[str, Rule] = {rule.name: rule for family in _ORDER for rule in family}
