"""`mindmoe doctor`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser

EXAMPLE = "mindmoe doctor --measure --out machine.yaml"


def declare(parser: Parser) -> None:
    parser.add_argument("--measure", action="store_true", help="time ops and collectives for `plan --hardware`")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where --measure writes (default: this user's cache)")


def run(args: Args) -> int:
    if args.measure:
        from mindmoe.proof.measure.main import measure

        return measure(args.out)
    from mindmoe.observe import doctor

    return doctor.main()
