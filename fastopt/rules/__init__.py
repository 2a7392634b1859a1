"""The catalogue: one family a file, in order of increasing complexity. Tests, benchmarks, docs and the CLI read it."""

from fastopt.rules.adagrad import adagrad
from fastopt.rules.adam import adam, adamw
from fastopt.rules.lion import lion
from fastopt.rules.rmsprop import rmsprop
from fastopt.rules.schedule_free import schedule_free_adamw, schedule_free_sgd
from fastopt.rules.sgd import sgd
from fastopt.rules.sgld import sgld
from fastopt.schema import Rule

CATALOGUE: dict[str, Rule] = {
    r.name: r for r in (sgd, adagrad, rmsprop, adam, adamw, lion, sgld, schedule_free_sgd, schedule_free_adamw)
}
