"""What the subcommands' parsers share: how a command is added, and the types of its arguments."""

import argparse
import re
from collections.abc import Callable
from typing import Any

# The settings of `data prepare`. PrepareConfig, which is too slow to import for a help text, is what is obeyed; a test
# holds names and defaults against it.
PREPARE_KEYS = {  # name: (default as it would be written, meaning)
    "tokenizer": ("train", "train one, or a path: SentencePiece .model, tokenizer.json or tiktoken file"),
    "vocab_size": ("4096", "pieces of a tokenizer that is trained"),
    "tokenizer_bytes": ("16MiB", "text that it is trained on, a sample from all inputs"),
    "valid_fraction": ("0.02", "share of the documents held out, drawn by their text and the seed; 0 for none"),
    "text_key": ("text", "key or column of the text in JSON lines and Parquet"),
    "workers": ("0", "processes; 0 uses every core"),
    "max_bad": ("100", "records that may be refused before the job ends; lost parts of files do not count"),
    "max_documents": ("0", "documents after which to stop; 0 sets no limit"),
    "append_eod": ("true", "whether each document ends with the end-of-document token"),
    "seed": ("0", "of the split and of the tokenizer's sample"),
    "format": ("auto", "auto goes by suffix; txt, jsonl or parquet reads every file as that"),
}
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


class Parser(argparse.ArgumentParser):
    """A parser that answers an unknown command with the one that was meant."""

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


def add_subparser(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """A parser with its help."""
    return commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False, epilog=f"example: {example}"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that reads a config."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")


def add_settings(parser: argparse.ArgumentParser, settings: dict[str, tuple[str, str]]) -> None:
    """Lists the settings of a command, name to default and meaning, below the options in its help."""
    lines = [f"  {f'{key}={default}':<22} {what}" for key, (default, what) in settings.items()]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["settings and their defaults:", *lines, "", parser.epilog or ""])


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


def add_takeover(parser: argparse.ArgumentParser) -> None:
    """The flag of a command that trains, for a folder that somebody trains in."""
    parser.add_argument("--takeover", action="store_true", help="where the run goes on, make it save and end first")


class Version(argparse.Action):
    """`--version`, looked up only when asked for: importlib.metadata costs as much as the rest of the CLI."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("mindmoe")
        except PackageNotFoundError:
            number = "(not installed, run from a source tree)"
        print(f"mindmoe {number}")
        parser.exit()
