"""`mindmoe dryrun`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_config, positive_number, whole_number

EXAMPLE = "mindmoe dryrun configs/gpt-oss-120b.yaml --world 512 --all"


def declare(parser: Parser) -> None:
    add_config(parser)
    parser.add_argument("--world", type=positive_number, required=True, metavar="N", help="ranks of the cluster")
    parser.add_argument("--rank", type=whole_number, metavar="R", help="build this rank and run one step of it")
    parser.add_argument("--all", action="store_true", help="check that all ranks call the same, without building them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what the rank did as JSON")


def run(args: Args) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.proof.dryrun.main import dryrun

    return dryrun(load_config(args.config, args.words), args.world, args.rank, args.all, args.out)
