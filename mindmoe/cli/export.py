"""`mindmoe export`."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, whole_number

EXAMPLE = "mindmoe export runs/quickstart --out exported --form mxfp4"


def declare(parser: Parser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN", help="a run folder; of a config file the sizes are printed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: hf-FORM in the run folder)")
    parser.add_argument("--form", choices=("bf16", "mxfp4"), default="bf16", help="(default bf16)")
    parser.add_argument("--step", type=whole_number, metavar="N", help="(default: the newest)")
    parser.add_argument("--drop-selection-bias", action="store_true", help="leave out what GptOss cannot express")
    parser.add_argument("--compare", type=whole_number, default=0, metavar="N", help="compare logits on N tokens")


def run(args: Args) -> int:
    from mindmoe.interop.commands import export_main, size_main

    if args.path.is_file():
        return size_main(str(args.path))
    return export_main(args.path, args.out, args.form, args.step, args.drop_selection_bias, args.compare)
