"""`mindmoe doctor --measure`: runs the timings in processes of their own and writes the hardware file (dry)."""

import errno
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from mindmoe.host.env import usable_cores, worker_environment
from mindmoe.host.errors import UserError
from mindmoe.launch.local import free_port
from mindmoe.observe.environment import cpu_model, disk_rate, memory
from mindmoe.plan.hardware import Hardware, measured_file
from mindmoe.proof.measure.fit import describe

_RANKS = (2, 4)
_TIMEOUT = 300.0  # [s] of one process
_BUSY = 0.3  # load per core above which figures suffer


def measure(out: Path | None) -> int:
    """Measures this machine and writes what `--hardware` and `launch.hardware` read.

    Args:
        out: the file; None for the place where the name "this machine" finds it.

    Returns:
        Exit code 0.

    Raises:
        UserError: a timing failed, or the file cannot be written.
    """
    target, cores = out or measured_file(), usable_cores()
    disk = _place_for(target)  # before minutes are spent on what could not be kept
    load = os.getloadavg()[0] / cores
    if load > _BUSY:
        _tell(
            f"other programs use this machine (load {load:.1f} a core): figures will be low; measure again when quiet"
        )
    started = perf_counter()
    _tell("1/4 ops of the pack, one core (about 40 s)")
    kernels = _json(_run([sys.executable, "-m", "mindmoe.proof.measure.kernels"], 1, 1))
    _tell("2/4 steps of small models")
    steps = _json(_run([sys.executable, "-m", "mindmoe.proof.measure.steps"], 1, 1))
    verbs: list[Any] = []
    for place, ranks in enumerate(_RANKS):
        _tell(f"{place + 3}/4 collectives of {ranks} ranks")
        verbs += _verbs(ranks, max(1, cores // ranks))
    unit = statistics.median([*kernels["yardstick"], *steps["yardstick"]])
    for timings in (kernels, steps):
        timings["rows"] = [(*row[:-1], row[-1] * unit) for row in timings["rows"]]
    about = {"processor": cpu_model(), "memory": memory("MemTotal") or 2**33, "disk": disk}
    hardware = describe(kernels, verbs, steps, about)
    write(hardware, target)
    _show(hardware)
    _tell(f"wrote {target} after {perf_counter() - started:.0f} s; plan with: mindmoe plan CONFIG --cards N --hardware "
          + ("'this machine'" if out is None else str(target)))  # fmt: skip
    return 0


def write(hardware: Hardware, target: Path) -> None:
    """Writes a hardware file that `load_hardware` reads.

    Raises:
        UserError: it cannot be written.
    """
    content = yaml.safe_dump(hardware.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
    head = "# Written by `mindmoe doctor --measure`; mindmoe/plan/hardware.py and host.py say what each figure is.\n"
    unfinished = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(head + content, encoding="utf-8")
        unfinished.replace(target)  # whole or not at all: an older file stays until then
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise UserError(f"cannot write {target} ({error.strerror})", "give another place with --out") from None


def _place_for(target: Path) -> float:
    """Makes the folder of a file and returns how fast its disk is [bytes/s].

    Raises:
        UserError: nothing can be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return disk_rate(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror})", "give another place with --out") from None


def _verbs(ranks: int, threads: int) -> list[Any]:
    """Timings of collectives with so many ranks on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "mindspore.parallel.cluster.run", "--join=True", f"--log_dir={folder}"),
            *(f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--tail_worker_log=-1"),
            *(f"--master_port={free_port('127.0.0.1')}", str(Path(__file__).with_name("ranks.py")), folder),
        ]
        _run(command, threads, ranks)
        return _json(Path(folder, f"verbs-{ranks}.json").read_text(encoding="utf-8"))


def _run(command: list[str], threads: int, ranks: int) -> str:
    """What a command prints to stdout.

    Raises:
        UserError: it failed, or took too long.
    """
    environment = worker_environment(threads, ranks, str(Path(sys.executable).parent))
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        printed, errors = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UserError(f"a timing took longer than {_TIMEOUT:.0f} s", "measure on a quiet machine") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # msrun's ranks, should it have left some
    if process.returncode:
        last = (errors.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"a timing ended with code {process.returncode} ({last[:200]})", "run `mindmoe doctor` first")
    return printed


def _json(text: str) -> Any:
    """The last line of a text as JSON."""
    return json.loads(text.strip().splitlines()[-1])


def _show(hardware: Hardware) -> None:
    """The main figures."""
    host = hardware.host
    assert host is not None
    peaks = ", ".join(f"{1e3 * rate:,.0f} GFLOP/s {name}" for name, rate in hardware.peak_tflops.items())
    _tell(f"products: {peaks} on {host.cores} cores (together {host.scaling:.0%} of what they do alone)")
    for precision, ops in host.ops.items():
        for name, both in ops.items():
            _tell(f"  {precision} {name:<16} {both.forward!s:<46} backward {both.backward!s}")
    for entry in host.verbs:
        _tell(f"  {entry.verb:<16} {entry.size} of {entry.ranks} ranks: {entry.rate!s}")
    _tell(f"  around ops: {host.layer_us / 1e3:.1f} ms a layer, {host.micro_batch_us / 1e3:.1f} ms a micro-batch, "
          f"{host.step_us / 1e3:.1f} ms a step; a process without a model {host.process_gib:.2f} GiB")  # fmt: skip


def _tell(line: str) -> None:
    print(line, flush=True)
