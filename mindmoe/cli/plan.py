"""`mindmoe plan`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, positive_number

EXAMPLE = "mindmoe plan configs/gpt-oss-120b.yaml --cards 512 --hardware ascend-910b2 --out plan.html"


def declare(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file (not needed with --check)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    parser.add_argument(
        "--cards", type=positive_number, default=1, metavar="N", help="cards of the cluster (default 1)"
    )
    parser.add_argument(
        "--hardware",
        default="ascend-910b2",
        metavar="NAME",
        help="an accelerator, 'this machine' or a YAML file (default ascend-910b2)",
    )
    parser.add_argument("--explain", action="store_true", help="print the terms of every figure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the plan: .html a report, .yaml the layout")
    parser.add_argument("--check", type=Path, metavar="CSV", help="compare with published runs and print the errors")


def run(args: Args) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.plan.main import plan

    run = load_config(args.config, args.words) if args.config else None
    command = (args.config, *args.words) if args.config else ()
    return plan(run, args.cards, args.hardware, args.explain, args.out, args.check, command)
