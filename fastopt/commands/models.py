"""The models and the data of `fastopt train`: hand-written gradients in NumPy, nothing hidden in a framework.

A `Network` of sizes (64, 10) is softmax regression; (64, 128, 10) is a two-layer perceptron. Both are trained by
`fastopt.minimize(network.loss_and_grad, params, data=(x, y), ...)`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastopt.errors import ConfigError
from fastopt.progress import REMEDY

Params = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Network:
    """Fully connected layers and a softmax: `sizes` = (features, hidden..., classes).

    Parameters are a dict "w1" (sizes[0], sizes[1]), "b1" (sizes[1],), "w2", ... of one dtype, float32 or float64.
    The gradients and intermediate arrays are kept and overwritten by the next call, so that a step of the optimizer
    meets the same addresses every time; copy what you want to keep, and use one network per thread.
    """

    sizes: tuple[int, ...]
    activation: Literal["relu", "tanh"] = "relu"
    _buffers: dict[Any, NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or any(isinstance(n, bool) or n != int(n) or n < 1 for n in self.sizes):
            raise ConfigError(
                f"Network: `sizes` is {self.sizes!r}; expected (features, hidden..., classes), ints >= 1."
            )
        if self.activation not in ("relu", "tanh"):
            raise ConfigError(f"Network: `activation` is {self.activation!r}; expected 'relu' or 'tanh'.")

    @property
    def depth(self) -> int:
        return len(self.sizes) - 1

    def init(self, seed: int = 0, dtype: DTypeLike = np.float32) -> Params:
        """Normal weights: variance 2 / fan-in before a ReLU (He et al. 2015, arXiv:1502.01852), 1 / fan-in
        before a tanh, 0.01 / fan-in before the softmax, so that no run begins by unlearning noise. Biases 0."""
        rng = np.random.default_rng(seed)
        params: Params = {}
        for k in range(1, self.depth + 1):
            fan_in, fan_out = self.sizes[k - 1 : k + 1]
            gain = 0.01 if k == self.depth else 2.0 if self.activation == "relu" else 1.0
            params[f"w{k}"] = (rng.standard_normal((fan_in, fan_out)) * np.sqrt(gain / fan_in)).astype(dtype)
            params[f"b{k}"] = np.zeros(fan_out, dtype)
        return params

    def loss_and_grad(self, params: Mapping[str, Any], x: NDArray[Any], y: NDArray[Any]) -> tuple[float, Params]:
        """Mean cross-entropy of `x` (n, features) and labels `y` int (n,); its gradients, like `params`, reused."""
        with np.errstate(all="ignore"):  # a diverging run reports its loss instead
            outputs = self._forward(params, x)
            delta = outputs[-1]
            loss = _cross_entropy_to_probabilities(delta, y)
            delta[np.arange(len(y)), y] -= 1
            delta /= len(y)
            grads: Params = {}
            for k in range(self.depth, 0, -1):
                w, b = params[f"w{k}"], params[f"b{k}"]
                grads[f"w{k}"] = np.matmul(outputs[k - 1].T, delta, out=self._buffer(("gw", k), w.shape, w.dtype))
                grads[f"b{k}"] = np.sum(delta, axis=0, out=self._buffer(("gb", k), b.shape, b.dtype))
                if k > 1:
                    delta = np.matmul(delta, w.T, out=self._buffer(("delta", k), outputs[k - 1].shape, w.dtype))
                    self._through_activation(delta, outputs[k - 1])
        return loss, {name: grads[name] for name in params}

    def loss(self, params: Mapping[str, Any], x: NDArray[Any], y: NDArray[Any]) -> float:
        """Mean cross-entropy alone."""
        with np.errstate(all="ignore"):
            return _cross_entropy_to_probabilities(self._forward(params, x)[-1], y)

    def accuracy(self, params: Mapping[str, Any], x: NDArray[Any], y: NDArray[Any]) -> float:
        """The share of `x` whose largest output is its label."""
        with np.errstate(all="ignore"):
            return float(np.mean(np.argmax(self._forward(params, x)[-1], axis=1) == y))

    def _forward(self, params: Mapping[str, Any], x: NDArray[Any]) -> list[NDArray[Any]]:
        """[x, hidden outputs ..., logits]; all but x live in buffers."""
        outputs = [x]
        for k in range(1, self.depth + 1):
            w = params[f"w{k}"]
            z = np.matmul(outputs[-1], w, out=self._buffer(("out", k), (len(x), self.sizes[k]), w.dtype))
            z += params[f"b{k}"]
            if k < self.depth:
                np.maximum(z, 0, out=z) if self.activation == "relu" else np.tanh(z, out=z)
            outputs.append(z)
        return outputs

    def _through_activation(self, delta: NDArray[Any], output: NDArray[Any]) -> None:
        """delta *= the activation's slope, from its output."""
        if self.activation == "relu":
            delta *= output > 0
        else:
            slope = np.multiply(output, output, out=output)  # the layer above has used it already
            delta *= np.subtract(1, slope, out=slope)

    def _buffer(self, name: tuple[str, int], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        key = name, shape, dtype  # the last batch of an epoch may be shorter: it has its own buffers
        found = self._buffers.get(key)
        if found is None:
            found = self._buffers[key] = np.empty(shape, dtype)
        return found


def _cross_entropy_to_probabilities(logits: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean of -log softmax(logits)[y]; `logits` (n, classes) is overwritten with the softmax."""
    logits -= logits.max(axis=1, keepdims=True)  # exp cannot overflow, and the sum is at least 1
    picked = logits[np.arange(len(y)), y]
    total = np.exp(logits, out=logits).sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - picked, dtype=np.float64)
    logits /= total
    return float(loss)


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples, standardised: x float32 (n, features), y int64 (n,) in 0..classes-1."""

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    labels: tuple[Any, ...]

    @property
    def features(self) -> int:
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        return len(self.labels)


def split(name: str, x: NDArray[Any], y: NDArray[Any], held_out: float = 0.2) -> Dataset:
    """Hold out a fixed share of (x, y), standardise by the mean and deviation of the rest, number the labels."""
    labels, codes = np.unique(y, return_inverse=True)
    if len(labels) < 2:
        raise ConfigError(f"{name}: `y` has one label only ({labels[0]!r}); a classifier needs two or more.")
    # RandomState: its stream is frozen, so the split is the same under every NumPy
    order = np.random.RandomState(0).permutation(len(x))
    cut = round(len(x) * held_out)
    test, train = order[:cut], order[cut:]
    x = x.reshape(len(x), -1).astype(np.float64)
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    x = ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    codes = codes.reshape(-1).astype(np.int64)
    return Dataset(name, x[train], codes[train], x[test], codes[test], tuple(labels.tolist()))


def digits() -> Dataset:
    """The 1797 handwritten digits (8 x 8 pixels) inside scikit-learn: 1438 to train, 359 held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError(
            f"the handwritten digits come with scikit-learn, which is not installed: {REMEDY}, "
            "or give your own data with --data FILE.npz."
        ) from None
    x, y = load_digits(return_X_y=True)
    return split("digits", x, y)


def from_file(path: str | os.PathLike[str]) -> Dataset:
    """Examples from an .npz file: `X` numbers (n, ...) and `y` labels (n,), ints or strings. No pickles are read."""
    name = Path(path).name
    try:
        with open(path, "rb") as raw:  # np.load would leave a damaged file open
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ConfigError(f"{name} holds one array; expected an .npz file with keys X and y (np.savez).")
            missing = [key for key in ("X", "y") if key not in file.files]
            if missing:
                raise ConfigError(
                    f"{name} has no key {missing[0]!r}, only {file.files}; save it as np.savez(f, X=X, y=y)."
                )
            x, y = file["X"], file["y"]
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {os.fspath(path)}: {error.strerror or error}.") from error
    except Exception as error:  # a damaged zip raises many kinds
        raise ConfigError(f"{name} is not a readable .npz file of plain arrays: {error}") from error
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise ConfigError(
            f"{name}: `X` is {x.dtype} of shape {x.shape}; expected numbers of shape (examples, features)."
        )
    if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iubUS":
        raise ConfigError(
            f"{name}: `y` is {y.dtype} of shape {y.shape}; expected one int or string label per row of X, ({len(x)},)."
        )
    if len(x) < 10 or x[0].size == 0:
        raise ConfigError(f"{name}: `X` has shape {x.shape}; expected at least 10 examples and one feature.")
    if not np.isfinite(x).all():
        raise ConfigError(f"{name}: `X` holds NaN or infinite values; fill or drop them first.")
    return split(name, x, y)
