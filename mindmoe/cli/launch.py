"""`mindmoe launch`."""

from pathlib import Path
from typing import Any

from mindmoe.cli.arguments import Args, Parser, add_config, add_takeover, positive_number, resolved_config

EXAMPLE = "mindmoe launch configs/quickstart.yaml --cards 2 optim.lr=1e-3"


def declare(parser: Parser) -> None:
    add_config(parser)
    parser.add_argument("--cards", type=positive_number, required=True, metavar="N", help="number of worker processes")
    nodes = parser.add_mutually_exclusive_group()
    nodes.add_argument("--nodes", type=Path, metavar="FILE", help="write scripts for the hosts of a file, one a line")
    for flag, what in (("slurm", "write a batch script for Slurm"), ("k8s", "write a job for Volcano on Kubernetes")):
        nodes.add_argument(f"--{flag}", action="store_const", const=flag, dest="scheduler", help=what)
    parser.add_argument(
        "--cards-per-node", type=positive_number, default=8, metavar="N", help="with nodes: cards of each (default 8)"
    )
    add_takeover(parser)


def run(args: Args) -> int:
    run = resolved_config(args)
    scheduler: Any = "hosts" if args.nodes else args.scheduler
    if scheduler is None:
        from mindmoe.launch.msrun import launch

        return launch(run, args.cards, args.takeover)
    from mindmoe.launch.prepare import prepare

    return prepare(run, args.cards, args.cards_per_node, scheduler, args.nodes, args.takeover)
