"""`mindmoe ckpt torture`: what checkpoints of this package survive, beside what people use otherwise."""

import importlib.util
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mindmoe.checkpoint.torture import faults, power_loss
from mindmoe.checkpoint.torture.contenders import CONTENDERS, Contender
from mindmoe.checkpoint.torture.faults import FaultVerdict

_MEMORY = Path("/dev/shm")  # fsync costs nothing there, so that thousands of trials take seconds
_CRASH_STATES = 24
NOT_RUN = "-"


def torture(trials: int, against: list[str]) -> int:
    """Runs every fault and prints the table; exit code 1 if ours loses anything, or a mutation goes unnoticed.

    Args:
        trials: flips; kills are a twentieth of it.
        against: keys of CONTENDERS, ours first.
    """
    log = logging.getLogger("mindmoe.checkpoint")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it says of every fault that is made here would drown the table
    console = Console(highlight=False)
    contenders = {name: CONTENDERS[name]() for name in against if name != "mindspore" or _installed("mindspore")}
    table = Table(
        title="trials after which no acknowledged step was lost and no wrong byte loaded", title_justify="left"
    )
    for column in ("fault", *(contender.name for contender in contenders.values())):
        table.add_column(column)
    sound = True
    folder = Path(tempfile.mkdtemp(prefix="mindmoe-torture-", dir=_MEMORY if _MEMORY.is_dir() else None))
    started = time.monotonic()
    try:
        for fault, run in _faults(trials).items():
            cells = []
            for name, contender in contenders.items():
                root = folder / f"{name}-{len(table.rows)}"
                root.mkdir()
                verdict = run(name, contender, root)
                cells.append(NOT_RUN if verdict is None else str(verdict))
                if name == "mindmoe" and verdict is not None:
                    sound &= verdict.good == verdict.trials
                shutil.rmtree(root, ignore_errors=True)
            table.add_row(fault, *cells)
            console.print(f"{fault}: {', '.join(cells)}")
        trace = power_loss.trace_saves(folder / "live")
        results = list(power_loss.losses(trace, folder / "crashed", _CRASH_STATES))
        lost = sum(map(bool, results))
        table.add_row(
            "simulated power loss", f"{len(results) - lost}/{len(results)}", *[NOT_RUN] * (len(contenders) - 1)
        )
        missed = power_loss.unnoticed(trace, folder / "crashed", _CRASH_STATES)
    finally:
        log.setLevel(level)
        shutil.rmtree(folder, ignore_errors=True)
    console.print(table)
    gates = len(power_loss.MUTATIONS)
    console.print(
        f"mutation gate: {gates - len(missed)} of {gates} weakened protocols (without fsync of shards, manifest or "
        f"folders, without the rename) lose a step{': MISSED ' + ', '.join(missed) if missed else ''}"
    )
    console.print(f"{time.monotonic() - started:.0f} s; {NOT_RUN} means that the fault cannot be injected there")
    return 0 if sound and not lost and not missed else 1


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _faults(trials: int) -> dict[str, Callable[[str, Contender, Path], FaultVerdict | None]]:
    return {
        "kill -9": lambda name, contender, root: faults.kills(name, contender, root, max(1, trials // 20)),
        "flipped bit": lambda _, contender, root: faults.flips(contender, root, trials),
        "truncated or longer": lambda _, contender, root: faults.truncations(contender, root, max(1, trials // 4)),
        "page of zeros": lambda _, contender, root: faults.zeroed_pages(contender, root, max(1, trials // 4)),
        "missing or swapped file": lambda _, contender, root: faults.missing_and_swapped(contender, root),
        "full disk": lambda _, contender, root: faults.full_disks(contender, root),
        "failing system call": lambda name, contender, root: (
            faults.failing_calls(contender, root) if name == "mindmoe" else None
        ),
    }
