"""`mindmoe data prepare` and `inspect`."""

import argparse
import re
from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_command, add_commands, whole_number

EXAMPLE = "mindmoe data inspect data/quickstart"

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
_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def declare(parser: Parser) -> None:
    commands = add_commands(parser)
    example = "mindmoe data prepare python-stdlib --out data/quickstart vocab_size=4096"
    making = add_command(commands, "prepare", prepare, "turn text into tokens", example)
    making.add_argument(
        "words",
        nargs="+",
        metavar="SOURCE",
        help="a file, a folder or python-stdlib; among them key=value sets a preparation setting",
    )
    making.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    settings = [f"  {f'{key}={default}':<22} {what}" for key, (default, what) in PREPARE_KEYS.items()]
    making.formatter_class = argparse.RawDescriptionHelpFormatter
    making.epilog = "\n".join(["settings and their defaults:", *settings, "", f"example: {example}"])
    example = "mindmoe data inspect data/quickstart --samples 3"
    looking = add_command(commands, "inspect", inspect, "show statistics and decoded samples", example)
    looking.add_argument("path", type=Path, metavar="PATH", help="a folder written by prepare")
    looking.add_argument("--samples", type=whole_number, default=3, metavar="N", help="documents to decode (default 3)")


def prepare(args: Args) -> int:
    """The words that are no settings are the sources."""
    from mindmoe.config.load import load_section
    from mindmoe.data.config import PrepareConfig
    from mindmoe.data.prepare import prepare
    from mindmoe.host.errors import UserError

    sources = [word for word in args.words if not _OVERRIDE.match(word)]
    if not sources:
        raise UserError("no source is given", "name a file, a folder or python-stdlib")
    prepare(sources, args.out, load_section(PrepareConfig, [word for word in args.words if _OVERRIDE.match(word)]))
    return 0


def inspect(args: Args) -> int:
    from mindmoe.data.inspect import inspect

    inspect(args.path, args.samples)
    return 0
