"""The commands of `mindmoe data`: arguments in, one call out. Nothing heavy is imported before one runs."""

import argparse
import re
from pathlib import Path
from typing import Any

from mindmoe.cli.arguments import PREPARE_KEYS, add_command, add_group, add_settings, whole_number
from mindmoe.host.errors import UserError

_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def add_data(commands: Any) -> None:
    """Adds `data prepare` and `data inspect`."""
    data = add_group(commands, "data", "make and look at token data", "mindmoe data inspect data/quickstart")
    prepare = add_command(
        data,
        "prepare",
        run_prepare,
        "turn text into tokens",
        "mindmoe data prepare python-stdlib --out data/quickstart vocab_size=4096",
    )
    prepare.add_argument(
        "words",
        nargs="+",
        metavar="SOURCE",
        help="a file, a folder or python-stdlib; among them key=value sets a preparation setting",
    )
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add_settings(prepare, PREPARE_KEYS)
    inspect = add_command(
        data,
        "inspect",
        run_inspect,
        "show statistics and decoded samples",
        "mindmoe data inspect data/quickstart --samples 3",
    )
    inspect.add_argument("path", type=Path, metavar="PATH", help="a folder written by prepare")
    inspect.add_argument("--samples", type=whole_number, default=3, metavar="N", help="documents to decode (default 3)")


def run_prepare(args: argparse.Namespace) -> int:
    """`data prepare`: the words that are no settings are the sources."""
    from mindmoe.config.load import load_section
    from mindmoe.data.config import PrepareConfig
    from mindmoe.data.prepare import prepare

    sources = [word for word in args.words if not _OVERRIDE.match(word)]
    if not sources:
        raise UserError("no source is given", "name a file, a folder or python-stdlib")
    prepare(sources, args.out, load_section(PrepareConfig, [word for word in args.words if _OVERRIDE.match(word)]))
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """`data inspect`."""
    from mindmoe.data.inspect import inspect

    inspect(args.path, args.samples)
    return 0
