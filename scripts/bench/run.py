"""`make bench`: tokens/s of full train steps, ours and the peers', side by side in one interleaved run.

All contenders stay warm and take turns, so that noise of the machine falls on everyone. Prints a table of medians with
minimum and maximum, and writes the figures as JSON. Usage: run.py [--sizes tiny ...] [--rounds N] [--out FILE]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contender import CONTENDERS
from rich.console import Console
from rich.table import Table
from sizes import SIZES

PEER = "Hugging Face GptOss, PyTorch eager fp32"
STEPS_PER_TURN = 2


class Warm:
    """A contender's process."""

    def __init__(self, name: str, size: str, threads: int):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOG_v": "3"}
        self.name = name
        self.seconds: list[float] = []
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("contender.py")), name, size, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.ready = self.reply()

    def reply(self) -> Any:
        """The next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.name} ended with code {self.process.wait()}:\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def turn(self) -> None:
        """A few steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{STEPS_PER_TURN}\n")
        self.process.stdin.flush()
        self.seconds += self.reply()

    def end(self) -> dict[str, Any]:
        """Ends the process; its peak memory."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = self.reply()
        self.process.wait()
        return peak


def bench(size: str, rounds: int, threads: int, names: list[str]) -> list[dict[str, Any]]:
    """Figures of every contender at a size."""
    warm = [Warm(name, size, threads) for name in names]
    for _ in range(rounds):
        for contender in warm:
            contender.turn()
    tokens = SIZES[size]["batch"] * SIZES[size]["seq_length"]
    rows = []
    for contender in warm:
        steady = contender.seconds[1:]
        rows.append(
            {
                "name": contender.name,
                "size": size,
                "tokens_per_s": tokens / statistics.median(steady),
                "median_s": statistics.median(steady),
                "min_s": min(steady),
                "max_s": max(steady),
                "first_step_s": contender.ready["first"],
                "first_loss": contender.ready["loss"],
                **contender.end(),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], size: str) -> None:
    """One table of a size."""
    peer = next((row for row in rows if row["name"] == PEER), rows[-1])
    shape = ", ".join(f"{key} {value}" for key, value in SIZES[size].items())
    table = Table(title=f"{size}: {shape}", title_justify="left")
    for header in ("full train step", "tokens/s", "vs peer", "median s", "min .. max s", "peak memory", "first step"):
        table.add_column(header, justify="left" if header == "full train step" else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['tokens_per_s']:,.0f}",
            f"{peer['median_s'] / row['median_s']:.2f}x",
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f} .. {row['max_s']:.3f}",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            f"{row['first_step_s']:.1f} s",
        )
    Console(width=140).print(table)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny"], choices=sorted(SIZES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {threads} threads, load {os.getloadavg()[0]:.1f}")
    figures = []
    for size in args.sizes:
        rows = bench(size, args.rounds, threads, args.only)
        show(rows, size)
        figures += rows
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
