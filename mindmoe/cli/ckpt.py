"""The commands of `mindmoe ckpt`: arguments in, one call out. Nothing heavy is imported before one runs."""

import argparse
from pathlib import Path
from typing import Any

from mindmoe.cli.arguments import add_command, add_group, positive_number, whole_number


def add_ckpt(commands: Any) -> None:
    """Adds `ckpt ...`: they need no device and read nothing but the folder."""
    ckpt = add_group(commands, "ckpt", "look after checkpoints", "mindmoe ckpt ls runs/quickstart")
    made = {
        name: add_command(ckpt, name, run, what, f"mindmoe ckpt {name} {words}")
        for name, run, what, words in (
            ("ls", ls, "list the steps of a run", "runs/quickstart"),
            ("show", show, "print what a step holds", "runs/quickstart --step 400"),
            ("verify", verify, "read every byte of a step and say what is wrong", "runs/quickstart --all"),
            ("diff", diff, "compare two steps, whatever their layouts", "runs/quickstart runs/other --step 400"),
            ("prune", prune, "delete steps that no rule wants", "runs/quickstart keep_last=2 --dry-run"),
            ("pin", pin, "keep a step whatever the rules say", "runs/quickstart --step 400"),
            ("unpin", unpin, "let the rules decide about a step again", "runs/quickstart --step 400"),
            ("reshard", reshard, "write a step anew in other shards", "runs/quickstart --out copy --shards 8"),
            ("place", place, "renumber experts for less traffic", "runs/quickstart --ranks 4 --out placed"),
            ("repair", repair, "set damaged steps aside and clear what is unfinished", "runs/quickstart"),
        )
    }
    breaking = add_command(
        ckpt,
        "torture",
        torture,
        "break checkpoints in every way, ours and others', and print what survives",
        "mindmoe ckpt torture --trials 4000",
    )
    breaking.add_argument("--trials", type=positive_number, default=400, metavar="N", help="flipped bits (default 400)")
    breaking.add_argument(
        "--against",
        nargs="*",
        choices=("safetensors", "mindspore"),
        default=["safetensors", "mindspore"],
        help="what to compare with (default: both)",
    )
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


def torture(args: argparse.Namespace) -> int:
    """Breaks checkpoints and prints what survives."""
    from mindmoe.checkpoint.torture.main import torture

    return torture(args.trials, ["mindmoe", *args.against])


def ls(args: argparse.Namespace) -> int:
    """Lists steps."""
    from mindmoe.checkpoint import commands

    return commands.ls(args.path)


def show(args: argparse.Namespace) -> int:
    """Prints what a step holds."""
    from mindmoe.checkpoint import commands

    return commands.show(args.path, args.step, args.all)


def verify(args: argparse.Namespace) -> int:
    """Reads every byte."""
    from mindmoe.checkpoint import commands

    return commands.verify(args.path, args.step, args.all)


def diff(args: argparse.Namespace) -> int:
    """Compares two steps."""
    from mindmoe.checkpoint import commands

    return commands.diff(args.path, args.other, args.step, args.other_step)


def prune(args: argparse.Namespace) -> int:
    """Deletes steps that no rule wants."""
    from mindmoe.checkpoint import commands
    from mindmoe.checkpoint.config import CheckpointConfig
    from mindmoe.checkpoint.retention import Retention
    from mindmoe.config.load import load_section

    rule = Retention.of(load_section(CheckpointConfig, args.words))
    return commands.prune_steps(args.path, rule, args.dry_run)


def pin(args: argparse.Namespace) -> int:
    """Keeps a step."""
    from mindmoe.checkpoint import commands

    return commands.pin(args.path, args.step, keep=True)


def unpin(args: argparse.Namespace) -> int:
    """Lets the rules decide again."""
    from mindmoe.checkpoint import commands

    return commands.pin(args.path, args.step, keep=False)


def reshard(args: argparse.Namespace) -> int:
    """Writes a step in other shards."""
    from mindmoe.checkpoint import commands

    return commands.reshard(args.path, args.step, args.out, args.shards)


def repair(args: argparse.Namespace) -> int:
    """Sets damaged steps aside."""
    from mindmoe.checkpoint import commands

    return commands.repair(args.path)


def place(args: argparse.Namespace) -> int:
    """Renumbers experts for a better placement."""
    from mindmoe.lab.flight.place import place

    return place(args.path, args.step, args.ranks, args.out)
