"""`mindmoe train`."""

from mindmoe.cli.arguments import Args, Parser, add_config, add_takeover

EXAMPLE = "mindmoe train configs/quickstart.yaml train.steps=50 optim.warmup_steps=5"


def declare(parser: Parser) -> None:
    add_config(parser)
    add_takeover(parser)


def run(args: Args) -> int:
    from mindmoe.config.load import load_config

    run = load_config(args.config, args.words)  # before MindSpore's slow import: mistakes are told at once
    from mindmoe.train.main import train

    return train(run, args.takeover)
