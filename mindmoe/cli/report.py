"""`mindmoe report`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_run_folder, positive_number

EXAMPLE = "mindmoe report runs/quickstart"


def declare(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: in the run folder)")
    parser.add_argument("--routing", action="store_true", help="what-ifs of the recorded routing instead")
    parser.add_argument("--ranks", type=positive_number, default=8, metavar="N", help="of placements (default 8)")
    add_run_folder(parser)


def run(args: Args) -> int:
    from mindmoe.lab.flight.report import write_routing_report
    from mindmoe.observe.report import write_report

    path, out = args.path, args.out
    print(f"wrote {write_routing_report(path, args.ranks, out) if args.routing else write_report(path, out)}")
    return 0
