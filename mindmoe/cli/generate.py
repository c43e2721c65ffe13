"""`mindmoe generate`."""

import re
from argparse import ArgumentTypeError

from mindmoe.cli.arguments import Args, Parser, add_run_folder, positive_number, whole_number

EXAMPLE = "mindmoe generate runs/quickstart --prompt 'def main('"


def declare(parser: Parser) -> None:
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    parser.add_argument("--max-new-tokens", type=positive_number, default=64, metavar="N", help="(default 64)")
    parser.add_argument(
        "--temperature",
        type=temperature_number,
        default=0.8,
        metavar="T",
        help="0 takes the likeliest token each time (default 0.8)",
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of the sampling (default 0)")
    add_run_folder(parser)


def temperature_number(text: str) -> float:
    """A number, 0 or more."""
    if not re.fullmatch(r"[0-9]{0,3}\.?[0-9]{1,9}", text):
        raise ArgumentTypeError(f"{text!r} must be a number, 0 or more")
    return float(text)


def run(args: Args) -> int:
    from mindmoe.inference.generate import generate

    return generate(args.path, args.prompt, args.max_new_tokens, args.temperature, args.seed)
