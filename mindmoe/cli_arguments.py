"""What the subcommands' parsers share: how a command is added, and the types of its arguments."""

import argparse
import re
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str, example: str
) -> argparse.ArgumentParser:
    """Adds a subcommand; returns its parser."""
    parser = add_subparser(commands, name, what, example)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_group(commands: Any, name: str, what: str, example: str) -> Any:
    """Adds a subcommand that only holds others; returns what these are added to."""
    return add_subparser(commands, name, what, example).add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )


def add_subparser(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """A parser with its help."""
    return commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False, epilog=f"example: {example}"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that reads a config."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")


def positive_number(text: str) -> int:
    """A whole number, 1 or more."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def whole_number(text: str) -> int:
    """A whole number, 0 or more."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)


def temperature_number(text: str) -> float:
    """A number, 0 or more."""
    if not re.fullmatch(r"[0-9]{0,3}\.?[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, 0 or more")
    return float(text)
