"""`fastopt train | bench | info | source | inspect`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastopt import __version__
from fastopt.errors import ConfigError, FastoptError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status 0; 1 if a rule misses its accuracy or a file is damaged; 2 for a wrong call;
    130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args) or 0
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter has gone
        return status
    except FastoptError as error:
        print(f"fastopt {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `fastopt source adam | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastopt", description="Optimizers compiled from their formulas.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | bench | info | source | inspect")

    def command(name: str, run: Callable[..., int | None], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    p = command("train", train, "Train a classifier with every rule, and compare each with plain NumPy.")
    p.add_argument("--rule", nargs="+", metavar="NAME", help="rules of the catalogue (default: all)")
    p.add_argument("--model", choices=("softmax", "mlp", "both"), default="both", help="default: both")
    p.add_argument("--epochs", type=_at_least(1), metavar="N", help="passes over the data")
    p.add_argument("--batch-size", type=_at_least(1), metavar="N", help="examples per step")
    p.add_argument("--lr", type=_positive, metavar="LR", help="for every rule (default: each its own)")
    p.add_argument("--data", metavar="FILE.npz", help="your own X (n, ...) and y (n,) (default: handwritten digits)")
    p.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="of the initial weights and the order of examples"
    )
    p.add_argument("--plot", metavar="FILE.png", help="write the loss curves")

    from fastopt.commands.bench import add_arguments

    add_arguments(command("bench", bench, "Measure the rules against NumPy and torch."))
    command("info", info, "Versions, CPU, threads, cache folder, CUDA devices.")

    p = command("source", source, "Print the kernel generated for a rule.")
    p.add_argument("rule", metavar="RULE")
    p.add_argument("--target", default="cpu", metavar="TARGET", help="default: cpu")
    p.add_argument("--set", nargs="+", default=[], metavar="SWITCH=true", help="switches, such as amsgrad=true")

    p = command("inspect", inspect, "What a checkpoint holds: sizes, hyperparameters; its checksums are compared.")
    p.add_argument("file", metavar="FILE")
    return parser


def train(args: argparse.Namespace) -> int:
    from fastopt.commands import picture, rule_named
    from fastopt.commands import train as contest
    from fastopt.commands.models import digits, from_file
    from fastopt.progress import need
    from fastopt.rules import CATALOGUE

    rules = [rule_named(name) for name in dict.fromkeys(args.rule or CATALOGUE)]
    models = tuple(contest.HIDDEN) if args.model == "both" else (args.model,)
    need("rich", "rich", "fastopt train")
    if args.plot:
        picture.check(args.plot)
    data = digits() if args.data is None else from_file(args.data)
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


def bench(args: argparse.Namespace) -> int:
    from fastopt.commands.bench import main as run

    return run(args)


def info(args: argparse.Namespace) -> None:
    from fastopt.commands import info as report

    facts = report.facts()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def source(args: argparse.Namespace) -> None:
    from fastopt import source as text
    from fastopt.commands import rule_named

    print(text(rule_named(args.rule), args.target, **dict(map(_switch, args.set))))


def inspect(args: argparse.Namespace) -> int:
    from fastopt.commands import inspect as report

    return report.show(args.file)


def _switch(text: str) -> tuple[str, bool]:
    name, _, value = text.partition("=")
    try:
        truth = {"true": True, "false": False}[value.lower()] if value.isalpha() else bool(float(value))
    except (KeyError, ValueError):
        raise ConfigError(
            f"--set: got {text!r}; expected SWITCH=true, SWITCH=false or a number, as momentum=0.9."
        ) from None
    return name, truth


def _at_least(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number >= {low}")
        return value

    return read


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number > 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
