"""The work of `fastopt train`: every rule on the same models and data, against the same rule in plain NumPy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from fastopt.callbacks import Run
from fastopt.commands import picture, rates
from fastopt.commands.bench import duration, interleave
from fastopt.commands.models import Dataset, Network
from fastopt.commands.peers import numpy_naive
from fastopt.group import Group
from fastopt.minimize import Result, minimize
from fastopt.progress import need
from fastopt.schema import Rule

HIDDEN = {"softmax": (), "mlp": (128,)}
EPOCHS, BATCH_SIZE, ENOUGH = 30, 32, 0.95


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


def contest(
    data: Dataset,
    models: Iterable[str],
    rules: Sequence[Rule],
    *,
    epochs: int = EPOCHS,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    watch: Callable[[str, Rule, Run], Any] = lambda model, rule, run: None,
) -> list[Row]:
    """Train and time every rule on every model, from the same start; `watch` hears of every epoch.

    batch_size, lr: in place of what `rates` says.
    """
    rows = []
    for model in models:
        network = Network((data.features, *HIDDEN[model], data.classes))
        for rule in rules:
            params, options = network.init(seed), rates.options(rule, model, lr)
            size = batch_size or (None if rates.whole(rule) else BATCH_SIZE)
            result = minimize(
                network.loss_and_grad,
                params,
                (data.x, data.y),
                rule=rule,
                batch_size=size and min(size, len(data.x)),
                epochs=epochs,
                seed=seed,
                callbacks=[partial(_report, watch, model, rule)],
                **options,
            )
            if result.reason == "interrupted":
                raise KeyboardInterrupt
            rows.append(_row(model, data, network, result, options, size or len(data.x)))
    return rows


def _report(watch: Callable[[str, Rule, Run], Any], model: str, rule: Rule, run: Run) -> None:
    watch(model, rule, run)  # what it returns is no reason to stop


def _row(model: str, data: Dataset, network: Network, result: Result, options: dict[str, Any], batch_size: int) -> Row:
    rule, params = result.optimizer.rule, result.params
    _, grads = network.loss_and_grad(params, data.x[:batch_size], data.y[:batch_size])
    if "loss" in rule.schema:  # `minimize` gave it at every step
        options = {**options, "loss": result.history["loss"][-1] if result.history["loss"] else 0.0}
    seconds, faster = race(rule, params, grads, **options)
    return Row(
        model=model,
        rule=rule.name,
        lr=options["lr"],
        accuracy=network.accuracy(params, data.x_test, data.y_test),
        step=seconds,
        faster=faster,
        losses=tuple(result.history["loss"]),
        reason=result.reason,
    )


def race(
    rule: Rule, params: dict[str, Any], grads: dict[str, Any], groups: Sequence[Group] = (), **hyper: Any
) -> tuple[float, float]:
    """Seconds of `optimizer.step(grads)`, and how many times longer the formula takes on whole NumPy arrays.

    On copies of `params`, in turns, medians over the turns. The NumPy side keeps its state in the loop and binds the
    new arrays to the old names: the plain way to write it.
    """
    optimizer = rule({name: p.copy() for name, p in params.items()}, groups=groups, **hyper)
    plain = []
    for name, p in params.items():
        mine, options = next(((g.rule or rule, g.hyper) for g in groups if fnmatchcase(name, g.pattern)), (rule, hyper))
        state = tuple(s for s, tree in optimizer.state.items() if tree[name] is not None and s in mine.state)
        plain.append(numpy_naive(mine, p.copy(), grads[name], state, **options))

    def numpy_step() -> None:
        for step in plain:
            step()

    with np.errstate(all="ignore"):  # a diverged rule is timed all the same
        samples = interleave(
            {"fastopt": lambda: optimizer.step(grads), "numpy": numpy_step},
            repeat=41,
            visit=5e-4,
            settle=5e-4,
            pause=0.0,  # these arrays are small: no threads of a predecessor go on spinning
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
    rules = len({row.rule for row in rows})
    beside = rules > 8  # a long legend would hide the curves, or leave them no room
    figure = picture.figure((8 if beside else 5) * len(models), max(4, 0.2 * rules + 1))
    axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for axis, model in zip(axes, models, strict=True):
        for row in rows:
            if row.model == model:
                marks = ".-" if len(row.losses) < 20 else "-"  # a line of one point would not show
                axis.plot(range(1, len(row.losses) + 1), row.losses, marks, label=f"{row.rule}, lr {row.lr:g}")
        axis.set(title=model, xlabel="epoch", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}))
    picture.plain_numbers(axes[0])  # of all panels: they share the side
    axes[0].set_ylabel("training loss, mean over the epoch's batches")
    picture.save(figure, path)
