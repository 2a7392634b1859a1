"""The same rules in other libraries, stepped on copies of one array: what test_libraries.py compares with."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", os.environ.get("FASTOPT_CACHE_DIR", "."))  # else Keras writes into the user's home


def need(name: str) -> Any:
    """The module; without it the test is skipped with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own, while it is imported
            return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name.split('.')[0]} is not installed (pip install 'fastopt[oracles]'): {error}")


def timm(name: str) -> Any:
    """A module of `timm.optim`, which needs torch alone; `import timm` would need torchvision and more."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    if "timm_optim" not in sys.modules:
        package = ModuleType("timm_optim")
        package.__path__ = [str(Path(found.origin).parent / "optim")]
        sys.modules["timm_optim"] = package
    return importlib.import_module(f"timm_optim.{name}")


class Torch:
    """An optimizer class of torch's kind: torch.optim, timm, pytorch_optimizer."""

    def __init__(self, make: Callable[..., Any], start: np.ndarray, **hyper: Any):
        self.torch = need("torch")
        self.p = self.torch.nn.Parameter(self.torch.tensor(start))
        self.optimizer = make([self.p], **hyper)

    def step(self, g: np.ndarray, **extra: Any) -> np.ndarray:
        self.p.grad = self.torch.tensor(g)
        usual = self.torch.get_default_dtype()
        self.torch.set_default_dtype(self.torch.float64)  # torch keeps scalars, such as NAdam's product, in the default
        try:
            self.optimizer.step(**{k: [self.torch.tensor(x)] for k, x in extra.items()})
        finally:
            self.torch.set_default_dtype(usual)
        return self.p.detach().numpy()

    def set(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr


class Optax:
    """A gradient transformation, in float64."""

    def __init__(self, make: Callable[..., Any], start: np.ndarray, **hyper: Any):
        self.jax, self.optax = need("jax"), need("optax")
        with self.wide():
            self.transform = make(**hyper)
            self.p = self.jax.numpy.asarray(start)
            self.state = self.transform.init(self.p)

    def wide(self) -> contextlib.AbstractContextManager:
        return self.jax.enable_x64(True)

    def step(self, g: np.ndarray) -> np.ndarray:
        with self.wide():
            change, self.state = self.transform.update(self.jax.numpy.asarray(g), self.state, self.p)
            self.p = self.optax.apply_updates(self.p, change)
            return np.asarray(self.p)


class Keras:
    """A Keras optimizer on its torch backend."""

    def __init__(self, make: Callable[..., Any], start: np.ndarray, **hyper: Any):
        self.p = need("keras").Variable(start, dtype="float64")
        self.optimizer = make(**hyper)
        self.optimizer.build([self.p])

    def step(self, g: np.ndarray) -> np.ndarray:
        self.optimizer.apply([need("torch").tensor(g)], [self.p])
        return self.p.value.detach().numpy()
