"""`mindmoe equiv`: shows that layouts compute what one process computes, on this machine (dry).

All layouts of one number of ranks run one after the other in the same processes, so a comparison costs one start for
each number of ranks.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mindmoe.config.load import dump_config
from mindmoe.config.run import RunConfig
from mindmoe.equiv.compare import GRADIENT, LOSS, TIE, WEIGHT, Difference, compare
from mindmoe.equiv.layouts import LayoutRun, parse_layout
from mindmoe.host.env import threads_per_rank, worker_environment
from mindmoe.host.errors import UserError
from mindmoe.launch.local import Failure, LocalRanks, free_port
from mindmoe.launch.ranks import Rank

_POLL = 0.2  # [s]


class _Job(NamedTuple):
    """A run, the folder of its traces, and that of the process alone it is compared with; None for that itself."""

    config: RunConfig
    out: Path
    alone: Path | None


def equiv(config: RunConfig, words: Sequence[str], out: Path | None) -> int:
    """Runs the layouts and prints how far each is from one process; returns 0 if all are equal, else 1.

    Args:
        config: the run, with the micro-batch of one process; all its steps are trained.
        words: layouts, such as `tp2,ep2`.
        out: folder for the traces and `equiv.json`, by default a temporary one.

    Raises:
        UserError: a layout is illegal, or its processes failed.
    """
    layouts = [parse_layout(text, config) for text in words]
    if not layouts:
        raise UserError("no layout is given", 'name some, such as --layouts dp2 "tp2,ep2"')
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        baselines = {layout.baseline_key: layout.baseline for layout in layouts}
        places = {key: folder / f"one-process-{index}" for index, key in enumerate(baselines)}
        _run([_Job(baselines[key], path, None) for key, path in places.items()], 1, folder)
        for world in sorted({layout.world for layout in layouts}):
            jobs = [
                _Job(layout.config, _place(folder, layout), places[layout.baseline_key])
                for layout in layouts
                if layout.world == world
            ]
            _run(jobs, world, folder)
        found = [
            (
                layout,
                compare(
                    places[layout.baseline_key], _place(folder, layout), layout.world, config.model.initializer_range
                ),
            )
            for layout in layouts
        ]
        _report(found, config.train.steps, out)
    return 0 if all(difference.equal for _, difference in found) else 1


def _place(folder: Path, layout: LayoutRun) -> Path:
    return folder / layout.name.replace(",", "-").replace(" ", "")


def _run(jobs: list[_Job], world: int, folder: Path) -> None:
    """Runs jobs on `world` processes of this machine.

    Raises:
        UserError: a rank failed, or time was up.
    """
    config = jobs[0].config
    logs = folder / f"logs-{world}"
    logs.mkdir(parents=True, exist_ok=True)
    listed = []
    for index, job in enumerate(jobs):
        file = logs / f"job-{index}.yaml"
        file.write_text(dump_config(job.config), encoding="utf-8")
        alone = {} if job.alone is None else {"alone": str(job.alone)}
        listed.append({"config": str(file), "out": str(job.out), **alone})
    (logs / "jobs.json").write_text(json.dumps(listed), encoding="utf-8")
    ranks = LocalRanks(
        _command(config, world, logs),
        [Rank(number, logs) for number in range(world)],
        worker_environment(threads_per_rank(config.launch.threads, world), world, str(Path(sys.executable).parent)),
        logs / "msrun.log",
    )
    limit = time.monotonic() + (config.launch.timeout or 3600.0)
    try:
        ranks.start()
        while ranks.state() != "ended" and time.monotonic() < limit:
            time.sleep(_POLL)
        failure = ranks.failure()
    finally:
        ranks.end()
    if failure is None and time.monotonic() >= limit:
        failure = Failure(code=1, rank=-1, message=f"{world} ranks did not end in time")
    if failure is not None:
        raise UserError(f"{failure.message}\n{failure.details}", "see the logs above")


def _command(config: RunConfig, world: int, logs: Path) -> list[str]:
    worker = [str(Path(__file__).with_name("worker.py")), str(logs), str(logs / "jobs.json"), config.train.device]
    if world == 1:
        return [sys.executable, *worker]
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        f"--worker_num={world}",
        f"--local_worker_num={world}",
        f"--master_port={free_port('127.0.0.1')}",
        f"--log_dir={logs}",
        "--join=True",
        f"--cluster_time_out={int(config.launch.cluster_timeout)}",
        "--tail_worker_log=-1",
        *worker,
    ]


def _report(found: list[tuple[LayoutRun, Difference]], steps: int, out: Path | None) -> None:
    """Prints the table, and writes it where a folder was given."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    train, op_set = found[0][0].config.train, found[0][1].ops
    what = f"largest differences from one process over {steps} steps in {train.precision}, ops: {op_set}"
    table = Table(title=escape(what), box=box.SIMPLE, padding=0)
    table.add_column("layout", overflow="fold")
    for heading in ("steps", "loss", "gradient", "weight", "element", "routing", "ties"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for layout, at in found:
        figures = (at.loss, at.gradient, at.weight, at.element)
        table.add_row(
            escape(layout.name),
            str(at.steps),
            *("-" if figure is None else f"{figure:.1e}" for figure in figures),
            str(at.routing),
            str(at.ties),
            at.verdict,
        )
    console = Console()
    console.print(table)
    for layout, at in found:
        places = {"gradient": at.gradient_at, "weight": at.weight_at}
        where = [f"{name} at {_short(parameter)}" for name, parameter in places.items() if parameter]
        missing = f", missing {', '.join(at.missing[:3])}" if at.missing else ""
        text = f"{layout.name} on {layout.world} ranks: largest {', '.join(where) or 'unknown'}{missing}"
        console.print(escape(text), soft_wrap=True)
    console.print(
        f"equal: loss within {LOSS:.0e}, every gradient within {GRADIENT:.0e} of its norm (of one number: its map's), "
        f"weights within {WEIGHT:.0e} of theirs (root mean squares; element: the single weight furthest off), "
        "and every token at the same experts; these bounds are those of fp32"
    )
    if any(at.ties for _, at in found):
        console.print(
            f"ties: tokens with other experts, on whom logits moved by {TIE:.0e} of their root mean square decide. "
            "The step of a tie is compared up to its layer, and the next one begins from equal weights"
        )
    if train.precision != "fp32":
        console.print("in bf16 other orders of summation differ by more: compare layouts with train.precision=fp32")
    if out is not None:
        rows = [
            {"layout": layout.name, "ranks": layout.world, "equal": at.equal}
            | {name: value if value != math.inf else None for name, value in asdict(at).items()}
            for layout, at in found
        ]
        head = {"steps": steps, "precision": train.precision, "ops": op_set}
        (out / "equiv.json").write_text(json.dumps({**head, "layouts": rows}, indent=1), encoding="utf-8")


def _short(name: str) -> str:
    return name.removeprefix("model.")
