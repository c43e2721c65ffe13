"""`mindmoe equiv`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser

EXAMPLE = 'mindmoe equiv configs/quickstart.yaml --layouts dp2 "tp2,ep2" train.global_batch_size=4'


def declare(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; its micro-batch is that of one process")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument("--layouts", nargs="+", default=[], metavar="LAYOUT", help='such as dp2 or "tp2,pp2"')
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the traces and equiv.json here")


def run(args: Args) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.equiv.main import equiv

    # Gradient descent is as smooth as its gradient; Adam divides small gradients by small ones.
    run = load_config(args.config, ["optim.type=sgd", *args.words])
    return equiv(run, args.layouts, args.out)
