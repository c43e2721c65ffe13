"""How our step time grows: with experts at equal active parameters, sequence length, layers, and processes.

Every curve is one interleaved run of its own. scaling.py [--curves experts ...] [--rounds N] [--out FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contender import OURS
from sizes import SIZES, TINY, Size, train_flops
from warm import Warm, machine, take_turns, write_figures

CURVES: dict[str, dict[str, Size]] = {
    "experts": {str(count): {**TINY, "experts": count} for count in (8, 32, 128)},
    "sequence": {
        str(length): {**TINY, "seq_length": length, "batch": 4096 // length} for length in (256, 512, 1024, 2048, 4096)
    },
    "layers": {str(count): {**TINY, "layers": count} for count in (2, 4, 8)},
}


def curve(points: dict[str, Size], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Figures of each point."""
    warm = [Warm(["contender.py", OURS, json.dumps(size), str(threads)], threads) for size in points.values()]
    rows = take_turns(warm, rounds, 2)
    return [
        {**row, "name": name, "tokens_per_s": size["batch"] * size["seq_length"] / row["median_s"],
         "flops_per_s": train_flops(size) / row["median_s"]}
        for row, (name, size) in zip(rows, points.items(), strict=True)
    ]  # fmt: skip


def processes(size: str, rounds: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """One process with all threads, and as many processes with one thread each, that share the batch; in turns."""
    from mindmoe.env import worker_environment

    together: list[float] = []
    alone = Warm(["contender.py", OURS, size, str(threads)], threads)
    for turn in range(rounds):
        alone.turn(steps)
        with tempfile.TemporaryDirectory() as folder:
            environment = worker_environment(1, threads, str(Path(sys.executable).parent), f"bench-{os.getpid()}")
            command = [
                *(sys.executable, "-m", "mindspore.parallel.cluster.run", "--join=True", f"--log_dir={folder}"),
                *(f"--worker_num={threads}", f"--local_worker_num={threads}", f"--master_port={23400 + turn}"),
                *(str(Path(__file__).with_name("rank.py")), size, str(steps), f"{folder}/seconds.json"),
            ]
            subprocess.run(command, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL)
            together += json.loads(Path(folder, "seconds.json").read_text())
    tokens = SIZES[size]["batch"] * SIZES[size]["seq_length"]
    one = statistics.median(alone.seconds)
    alone.finish()
    many = statistics.median(together)
    return [
        {"name": f"1 process, {threads} threads", "median_s": one, "tokens_per_s": tokens / one},
        {"name": f"{threads} processes, data parallel", "median_s": many, "tokens_per_s": tokens / many},
    ]


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--curves", nargs="+", default=[*CURVES, "processes"], choices=[*CURVES, "processes"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    about = machine(threads)
    for name in args.curves:
        rows = processes("tiny", 2, 8, threads) if name == "processes" else curve(CURVES[name], args.rounds, threads)
        for row in rows:
            print(f"{name:<10} {row['name']:<28} {row['median_s']:.3f} s {row['tokens_per_s']:,.0f} tokens/s")
        write_figures(args.out, "scaling", name, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
