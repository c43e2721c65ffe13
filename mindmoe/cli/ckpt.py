"""`mindmoe ckpt`: commands that need no device and read nothing but the folder."""

from pathlib import Path

from mindmoe.cli.arguments import Args, Parser, add_command, add_commands, positive_number, whole_number

EXAMPLE = "mindmoe ckpt ls runs/quickstart"

COMMANDS = {  # name: (what it does, what follows it in the example)
    "ls": ("list the steps of a run", "runs/quickstart"),
    "show": ("print what a step holds", "runs/quickstart --step 400"),
    "verify": ("read every byte of a step and say what is wrong", "runs/quickstart --all"),
    "diff": ("compare two steps, whatever their layouts", "runs/quickstart runs/other --step 400"),
    "prune": ("delete steps that no rule wants", "runs/quickstart keep_last=2 --dry-run"),
    "pin": ("keep a step whatever the rules say", "runs/quickstart --step 400"),
    "unpin": ("let the rules decide about a step again", "runs/quickstart --step 400"),
    "reshard": ("write a step anew in other shards", "runs/quickstart --out copy --shards 8"),
    "place": ("renumber experts for less traffic", "runs/quickstart --ranks 4 --out placed"),
    "repair": ("set damaged steps aside and clear what is unfinished", "runs/quickstart"),
    "torture": ("break checkpoints in every way, ours and others', and print what survives", "--trials 4000"),
}


def declare(parser: Parser) -> None:
    commands = add_commands(parser)
    made = {}
    for name, (what, example) in COMMANDS.items():
        made[name] = add_command(commands, name, run, what, f"mindmoe ckpt {name} {example}")
        made[name].set_defaults(command=name)
    breaking = made.pop("torture")
    breaking.add_argument("--trials", type=positive_number, default=400, metavar="N", help="flipped bits (default 400)")
    peers = ["safetensors", "mindspore"]
    what = "what to compare with (default: both)"
    breaking.add_argument("--against", nargs="*", choices=tuple(peers), default=peers, help=what)
    for command in made.values():
        command.add_argument("path", type=Path, metavar="PATH", help="a run folder, its checkpoints, or one step")
    for name in ("show", "verify", "pin", "unpin", "reshard", "place"):
        made[name].add_argument("--step", type=whole_number, metavar="N", help="(default: the newest)")
    made["show"].add_argument("--all", action="store_true", help="list every tensor")
    made["verify"].add_argument("--all", action="store_true", help="verify every step")
    made["diff"].add_argument("other", type=Path, metavar="OTHER", help="what to compare with")
    made["diff"].add_argument("--step", type=whole_number, metavar="N", help="of both (default: the newest of each)")
    made["diff"].add_argument("--other-step", type=whole_number, metavar="N", help="of OTHER, if it is another step")
    made["prune"].add_argument("words", nargs="*", metavar="key=value", help="keep_last, keep_every, keep_best")
    made["prune"].add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    for name in ("reshard", "place"):
        made[name].add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")
    made["place"].add_argument("--ranks", type=positive_number, required=True, metavar="N", help="that share experts")
    made["reshard"].add_argument("--shards", type=positive_number, default=1, metavar="N", help="(default 1)")


def run(args: Args) -> int:
    from mindmoe.checkpoint import commands

    match args.command:
        case "ls":
            return commands.ls(args.path)
        case "show":
            return commands.show(args.path, args.step, args.all)
        case "verify":
            return commands.verify(args.path, args.step, args.all)
        case "diff":
            return commands.diff(args.path, args.other, args.step, args.other_step)
        case "prune":
            from mindmoe.checkpoint.config import CheckpointConfig
            from mindmoe.checkpoint.retention import Retention
            from mindmoe.config.load import load_section

            rule = Retention.of(load_section(CheckpointConfig, args.words))
            return commands.prune_steps(args.path, rule, args.dry_run)
        case "pin" | "unpin":
            return commands.pin(args.path, args.step, keep=args.command == "pin")
        case "reshard":
            return commands.reshard(args.path, args.step, args.out, args.shards)
        case "repair":
            return commands.repair(args.path)
        case "place":
            from mindmoe.lab.flight.place import place

            return place(args.path, args.step, args.ranks, args.out)
        case _:
            from mindmoe.checkpoint.torture.main import torture

            return torture(args.trials, ["mindmoe", *args.against])
