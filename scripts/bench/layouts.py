"""Step time and peak memory of a rank under layouts of 1, 2 and 4 ranks that share a batch and this machine's cores.

The layouts take turns, each time in new processes. layouts.py [--layouts dp2 ...] [--rows N] [--rounds N] [--out FILE]
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

from contender import run_sections
from sizes import TINY
from warm import machine, write_figures

from mindmoe.config.load import dump_config
from mindmoe.config.run import RunConfig
from mindmoe.equiv.layouts import LayoutRun, parse_layout
from mindmoe.host.env import worker_environment
from mindmoe.launch.local import free_port

MICRO = 4  # sequences of a micro-batch over all ranks
ONE = ["dp1", "selective", "full"]
TWO = ["dp2", "dp2,ep2", "dp2,ep2,all_gather", "tp2", "pp2", "cp2,ulysses", "cp2,ring", "dp2,zero1", "dp2,zero2"]
TWO += ["dp2,zero3"]
FOUR = ["dp4", "dp4,ep4", "tp4,etp1,ep4", "pp4", "dp2,tp2", "tp2,pp2", "dp4,ep4,zero1"]


def base_config(rows: int = 16) -> RunConfig:
    """The run on one process, op by op."""
    sections = run_sections(TINY, "auto", "bf16", 0)
    sections["train"] |= {"global_batch_size": rows, "micro_batch_size": MICRO, "mode": "pynative"}
    return RunConfig.model_validate(sections)


def run(layout: LayoutRun, steps: int, threads: int) -> dict[str, Any]:
    """One turn of a layout: seconds of its steps on rank 0, and the largest peak of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "run.yaml")
        config.write_text(dump_config(layout.config), encoding="utf-8")
        words = [str(Path(__file__).with_name("rank.py")), str(config), str(steps), folder]
        command = [sys.executable, *words]
        if layout.world > 1:
            command = [
                *(sys.executable, "-m", "mindspore.parallel.cluster.run", "--join=True", f"--log_dir={folder}"),
                *(f"--worker_num={layout.world}", f"--local_worker_num={layout.world}", "--tail_worker_log=-1"),
                *(f"--master_port={free_port('127.0.0.1')}", *words),
            ]
        environment = worker_environment(threads, layout.world, str(Path(sys.executable).parent))
        subprocess.run(command, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    return {
        "seconds": ranks[0]["seconds"],
        "cpu_seconds": ranks[0]["cpu_seconds"],
        "peak_bytes": max(rank["peak_bytes"] for rank in ranks),
    }


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layouts", nargs="+", default=[*ONE, *TWO, *FOUR])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    layouts = [parse_layout(text, base_config(args.rows)) for text in args.layouts]
    about = machine(threads)
    turns: dict[str, list[dict[str, Any]]] = {layout.name: [] for layout in layouts}
    for _ in range(args.rounds):
        for layout in layouts:
            turns[layout.name].append(run(layout, args.steps, max(1, threads // layout.world)))
            row = figures(layout, turns[layout.name])
            peak = row["peak_bytes"] / 2**30
            print(f"{layout.name:<22} {layout.world} ranks {row['median_s']:7.3f} s {peak:6.2f} GiB a rank", flush=True)
            rows = [figures(known, turns[known.name]) for known in layouts if turns[known.name]]
            write_figures(args.out, "layouts", "tiny", {"machine": about, "rows": rows})


def figures(layout: LayoutRun, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """What the turns of a layout come to."""
    seconds = [second for turn in turns for second in turn["seconds"]]
    return {
        "name": layout.name,
        "ranks": layout.world,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "tokens_per_s": layout.config.train.global_batch_size * TINY["seq_length"] / statistics.median(seconds),
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
    }


if __name__ == "__main__":
    main()
