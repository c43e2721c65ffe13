"""The command line: read arguments, load the config, make one call.

Nothing heavy is imported before a command runs, so that `mindmoe --help` is instant. `key=value` overrides may
stand anywhere after the command; flags exist only for paths and for what is no config key.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindmoe.cli import ckpt as cli_ckpt
from mindmoe.cli import data as cli_data
from mindmoe.cli.answers import answered
from mindmoe.cli.arguments import (
    Parser,
    Version,
    add_command,
    add_config,
    add_group,
    add_takeover,
    positive_number,
    temperature_number,
    whole_number,
)

if TYPE_CHECKING:
    from mindmoe.config.run import RunConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 for a mistake of the user, 130 when interrupted."""
    return answered(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args, late = parser.parse_known_args(argv)
    # argparse fills a positional list from one stretch of arguments only: words after an option come back here.
    if late and (not hasattr(args, "words") or any(word.startswith("-") for word in late)):
        args.parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        args.words = [*args.words, *late]
    return args.run(args)


def _resolved(args: argparse.Namespace) -> "RunConfig":
    """The config of a command, laid out on its cards where they are given."""
    from mindmoe.config.load import load_config
    from mindmoe.planner.auto import planned

    run = load_config(args.config, args.words)
    return planned(run, args.cards) if args.cards else run


def _train(args: argparse.Namespace) -> int:
    from mindmoe.config.load import load_config

    run = load_config(args.config, args.words)  # before MindSpore's slow import: mistakes are told at once
    from mindmoe.train.main import train

    return train(run, args.takeover)


def _launch(args: argparse.Namespace) -> int:
    run = _resolved(args)
    scheduler: Any = "hosts" if args.nodes else args.scheduler
    if scheduler is None:
        from mindmoe.launch.msrun import launch

        return launch(run, args.cards, args.takeover)
    from mindmoe.launch.prepare import prepare

    return prepare(run, args.cards, args.cards_per_node, scheduler, args.nodes, args.takeover)


def _node(args: argparse.Namespace) -> int:
    from mindmoe.launch.node import run_node

    return run_node(args.path, args.index)


def _config_show(args: argparse.Namespace) -> int:
    from mindmoe.config.load import dump_config

    print(dump_config(_resolved(args)), end="")
    return 0


def _config_validate(args: argparse.Namespace) -> int:
    from mindmoe.train.preflight import doubts

    run = _resolved(args)
    for doubt in doubts(run):
        print(f"mindmoe: warning: on this machine, {doubt}", file=sys.stderr)
    print(f"{args.config}: valid" + (f" on {args.cards} cards, dp={run.parallel.dp}" if args.cards else ""))
    return 0


def _config_schema(args: argparse.Namespace) -> int:
    import json

    from mindmoe.config.load import config_schema

    print(json.dumps(config_schema(), indent=2))
    return 0


def _config_import(args: argparse.Namespace) -> int:
    from mindmoe.interop.mindformers import write_import

    return write_import(args.path, args.out)


def _eval(args: argparse.Namespace) -> int:
    from mindmoe.train.folder import RunFolder

    RunFolder(args.path).load_config()  # before MindSpore's slow import: mistakes are told at once
    from mindmoe.inference import evaluate

    return evaluate.main(args.path, args.data)


def _generate(args: argparse.Namespace) -> int:
    from mindmoe.inference import generate

    return generate.main(args.path, args.prompt, args.max_new_tokens, args.temperature, args.seed)


def _import(args: argparse.Namespace) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.interop.commands import import_main

    return import_main(args.folder, load_config(args.config, args.words))


def _export(args: argparse.Namespace) -> int:
    from mindmoe.interop.commands import export_main, size_main

    if args.path.is_file():
        return size_main(str(args.path))
    return export_main(args.path, args.out, args.form, args.step, args.drop_selection_bias, args.compare)


def _report(args: argparse.Namespace) -> int:
    from mindmoe.lab.flight.report import write_routing_report
    from mindmoe.observe.report import write_report

    path, out = args.path, args.out
    print(f"wrote {write_routing_report(path, args.ranks, out) if args.routing else write_report(path, out)}")
    return 0


def _ablate(args: argparse.Namespace) -> int:
    from mindmoe.lab.ablate.main import main as ablate

    return ablate(args.config, args.words, args.report, args.configs, args.quick)


def _plan(args: argparse.Namespace) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.planner.main import plan

    run = load_config(args.config, args.words) if args.config else None
    command = (args.config, *args.words) if args.config else ()
    return plan(run, args.cards, args.hardware, args.explain, args.out, args.check, command)


def _dryrun(args: argparse.Namespace) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.dryrun.main import dryrun

    return dryrun(load_config(args.config, args.words), args.world, args.rank, args.all, args.out)


def _equiv(args: argparse.Namespace) -> int:
    from mindmoe.config.load import load_config
    from mindmoe.equiv.main import equiv

    # Gradient descent is as smooth as its gradient; Adam divides small gradients by small ones.
    run = load_config(args.config, ["optim.type=sgd", *args.words])
    return equiv(run, args.layouts, args.out)


def _doctor(args: argparse.Namespace) -> int:
    if args.measure:
        from mindmoe.measure.main import measure

        return measure(args.out)
    from mindmoe.observe import doctor

    return doctor.main()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mindmoe",
        description="Pretrain mixture-of-experts language models on MindSpore.",
        allow_abbrev=False,
        epilog="example: mindmoe launch configs/quickstart.yaml --cards 2",
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_training(commands)
    _add_ablate(commands)
    _add_plan(commands)
    _add_dryrun(commands)
    _add_equiv(commands)
    _add_config_commands(commands)
    cli_data.add_data(commands)
    _add_run_commands(commands)
    cli_ckpt.add_ckpt(commands)
    _add_transfer_commands(commands)
    _add_doctor(commands)
    return parser


def _add_doctor(commands: Any) -> None:
    """`doctor`."""
    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "check this machine and say what is missing, or measure it",
        "mindmoe doctor --measure --out machine.yaml",
    )
    doctor.add_argument("--measure", action="store_true", help="time ops and collectives for `plan --hardware`")
    doctor.add_argument("--out", type=Path, metavar="FILE", help="where --measure writes (default: this user's cache)")


def _add_training(commands: Any) -> None:
    """The commands that train."""
    train = add_command(
        commands,
        "train",
        _train,
        "train a config in this process",
        "mindmoe train configs/quickstart.yaml train.steps=50 optim.warmup_steps=5",
    )
    add_config(train)

    launch = add_command(
        commands,
        "launch",
        _launch,
        "train a config on several cards of this machine, or prepare it for many machines",
        "mindmoe launch configs/quickstart.yaml --cards 2 optim.lr=1e-3",
    )
    add_config(launch)
    launch.add_argument("--cards", type=positive_number, required=True, metavar="N", help="number of worker processes")
    nodes = launch.add_mutually_exclusive_group()
    nodes.add_argument("--nodes", type=Path, metavar="FILE", help="write scripts for the hosts of a file, one a line")
    for flag, what in (("slurm", "write a batch script for Slurm"), ("k8s", "write a job for Volcano on Kubernetes")):
        nodes.add_argument(f"--{flag}", action="store_const", const=flag, dest="scheduler", help=what)
    launch.add_argument(
        "--cards-per-node", type=positive_number, default=8, metavar="N", help="with nodes: cards of each (default 8)"
    )

    for command in (train, launch):
        add_takeover(command)

    node = add_command(
        commands,
        "node",
        _node,
        "run one node of a launch that was prepared for many machines",
        "mindmoe node runs/gpt-oss-120b/launch --index 3",
    )
    node.add_argument("path", type=Path, metavar="FOLDER", help="the folder that launch wrote")
    node.add_argument("--index", type=whole_number, required=True, metavar="N", help="which node this is, from 0")


def _add_equiv(commands: Any) -> None:
    """`equiv`."""
    equiv = add_command(
        commands,
        "equiv",
        _equiv,
        "show that layouts compute what one process computes",
        'mindmoe equiv configs/quickstart.yaml --layouts dp2 "tp2,ep2" train.global_batch_size=4',
    )
    equiv.add_argument("config", metavar="CONFIG", help="a YAML file; its micro-batch is that of one process")
    equiv.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    equiv.add_argument("--layouts", nargs="+", default=[], metavar="LAYOUT", help='such as dp2 or "tp2,pp2"')
    equiv.add_argument("--out", type=Path, metavar="FOLDER", help="keep the traces and equiv.json here")


def _add_ablate(commands: Any) -> None:
    """`ablate`."""
    ablate = add_command(
        commands,
        "ablate",
        _ablate,
        "compare configs over paired seeds and give a verdict",
        "mindmoe ablate configs/ablate/dmr.yaml workers=2",
    )
    ablate.add_argument("config", type=Path, metavar="FILE", help="a YAML file, such as configs/ablate/dmr.yaml")
    ablate.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    ablate.add_argument("--report", action="store_true", help="judge the runs that are there, and start none")
    ablate.add_argument("--configs", action="store_true", help="write the configs of the runs, and start none")
    ablate.add_argument(
        "--quick", action="store_true", help="2 seeds of a quarter of the steps, without searches; gives no verdict"
    )


def _add_plan(commands: Any) -> None:
    """`plan`."""
    plan = add_command(
        commands,
        "plan",
        _plan,
        "search the best layout of a config on a cluster, without one",
        "mindmoe plan configs/gpt-oss-120b.yaml --cards 512 --hardware ascend-910b2 --out plan.html",
    )
    plan.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file (not needed with --check)")
    plan.add_argument("words", nargs="*", metavar="key=value", help="settings that win over the file's")
    plan.add_argument("--cards", type=positive_number, default=1, metavar="N", help="cards of the cluster (default 1)")
    plan.add_argument(
        "--hardware",
        default="ascend-910b2",
        metavar="NAME",
        help="an accelerator, 'this machine' or a YAML file (default ascend-910b2)",
    )
    plan.add_argument("--explain", action="store_true", help="print the terms of every figure")
    plan.add_argument("--out", type=Path, metavar="FILE", help="write the plan: .html a report, .yaml the layout")
    plan.add_argument("--check", type=Path, metavar="CSV", help="compare with published runs and print the errors")


def _add_dryrun(commands: Any) -> None:
    """`dryrun`."""
    dryrun = add_command(
        commands,
        "dryrun",
        _dryrun,
        "build and run one rank of a cluster on this machine, or check that all ranks agree",
        "mindmoe dryrun configs/gpt-oss-120b.yaml --world 512 --all",
    )
    add_config(dryrun)
    dryrun.add_argument("--world", type=positive_number, required=True, metavar="N", help="ranks of the cluster")
    dryrun.add_argument("--rank", type=whole_number, metavar="R", help="build this rank and run one step of it")
    dryrun.add_argument("--all", action="store_true", help="check that all ranks call the same, without building them")
    dryrun.add_argument("--out", type=Path, metavar="FILE", help="write what the rank did as JSON")


def _add_config_commands(commands: Any) -> None:
    """`config show`, `validate`, `import-mindformers` and `schema`."""
    config = add_group(
        commands, "config", "show, check or describe configs", "mindmoe config show configs/quickstart.yaml"
    )
    show = add_command(
        config,
        "show",
        _config_show,
        "print a config with every key written out",
        "mindmoe config show configs/gpt-oss-120b.yaml --cards 512",
    )
    validate = add_command(
        config,
        "validate",
        _config_validate,
        "check a config and report all its mistakes",
        "mindmoe config validate configs/gpt-oss-120b.yaml --cards 512",
    )
    for command in (show, validate):
        add_config(command)
        command.add_argument("--cards", type=positive_number, metavar="N", help="fit it to this number of cards")
    mindformers = add_command(
        config,
        "import-mindformers",
        _config_import,
        "translate a training config of MindFormers",
        "mindmoe config import-mindformers pretrain_qwen3_30b_a3b_4k.yaml --out configs/qwen3.yaml",
    )
    mindformers.add_argument("path", type=Path, metavar="FILE", help="a YAML file of MindFormers 1.x or 2.x")
    mindformers.add_argument("--out", type=Path, required=True, metavar="FILE", help="the config to write")
    add_command(
        config,
        "schema",
        _config_schema,
        "print the JSON Schema of a config file, for editors",
        "mindmoe config schema > mindmoe.schema.json",
    )


def _add_run_commands(commands: Any) -> None:
    """The commands that take the folder of a run."""
    evaluate = add_command(
        commands,
        "eval",
        _eval,
        "measure loss, perplexity and bits per byte of a run",
        "mindmoe eval runs/quickstart --data data/other",
    )
    evaluate.add_argument("--data", metavar="PATH", help="token data to measure on (default: the run's held-out set)")
    generate = add_command(
        commands,
        "generate",
        _generate,
        "continue a prompt with a run's newest checkpoint",
        "mindmoe generate runs/quickstart --prompt 'def main('",
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    generate.add_argument("--max-new-tokens", type=positive_number, default=64, metavar="N", help="(default 64)")
    generate.add_argument(
        "--temperature",
        type=temperature_number,
        default=0.8,
        metavar="T",
        help="0 takes the likeliest token each time (default 0.8)",
    )
    generate.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of the sampling (default 0)")
    report = add_command(
        commands, "report", _report, "write a run's story as one HTML file", "mindmoe report runs/quickstart"
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="(default: in the run folder)")
    report.add_argument("--routing", action="store_true", help="what-ifs of the recorded routing instead")
    report.add_argument("--ranks", type=positive_number, default=8, metavar="N", help="of placements (default 8)")
    for command in (evaluate, generate, report):
        command.add_argument("path", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")


def _add_transfer_commands(commands: Any) -> None:
    """`import` and `export`."""
    take = add_command(
        commands,
        "import",
        _import,
        "begin a run with the weights of a Hugging Face GptOss folder",
        "mindmoe import path/to/gpt-oss-20b configs/gpt-oss-20b.yaml name=tuned",
    )
    take.add_argument("folder", type=Path, metavar="FOLDER", help="config.json and safetensors: floats or MXFP4")
    add_config(take)
    give = add_command(
        commands,
        "export",
        _export,
        "write a run's weights as a Hugging Face GptOss folder",
        "mindmoe export runs/quickstart --out exported --form mxfp4",
    )
    give.add_argument("path", type=Path, metavar="RUN", help="a run folder; of a config file the sizes are printed")
    give.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: hf-FORM in the run folder)")
    give.add_argument("--form", choices=("bf16", "mxfp4"), default="bf16", help="(default bf16)")
    give.add_argument("--step", type=whole_number, metavar="N", help="(default: the newest)")
    give.add_argument("--drop-selection-bias", action="store_true", help="leave out what GptOss cannot express")
    give.add_argument("--compare", type=whole_number, default=0, metavar="N", help="compare logits on N tokens")
