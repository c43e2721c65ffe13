"""`mindmoe import`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_config

EXAMPLE = "mindmoe import path/to/gpt-oss-20b configs/gpt-oss-20b.yaml name=tuned"


def declare(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="config.json and safetensors: floats or MXFP4")
    add_config(parser)


def run(args: Args) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.interop.commands import import_main

    return import_main(args.folder, load_config(args.config, args.words))
