"""Tests that need a CUDA device; without one they are skipped, and say what is missing."""

from pathlib import Path

import pytest

from fastopt.errors import DeviceError
from fastopt.targets import driver


def pytest_collection_modifyitems(items):
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    try:
        driver.get()
        missing = ""
    except DeviceError as error:
        missing = str(error)
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))
