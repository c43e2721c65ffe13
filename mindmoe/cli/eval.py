"""`mindmoe eval`."""

from mindmoe.cli.arguments import Args, Parser, add_run_folder

EXAMPLE = "mindmoe eval runs/quickstart --data data/other"


def declare(parser: Parser) -> None:
    parser.add_argument("--data", metavar="PATH", help="token data to measure on (default: the run's held-out set)")
    add_run_folder(parser)


def run(args: Args) -> int:
    from mindmoe.inference.evaluate import evaluate

    return evaluate(args.path, args.data)
