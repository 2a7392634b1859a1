"""Readings as rules like any other: their names in errors, files and commands; they are loaded when asked for."""

import numpy as np
import pytest
from conftest import run_python

import fastopt as fo
from fastopt.cli import main
from fastopt.rules import CATALOGUE
from fastopt.rules.readings import READINGS


def test_names_are_unique_and_lead_back_to_the_rule():
    assert not {*CATALOGUE} & {*READINGS}
    for name, rule in READINGS.items():
        library, _, plain = name.partition(".")
        assert rule.name == name and getattr(getattr(fo, library), plain) is rule
    assert {"keras.adam", "keras.ftrl", "optax.rmsprop", "optax.nadamw"} <= {*READINGS}


def test_the_name_stands_in_errors_states_and_caches():
    opt = fo.keras.rmsprop(np.ones(3, np.float32))
    opt.step(np.ones(3, np.float32))
    assert opt.state_dict()["rule"] == "keras.rmsprop" and "keras.rmsprop(lr=" not in repr(fo.rmsprop(np.ones(2)))
    with pytest.raises(fo.ConfigError, match=r"unknown hyperparameter `rho` for `keras.rmsprop`.*Did you mean `alpha`"):
        fo.keras.rmsprop(np.ones(3), rho=0.9)
    with pytest.raises(fo.CheckpointError, match=r"is of rule `keras.rmsprop`; this optimizer runs `rmsprop`"):
        fo.rmsprop(np.ones(3, np.float32)).load_state_dict(opt.state_dict())
    with pytest.raises(fo.ConfigError, match=r"`optax.adam` needs a value for `lr`"):
        fo.optax.adam(np.ones(3))


def test_the_command_knows_them(capsys):
    assert main(["source", "keras.rmsprop", "--set", "centered=true"]) == 0
    assert capsys.readouterr().out == fo.source(fo.keras.rmsprop, centered=True) + "\n"
    assert main(["source", "keras.rmsprob"]) == 2
    assert "Did you mean `keras.rmsprop`?" in capsys.readouterr().err


def test_importing_fastopt_does_not_load_them():
    code = "import sys, fastopt as fo; assert 'fastopt.rules.keras' not in sys.modules; print(fo.keras.adam.name)"
    assert run_python(code).stdout == "keras.adam\n"
    with pytest.raises(AttributeError, match="has no attribute 'tensorflow'"):
        fo.tensorflow  # noqa: B018


@pytest.mark.parametrize("name", ["two\nlines", 3])
def test_a_name_that_would_not_fit_a_comment_is_refused(name):
    with pytest.raises(fo.RuleError, match="expected a printable text"):
        fo.rule("def f(p, g):\n    return p - g", name=name)
