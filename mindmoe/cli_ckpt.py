"""The commands of `mindmoe ckpt`: arguments in, one call out. Nothing heavy is imported before one runs."""

import argparse


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

    return commands.diff(args.path, args.other)


def prune(args: argparse.Namespace) -> int:
    """Deletes steps that no rule wants."""
    from mindmoe.checkpoint import commands
    from mindmoe.checkpoint.config import CheckpointConfig
    from mindmoe.checkpoint.retention import Retention
    from mindmoe.load import load_section

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
    from mindmoe.flight.place import place

    return place(args.path, args.step, args.ranks, args.out)
