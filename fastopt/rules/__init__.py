"""The catalogue: one family a file, in order of increasing complexity. Tests, benchmarks, docs and the CLI read it."""

from fastopt.rules.adabelief import adabelief
from fastopt.rules.adadelta import adadelta
from fastopt.rules.adafactor import adafactor
from fastopt.rules.adagrad import adagrad, adagrad_norm
from fastopt.rules.adam import adam, adamw
from fastopt.rules.adam_mini import adam_mini
from fastopt.rules.adamax import adamax
from fastopt.rules.adan import adan
from fastopt.rules.ademamix import ademamix
from fastopt.rules.adopt import adopt
from fastopt.rules.asgd import asgd
from fastopt.rules.dog import dog, ldog
from fastopt.rules.ftrl import ftrl
from fastopt.rules.laprop import laprop
from fastopt.rules.lion import lion
from fastopt.rules.madgrad import madgrad
from fastopt.rules.mars import mars
from fastopt.rules.muon import muon
from fastopt.rules.nadam import nadam
from fastopt.rules.novograd import novograd
from fastopt.rules.polyak import polyak, sps
from fastopt.rules.prodigy import dadapt_adam, prodigy
from fastopt.rules.qhm import qhadam, qhm
from fastopt.rules.radam import radam
from fastopt.rules.rmsprop import rmsprop
from fastopt.rules.rowwise_adagrad import rowwise_adagrad
from fastopt.rules.rprop import rprop
from fastopt.rules.schedule_free import schedule_free_adamw, schedule_free_sgd
from fastopt.rules.sgd import sgd
from fastopt.rules.sgld import sgld
from fastopt.rules.shampoo import shampoo
from fastopt.rules.signs import signsgd, signum
from fastopt.rules.soap import soap
from fastopt.rules.sophia import sophia
from fastopt.rules.trust import lamb, lars
from fastopt.rules.yogi import yogi
from fastopt.schema import Rule

# One line a family, as in the docs.
_ORDER = (
    (sgd, sgld, qhm, asgd, signsgd, signum, lion, sophia, rprop),  # no second moment
    (adagrad, rmsprop, adadelta, ftrl, madgrad),
    (adam, adamw, adamax, nadam, radam, adabelief, yogi, laprop, adopt, qhadam, ademamix, adan, mars),
    (lars, lamb, novograd, adam_mini, rowwise_adagrad, adafactor),  # totals of a parameter, its rows or columns
    (polyak, sps, adagrad_norm, dog, ldog, dadapt_adam, prodigy),  # totals of all parameters
    (schedule_free_sgd, schedule_free_adamw),  # averages in place of a schedule
    (muon, shampoo, soap),  # of matrices
)
CATALOGUE: dict[str, Rule] = {rule.name: rule for family in _ORDER for rule in family}
