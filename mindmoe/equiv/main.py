"""`mindmoe equiv`: shows that layouts compute what one process computes, on this machine (dry).

All layouts of one number of ranks run one after the other in the same processes, so a comparison costs one start for
each number of ranks.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mindmoe.config import RunConfig
from mindmoe.env import threads_per_rank, worker_environment
from mindmoe.equiv.compare import GRADIENT, LOSS, WEIGHT, Difference, compare
from mindmoe.equiv.layouts import Layout, parse_layout
from mindmoe.errors import UserError
from mindmoe.launch.local import Failure, LocalRanks, free_port
from mindmoe.launch.ranks import Rank
from mindmoe.load import dump_config

_POLL = 0.2  # [s]


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
        _run([(baselines[key], path) for key, path in places.items()], 1, folder)
        for world in sorted({layout.world for layout in layouts}):
            jobs = [(layout.config, _place(folder, layout)) for layout in layouts if layout.world == world]
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


def _place(folder: Path, layout: Layout) -> Path:
    return folder / layout.name.replace(",", "-").replace(" ", "")


def _run(jobs: list[tuple[RunConfig, Path]], world: int, folder: Path) -> None:
    """Runs jobs on `world` processes of this machine.

    Raises:
        UserError: a rank failed, or time was up.
    """
    config = jobs[0][0]
    logs = folder / f"logs-{world}"
    logs.mkdir(parents=True, exist_ok=True)
    listed = []
    for index, (run, out) in enumerate(jobs):
        file = logs / f"job-{index}.yaml"
        file.write_text(dump_config(run), encoding="utf-8")
        listed.append({"config": str(file), "out": str(out)})
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


def _report(found: list[tuple[Layout, Difference]], steps: int, out: Path | None) -> None:
    """Prints the table, and writes it where a folder was given."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"largest differences from one process over {steps} steps in fp32", box=box.SIMPLE)
    for heading in ("layout", "loss", "gradient", "weight", "element", "routing", "verdict"):
        table.add_column(heading, justify="left" if heading in ("layout", "verdict") else "right", overflow="fold")
    for layout, at in found:
        table.add_row(
            layout.name,
            f"{at.loss:.1e}",
            f"{at.gradient:.1e}",
            f"{at.weight:.1e}",
            f"{at.element:.1e}",
            str(at.routing),
            "equal" if at.equal else "DIFFERS",
        )
    console = Console()
    console.print(table)
    for layout, at in found:
        where = f"gradient at {_short(at.gradient_at)}, weight at {_short(at.weight_at)}"
        missing = f", missing {', '.join(at.missing[:3])}" if at.missing else ""
        console.print(f"{layout.name} on {layout.world} ranks: largest {where}{missing}", soft_wrap=True)
    console.print(
        f"equal: loss within {LOSS:.0e}, every gradient within {GRADIENT:.0e} of its norm (of one number: its map's), "
        f"weights within {WEIGHT:.0e} of theirs (root mean squares; element: the single weight furthest off), "
        "and every assignment the same"
    )
    if out is not None:
        rows = [
            {
                "layout": layout.name,
                "ranks": layout.world,
                "loss": at.loss,
                "gradient": at.gradient,
                "gradient_at": at.gradient_at,
                "weight": at.weight,
                "weight_at": at.weight_at,
                "element": at.element,
                "routing": at.routing,
                "equal": at.equal,
            }
            for layout, at in found
        ]
        (out / "equiv.json").write_text(json.dumps({"steps": steps, "layouts": rows}, indent=1), encoding="utf-8")


def _short(name: str) -> str:
    return name.removeprefix("model.")
