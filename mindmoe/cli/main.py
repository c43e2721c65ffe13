"""The command line: finds the file of the command that was given, which declares its arguments and makes one call.

Only that file is imported, and nothing heavy before the command runs, so that `mindmoe --help` is instant. `key=value`
overrides may stand anywhere after the command; flags exist only for paths and for what is no config key.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from keyword import iskeyword
from typing import Any

from mindmoe.cli.answers import answered
from mindmoe.cli.arguments import Parser, add_commands, add_parser

COMMANDS = {
    "train": "train a config in this process",
    "launch": "train a config on several cards of this machine, or prepare it for many machines",
    "node": "run one node of a launch that was prepared for many machines",
    "ablate": "compare configs over paired seeds and give a verdict",
    "plan": "search the best layout of a config on a cluster, without one",
    "dryrun": "build and run one rank of a cluster on this machine, or check that all ranks agree",
    "equiv": "show that layouts compute what one process computes",
    "config": "show, check or describe configs",
    "data": "make and look at token data",
    "eval": "measure loss, perplexity and bits per byte of a run",
    "generate": "continue a prompt with a run's newest checkpoint",
    "report": "write a run's story as one HTML file",
    "ckpt": "look after checkpoints",
    "import": "begin a run with the weights of a Hugging Face GptOss folder",
    "export": "write a run's weights as a Hugging Face GptOss folder",
    "doctor": "check this machine and say what is missing, or measure it",
}
"""What each command does; the file of its name in this folder has an EXAMPLE, `declare` and, if it is one, `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 for a mistake of the user, 130 when interrupted."""
    return answered(lambda: _run(argv))


def build_parser() -> Parser:
    """The parser of all commands; each declares its arguments when it is the one that was given."""
    parser = Parser(
        prog="mindmoe",
        description="Pretrain mixture-of-experts language models on MindSpore.",
        allow_abbrev=False,
        epilog="example: mindmoe launch configs/quickstart.yaml --cards 2",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(parser=parser)
    commands = add_commands(parser)
    for name, what in COMMANDS.items():
        add_parser(commands, name, what).declare = partial(_declare, name)
    return parser


def _declare(name: str, parser: Parser) -> None:
    command = import_module(f"mindmoe.cli.{name}{'_' if iskeyword(name) else ''}")
    parser.epilog = f"example: {command.EXAMPLE}"
    parser.set_defaults(parser=parser, run=getattr(command, "run", None))
    command.declare(parser)


def _run(argv: Sequence[str] | None) -> int:
    args, late = build_parser().parse_known_args(argv)
    # argparse fills a positional list from one stretch of arguments only: words after an option come back here.
    if late and (not hasattr(args, "words") or any(word.startswith("-") for word in late)):
        args.parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        args.words = [*args.words, *late]
    return args.run(args)


class _Version(argparse.Action):
    """`--version`, looked up only when asked for: importlib.metadata costs as much as the rest of the CLI."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("mindmoe")
        except PackageNotFoundError:
            number = "(not installed, run from a source tree)"
        print(f"mindmoe {number}")
        parser.exit()
