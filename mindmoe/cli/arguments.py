"""What the commands' files share: how a parser is added, arguments that several take, and the types of arguments."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindmoe.config.run import RunConfig

Args = argparse.Namespace
"""What a command was given."""

_OTHER_NAMES = {
    **dict.fromkeys(("fit", "pretrain", "run", "finetune"), "train"),
    **dict.fromkeys(("list",), "ls"),
    **dict.fromkeys(("rm", "clean", "delete"), "prune"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("print", "cat"), "show"),
    **dict.fromkeys(("sample", "infer", "chat"), "generate"),
    **dict.fromkeys(("evaluate", "validate", "test"), "eval"),
    **dict.fromkeys(("checkpoint", "checkpoints"), "ckpt"),
    **dict.fromkeys(("preprocess", "tokenize"), "prepare"),
    **dict.fromkeys(("convert",), "export"),
    **dict.fromkeys(("search", "autotune"), "plan"),
}
"""What else commands are called."""


class Parser(argparse.ArgumentParser):
    """A parser that declares its arguments once it is asked to parse, and answers an unknown command with the one
    that was meant."""

    declare: Callable[["Parser"], None] | None = None

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        if self.declare:
            declare, self.declare = self.declare, None
            declare(self)
        return super().parse_known_args(*args, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if isinstance(action, argparse._SubParsersAction) and value not in (choices or ()):
            from difflib import get_close_matches

            from mindmoe.host.files import shown

            names = list(choices or ())
            meant = _OTHER_NAMES.get(str(value).lower())
            close = [meant] if meant in names else get_close_matches(str(value).lower()[:60], names, 1, 0.5)
            hint = f"did you mean {self.prog} {close[0]}?" if close else f"use one of {', '.join(names)}"
            said = shown(str(value))
            raise argparse.ArgumentError(None, f"invalid choice: {said if said[0] == chr(39) else repr(said)}; {hint}")
        super()._check_value(action, value)


def add_commands(parser: Parser) -> Any:
    """Makes a parser one that only holds commands; returns what these are added to."""
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_parser(commands: Any, name: str, what: str) -> Parser:
    """Adds the parser of a command, which the help describes with `what`."""
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False)


def add_command(commands: Any, name: str, run: Callable[[Args], int], what: str, example: str) -> Parser:
    """Adds a command of a group; returns its parser."""
    parser = add_parser(commands, name, what)
    parser.epilog = f"example: {example}"
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_config(parser: Parser) -> None:
    """The arguments of a command that reads a config."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")


def add_run_folder(parser: Parser) -> None:
    """The argument of a command that reads the folder of a run."""
    parser.add_argument("path", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")


def add_takeover(parser: Parser) -> None:
    """The flag of a command that trains, for a folder that somebody trains in."""
    parser.add_argument("--takeover", action="store_true", help="where the run goes on, make it save and end first")


def resolved_config(args: Args) -> "RunConfig":
    """The config of a command, laid out on its cards where they are given."""
    from mindmoe.config.load import load_config
    from mindmoe.plan.auto import planned

    run = load_config(args.config, args.words)
    return planned(run, args.cards) if args.cards else run


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
