"""Contenders as warm processes that take turns, and what the machine is and can do."""

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


class Ended(Exception):
    """A contender's process is no more; says what it said last."""


class Warm:
    """A process that has made its first step and runs more on demand; see contender.py for the protocol."""

    def __init__(self, command: list[str], threads: int, extra: dict[str, str] | None = None):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOG_v": "3", **(extra or {})}
        self.name, self.threads = command[1], threads
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        script = Path(__file__).with_name(command[0])
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(script), *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.ready = {**self.reply(), "process_s": time.perf_counter() - started}

    def reply(self) -> Any:
        """The next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise Ended(f"{self.name} ended with code {self.process.wait()}:\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def ask(self, count: int) -> Any:
        """The answer to a number on stdin."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which its missing reply tells
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        return self.reply()

    def finish(self) -> dict[str, Any]:
        """Ends the process; what it says last."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last: dict[str, Any] = self.reply()
        self.process.wait()
        return last

    def turn(self, steps: int) -> None:
        """A few steps; the first of them fills caches again and is not kept."""
        reply = self.ask(steps + 1)
        self.seconds += reply["seconds"][1:]
        self.cpu_seconds += reply["cpu_seconds"][1:]

    def end(self) -> dict[str, Any]:
        """Ends the process; its figures."""
        return {
            "name": self.name,
            "threads": self.threads,
            "median_s": statistics.median(self.seconds),
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "cpu_median_s": statistics.median(self.cpu_seconds),
            "steps": len(self.seconds),
            "first_step_s": self.ready["first"],
            "process_s": self.ready["process_s"],
            "first_loss": self.ready["loss"],
            **self.finish(),
        }


def take_turns(contenders: list[Warm], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Figures of contenders that ran `rounds` turns of `steps` steps each, one after the other.

    One that ends before has a row of its name and its end, and the others go on without it.
    """
    ends: dict[str, str] = {}
    rows = []
    for turn in range(rounds + 1):
        for contender in contenders:
            try:
                if contender.name not in ends and turn < rounds:
                    contender.turn(steps)
                elif contender.name not in ends:
                    rows.append(contender.end())
            except Ended as error:
                ends[contender.name] = str(error)
    return rows + [{"name": name, "ended": end} for name, end in ends.items()]


def start_together(commands: list[list[str]], threads: int) -> tuple[list[Warm], dict[str, str], list[list[str]]]:
    """Starts contenders one after the other while the memory has room for another one like the largest so far.

    Returns:
        Those that run, how others ended, and the commands for which there is no room beside them.
    """
    running: list[Warm] = []
    ends: dict[str, str] = {}
    for place, command in enumerate(commands):
        largest = max((resident(each.process.pid) for each in running), default=0)
        if running and available() < 1.5 * largest:
            return running, ends, commands[place:]
        try:
            running.append(Warm(command, threads))
        except Ended as error:
            ends[command[1]] = str(error)
    return running, ends, []


def available() -> int:
    """Memory that a new process could have [bytes]."""
    return kilobytes(Path("/proc/meminfo"), "MemAvailable")


def resident(pid: int) -> int:
    """The most memory that a process has had [bytes]."""
    return kilobytes(Path(f"/proc/{pid}/status"), "VmHWM")


def kilobytes(file: Path, key: str) -> int:
    """A figure of a file of /proc [bytes]."""
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def write_figures(out: Path | None, part: str, name: str, figures: dict[str, Any]) -> None:
    """Puts figures under their part and name into a JSON file that may have others already."""
    if out is None:
        return
    known = json.loads(out.read_text()) if out.is_file() else {}
    known.setdefault(part, {})[name] = figures
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """The processor, the load, the versions, and the rates of oneDNN's products on all threads [FLOP/s]."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    names = ("mindspore", "torch", "transformers")
    return {
        "processor": next(models, platform.machine()),
        "threads": threads,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in names if find_spec(name)},
        "peak_flops": gemm_peaks(threads),
    }


def tile_peak(threads: int, repeats: int = 15) -> float:
    """Best rate of the pack's bf16 product (1024 rows a thread, 1024, 1024) on the tile unit [FLOP/s], 0 without."""
    from mindmoe.ops.cpu.build import best_isa, library

    pack = ctypes.CDLL(str(library(best_isa())))
    if not pack.mindmoe_use_tiles(1):
        return 0.0
    pack.mindmoe_set_threads(threads)
    n, rows = 1024, 1024 * threads
    ones, none = np.full((rows, n), 0x3F80, np.uint16), np.zeros(1, np.float32)
    settings, y = np.array([1, 0, 0], np.float64), np.zeros((rows, n), np.uint16)  # bf16, no bias, no residual
    arrays = [ones, np.ones((n, n), np.float32), none, none, settings, y]
    names = {"uint16": b"bfloat16", "float32": b"float32", "float64": b"float64"}
    count = len(arrays)
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    arguments = (
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes)),
        (ctypes.c_char_p * count)(*(names[array.dtype.name] for array in arrays)),
    )
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        if pack.linear_forward(*arguments, None, None):
            raise RuntimeError("linear_forward failed")
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows * n * n / best


def gemm_peaks(threads: int, repeats: int = 15) -> dict[str, float]:
    """Best rates of (1024, 1024, 1024) products on every thread at once, fp32 and bf16 [FLOP/s].

    Of MindSpore's oneDNN, or in bf16 of the pack's own product where that is the faster.
    """
    spec = find_spec("mindspore")
    assert spec is not None and spec.origin is not None
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libdnnl.so*"))))
    n = 1024
    size, letter, one, zero = ctypes.c_int64(n), ctypes.c_char(b"N"), ctypes.c_float(1), ctypes.c_float(0)
    rates = {}
    for name, entry, dtype in (("fp32", "dnnl_sgemm", np.float32), ("bf16", "dnnl_gemm_bf16bf16f32", np.uint16)):
        one_bits = np.full((n, n), 0x3F80 if dtype == np.uint16 else 1, dtype)  # 1.0 in either format
        operands = [[one_bits.copy(), one_bits.copy(), np.zeros((n, n), np.float32)] for _ in range(threads)]
        product = getattr(library, entry)

        def run(abc: list[np.ndarray], product: Any = product) -> None:
            a, b, c = (ctypes.c_void_p(x.ctypes.data) for x in abc)
            for _ in range(5):
                product(letter, letter, size, size, size, one, a, size, b, size, zero, c, size)

        best = float("inf")
        with ThreadPoolExecutor(threads) as workers:
            for _ in range(repeats):
                started = time.perf_counter()
                list(workers.map(run, operands))
                best = min(best, time.perf_counter() - started)
        rates[name] = threads * 5 * 2 * n**3 / best
    rates["bf16"] = max(rates["bf16"], tile_peak(threads))
    return rates
