"""The work of `fastopt train`: every rule on the same models and data, against the same rule in plain NumPy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastopt.callbacks import Run
from fastopt.commands import picture
from fastopt.commands.bench import duration, interleave
from fastopt.commands.models import Dataset, Network
from fastopt.commands.peers import numpy_naive
from fastopt.minimize import Result, minimize
from fastopt.progress import need
from fastopt.schema import Rule

HIDDEN = {"softmax": (), "mlp": (128,)}
EPOCHS, BATCH_SIZE, ENOUGH = 30, 32, 0.95

# For softmax and mlp. With these, eight seeds out of eight reach 0.964 to 0.981 on the digits, at the defaults above. A
# rule that is not here runs with its own default.
LEARNING_RATES = {
    "sgd": (0.1, 0.1),
    "adagrad": (0.05, 0.05),
    "rmsprop": (2e-3, 2e-3),
    "adam": (5e-3, 3e-3),
    "adamw": (5e-3, 3e-3),
    "lion": (1e-3, 3e-4),
    "sgld": (0.1, 0.1),
}
# The loss is a mean over 1,437 digits, whose posterior is that of temperature 1 / 1,437; this is colder.
OTHERS: dict[str, dict[str, Any]] = {"sgld": {"temperature": 1e-6}}


@dataclass(frozen=True)
class Row:
    """One rule on one model. Times are medians, in seconds per step; losses are means over an epoch's batches."""

    model: str
    rule: str
    lr: float
    accuracy: float
    step: float
    faster: float
    losses: tuple[float, ...]
    reason: str


def learning_rate(rule: Rule, model: str) -> float:
    default = rule.hyper.get("lr", 1e-3)
    rates = dict(zip(HIDDEN, LEARNING_RATES.get(rule.name, ()), strict=False))
    return rates.get(model, 1e-3 if default is ... else default)


def contest(
    data: Dataset,
    models: Iterable[str],
    rules: Sequence[Rule],
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    lr: float | None = None,
    seed: int = 0,
    watch: Callable[[str, Rule, Run], Any] = lambda model, rule, run: None,
) -> list[Row]:
    """Train and time every rule on every model, from the same start; `watch` hears of every epoch."""
    rows = []
    for model in models:
        network = Network((data.features, *HIDDEN[model], data.classes))
        for rule in rules:
            params, rate = network.init(seed), learning_rate(rule, model) if lr is None else lr
            result = minimize(
                network.loss_and_grad,
                params,
                (data.x, data.y),
                rule=rule,
                lr=rate,
                **OTHERS.get(rule.name, {}),
                batch_size=min(batch_size, len(data.x)),
                epochs=epochs,
                seed=seed,
                callbacks=[partial(_report, watch, model, rule)],
            )
            if result.reason == "interrupted":
                raise KeyboardInterrupt
            rows.append(_row(model, data, network, result, rate, batch_size))
    return rows


def _report(watch: Callable[[str, Rule, Run], Any], model: str, rule: Rule, run: Run) -> None:
    watch(model, rule, run)  # what it returns is no reason to stop


def _row(model: str, data: Dataset, network: Network, result: Result, lr: float, batch_size: int) -> Row:
    rule, params = result.optimizer.rule, result.params
    _, grads = network.loss_and_grad(params, data.x[:batch_size], data.y[:batch_size])
    seconds, faster = race(rule, params, grads, lr=lr, **OTHERS.get(rule.name, {}))
    return Row(
        model=model,
        rule=rule.name,
        lr=lr,
        accuracy=network.accuracy(params, data.x_test, data.y_test),
        step=seconds,
        faster=faster,
        losses=tuple(result.history["loss"]),
        reason=result.reason,
    )


def race(rule: Rule, params: dict[str, Any], grads: dict[str, Any], **hyper: Any) -> tuple[float, float]:
    """Seconds of `optimizer.step(grads)`, and how many times longer the formula takes on whole NumPy arrays.

    On copies of `params`, in turns, medians over the turns. The NumPy side keeps its state in the loop and binds the
    new arrays to the old names: the plain way to write it.
    """
    optimizer = rule({name: p.copy() for name, p in params.items()}, **hyper)
    plain = [numpy_naive(rule, p.copy(), grads[name], tuple(optimizer.state), **hyper) for name, p in params.items()]

    def numpy_step() -> None:
        for step in plain:
            step()

    with np.errstate(all="ignore"):  # a diverged rule is timed all the same
        samples = interleave(
            {"fastopt": lambda: optimizer.step(grads), "numpy": numpy_step}, repeat=41, visit=5e-4, settle=5e-4
        )
    return samples["fastopt"].median, samples["fastopt"].times_faster_than(samples["numpy"])


def failures(rows: Iterable[Row], enough: float = ENOUGH) -> list[Row]:
    return [row for row in rows if not row.accuracy >= enough]


def table(rows: Iterable[Row], data: Dataset) -> Any:
    """The rows as a rich table."""
    rich = need("rich.table", "rich", "the table")
    shown = rich.Table(title=f"{data.name}: {len(data.x)} examples to train, {len(data.x_test)} held out")
    for name in ("model", "rule"):
        shown.add_column(name)
    for name in ("lr", "training loss", "held-out accuracy", "step", "faster than NumPy"):
        shown.add_column(name, justify="right")
    before = None
    for row in rows:
        if before not in (None, row.model):
            shown.add_section()
        before = row.model
        shown.add_row(
            row.model,
            row.rule,
            f"{row.lr:g}",
            f"{row.losses[-1]:.2g}" if row.losses else "",  # the curve's last point
            f"{row.accuracy:.3f}",
            duration(row.step),
            f"{row.faster:.1f}x",
        )
    return shown


def plot(rows: Sequence[Row], path: str) -> None:
    """Training loss by epoch, one panel a model."""
    models = list(dict.fromkeys(row.model for row in rows))
    figure = picture.figure(5 * len(models), 4)
    axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axis, model in zip(axes, models, strict=True):
        for row in rows:
            if row.model == model:
                marks = ".-" if len(row.losses) < 20 else "-"  # a line of one point would not show
                axis.plot(range(1, len(row.losses) + 1), row.losses, marks, label=f"{row.rule}, lr {row.lr:g}")
        axis.set(title=model, xlabel="epoch", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    picture.plain_numbers(axes[0])  # of all panels: they share the side
    axes[0].set_ylabel("training loss, mean over the epoch's batches")
    picture.save(figure, path)
