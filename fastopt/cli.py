"""`fastopt train | bench | info | source | inspect`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

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

    from fastopt.commands import tasks

    tasks.add_arguments(command("train", tasks.train, "Train on digits with every rule, on words or on ratings."))

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


if __name__ == "__main__":
    sys.exit(main())
