"""`mindmoe config show`, `validate`, `import-mindformers` and `schema`."""

import sys
from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_command, add_commands, add_config, positive_number, resolved_config

EXAMPLE = "mindmoe config show configs/quickstart.yaml"


def declare(parser: Parser) -> None:
    commands = add_commands(parser)
    for name, run, what, file in (
        ("show", show, "print a config with every key written out", "configs/gpt-oss-120b.yaml"),
        ("validate", validate, "check a config and report all its mistakes", "configs/gpt-oss-120b.yaml"),
    ):
        command = add_command(commands, name, run, what, f"mindmoe config {name} {file} --cards 512")
        add_config(command)
        command.add_argument("--cards", type=positive_number, metavar="N", help="fit it to this number of cards")
    mindformers = add_command(
        commands,
        "import-mindformers",
        import_mindformers,
        "translate a training config of MindFormers",
        "mindmoe config import-mindformers pretrain_qwen3_30b_a3b_4k.yaml --out configs/qwen3.yaml",
    )
    mindformers.add_argument("path", type=Path, metavar="FILE", help="a YAML file of MindFormers 1.x or 2.x")
    mindformers.add_argument("--out", type=Path, required=True, metavar="FILE", help="the config to write")
    what = "print the JSON Schema of a config file, for editors"
    add_command(commands, "schema", schema, what, "mindmoe config schema > mindmoe.schema.json")


def show(args: Args) -> int:
    from mindmoe.config.load import dump_config

    print(dump_config(resolved_config(args)), end="")
    return 0


def validate(args: Args) -> int:
    from mindmoe.train.preflight import doubts

    run = resolved_config(args)
    for doubt in doubts(run):
        print(f"mindmoe: warning: on this machine, {doubt}", file=sys.stderr)
    print(f"{args.config}: valid" + (f" on {args.cards} cards, dp={run.parallel.dp}" if args.cards else ""))
    return 0


def import_mindformers(args: Args) -> int:
    from mindmoe.interop.mindformers import write_import

    return write_import(args.path, args.out)


def schema(args: Args) -> int:
    import json

    from mindmoe.config.load import config_schema

    print(json.dumps(config_schema(), indent=2))
    return 0
