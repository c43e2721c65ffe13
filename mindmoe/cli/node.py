"""`mindmoe node`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, whole_number

EXAMPLE = "mindmoe node runs/gpt-oss-120b/launch --index 3"


def declare(parser: Parser) -> None:
    parser.add_argument("path", type=Path, metavar="FOLDER", help="the folder that launch wrote")
    parser.add_argument("--index", type=whole_number, required=True, metavar="N", help="which node this is, from 0")


def run(args: Args) -> int:
    from mindmoe.launch.node import run_node

    return run_node(args.path, args.index)
