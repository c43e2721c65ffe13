"""`mindmoe ablate`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser

EXAMPLE = "mindmoe ablate configs/ablate/dmr.yaml workers=2"


def declare(parser: Parser) -> None:
    parser.add_argument("config", type=Path, metavar="FILE", help="a YAML file, such as configs/ablate/dmr.yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument("--report", action="store_true", help="judge the runs that are there, and start none")
    parser.add_argument("--configs", action="store_true", help="write the configs of the runs, and start none")
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds of a quarter of the steps, without searches; gives no verdict"
    )


def run(args: Args) -> int:
    from mindmoe.lab.ablate.main import main as ablate

    return ablate(args.config, args.words, args.report, args.configs, args.quick)
