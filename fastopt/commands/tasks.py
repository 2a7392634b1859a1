"""`fastopt train`: the tasks and their options. `digits` compares every rule; `words` and `ratings` are sparse."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastopt.errors import ConfigError

# options that only some tasks have; argparse gives None for the others
_OF = {
    "model": ("digits",),
    "text": ("words",),
    "words": ("words",),
    "window": ("words",),
    "negatives": ("words",),
    "min_count": ("words",),
    "dim": ("words", "ratings"),
    "data": ("digits", "ratings"),
}


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--task",
        choices=("digits", "words", "ratings"),
        default="digits",
        help="digits: every rule classifies, beside plain NumPy (default); words: embeddings of the words of a text; "
        "ratings: matrix factorisation",
    )
    p.add_argument(
        "--rule", nargs="+", metavar="NAME", help="rules of the catalogue (default: all; words, ratings: adagrad)"
    )
    p.add_argument("--model", choices=("softmax", "mlp", "both"), help="of digits (default: both)")
    p.add_argument("--epochs", type=at_least(1), metavar="N", help="passes over the data")
    p.add_argument("--batch-size", type=at_least(1), metavar="N", help="examples, positions or ratings per step")
    p.add_argument("--lr", type=positive, metavar="LR", help="for every rule (default: each its own)")
    p.add_argument(
        "--data",
        metavar="FILE",
        help="digits: your own X (n, ...) and y (n,), FILE.npz; ratings: user,item,rating, FILE.csv "
        "(default: handwritten digits; synthetic ratings)",
    )
    p.add_argument("--text", metavar="FILE", help="of words (default: the standard library's own documentation)")
    p.add_argument("--words", nargs="+", metavar="WORD", help="whose nearest words are shown")
    p.add_argument("--dim", type=at_least(1), metavar="N", help="numbers for a word, user or item")
    p.add_argument(
        "--window", type=at_least(1), metavar="N", help="words on each side that belong together (default: 5)"
    )
    p.add_argument("--negatives", type=at_least(1), metavar="N", help="words drawn for each position (default: 5)")
    p.add_argument("--min-count", type=at_least(1), metavar="N", help="rarer words are left out (default: 5)")
    p.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of the initial weights and the order of examples"
    )
    p.add_argument("--plot", metavar="FILE.png", help="write the loss curves; words: a map of them")


def train(args: argparse.Namespace) -> int:
    for name, tasks in _OF.items():
        if getattr(args, name) is not None and args.task not in tasks:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} belongs to --task {' or '.join(tasks)}; this is --task {args.task}.")
    return {"digits": digits, "words": words, "ratings": ratings}[args.task](args)


def digits(args: argparse.Namespace) -> int:
    from fastopt.commands import picture, rule_named
    from fastopt.commands import train as contest
    from fastopt.commands.models import digits as handwritten
    from fastopt.commands.models import from_file
    from fastopt.progress import need
    from fastopt.rules import CATALOGUE

    rules = [rule_named(name) for name in dict.fromkeys(args.rule or CATALOGUE)]
    models = tuple(contest.HIDDEN) if args.model in (None, "both") else (args.model,)
    need("rich", "rich", "fastopt train")
    if args.plot:
        picture.check(args.plot)
    data = handwritten() if args.data is None else from_file(args.data)
    epochs = args.epochs or contest.EPOCHS
    with _progress(len(models) * len(rules) * epochs) as watch:
        rows = contest.contest(
            data,
            models,
            rules,
            epochs=epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            seed=args.seed,
            watch=watch,
        )
    from rich.console import Console

    Console().print(contest.table(rows, data))
    if args.plot:
        contest.plot(rows, args.plot)
        print(f"loss curves: {args.plot}")
    for row in rows:
        if row.reason != "epochs":
            print(f"{row.model}, {row.rule}: stopped early, {row.reason}; try a lower --lr than {row.lr:g}")
    missed = contest.failures(rows)
    defaults = args.data is args.lr is args.epochs is args.batch_size is None
    if missed and defaults:
        names = ", ".join(f"{row.rule} on {row.model} ({row.accuracy:.3f})" for row in missed)
        print(f"fastopt train: below {contest.ENOUGH} held-out accuracy: {names}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[..., None]]:
    """A live bar over all epochs of all runs; gives what a run reports to."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}")) as display:
        task = display.add_task("epochs", total=total, note="")

        def watch(model: str, rule: Any, run: Any) -> None:
            display.update(task, advance=1, note=f"{model} {rule.name}: loss {run.loss:.4f}")

        yield watch
        display.update(task, completed=total, note="")


def words(args: argparse.Namespace) -> int:
    from fastopt.commands import corpus, picture
    from fastopt.commands import words as job
    from fastopt.progress import need

    # threads that wait between two short kernels must not keep a busy core from the others: that cost 8 ms a kernel
    # where it was measured, against 10 us. The library reads it once, when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    need("rich", "rich", "fastopt train")
    if args.plot:
        picture.check(args.plot)
        need("sklearn", "scikit-learn", "--plot")
    rule, names = _one_rule(args), ("epochs", "batch_size", "dim", "window", "negatives", "seed")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    settings = job.Settings(**given, lr=_rate(args, rule, job.LR))
    least = {} if args.min_count is None else {"min_count": args.min_count}
    text = corpus.standard_library(**least) if args.text is None else corpus.from_file(args.text, **least)
    asked = job.asked(text, args.words)
    print(f"{text.name}: {text.read:,} words, {len(text.words):,} different ones that occur often enough")
    with _bar("tokens", settings.epochs * text.read) as show:

        def watch(state: Any) -> None:
            rate = f"{state.tokens / state.seconds:,.0f} tokens/s"
            show(state.tokens, f"epoch {state.epoch}: loss {state.loss:.4f}, {rate}")

        result = job.train(text, settings, rule, watch)
    from rich.console import Console

    Console().print(job.table(result, asked))
    state = result.state
    print(
        f"{rule.name}: {state.tokens:,} tokens in {state.seconds:.1f} s, {state.tokens / state.seconds:,.0f} tokens/s"
    )
    if args.plot:
        job.plot(result, asked, args.plot)
        print(f"picture: {args.plot}")
    return 0


def ratings(args: argparse.Namespace) -> int:
    from fastopt.commands import picture
    from fastopt.commands import ratings as job
    from fastopt.progress import need

    need("rich", "rich", "fastopt train")
    if args.plot:
        picture.check(args.plot)
    rule, names = _one_rule(args), ("epochs", "batch_size", "dim", "seed")
    options = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    data = job.synthetic() if args.data is None else job.from_file(args.data)
    with _bar("epochs", options.get("epochs", job.EPOCHS)) as show:
        result = job.train(
            data,
            rule=rule,
            lr=_rate(args, rule, job.LR),
            watch=lambda epoch, training, held_out: show(epoch, f"error {training:.4f}, held out {held_out:.4f}"),
            **options,
        )
    from rich.console import Console

    Console().print(job.table(result))
    if args.plot:
        job.plot(result, args.plot)
        print(f"curves: {args.plot}")
    return 0


def _one_rule(args: argparse.Namespace) -> Any:
    from fastopt.commands import rule_named

    names = args.rule or ["adagrad"]
    if len(names) > 1:
        raise ConfigError(f"--rule: got {', '.join(names)}; --task {args.task} trains with one rule.")
    return rule_named(names[0])


def _rate(args: argparse.Namespace, rule: Any, adagrad: float) -> float:
    """The lr: what is given, or the task's for adagrad, or the rule's on digits."""
    from fastopt.commands import rates

    if args.lr is not None:
        return args.lr
    return adagrad if rule.name == "adagrad" else rates.options(rule, "mlp")["lr"]


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A live bar; gives what is told how much is done, and a note."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}")) as display:
        task = display.add_task(unit, total=total, note="")
        yield lambda done, note: display.update(task, completed=done, note=note)


def at_least(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number >= {low}")
        return value

    return read


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number > 0")
    return value
