"""`make bench`: full train steps, ours and the peers', side by side in one interleaved run.

Contenders stay warm and take turns, so that noise of the machine falls on everyone. Where the memory does not hold all
of them, peers come in groups, each with ours in its middle, and a peer is compared with ours of its own group.

    run.py [--sizes tiny ...] [--rounds N] [--together N] [--only NAME ...] [--out FILE]
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from contender import CONTENDERS, OURS
from rich.console import Console
from rich.table import Table
from sizes import SIZES, train_flops
from warm import Warm, machine, take_turns, write_figures


def bench(size: str, names: list[str], together: int, rounds: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """Figures of contenders at a size: ours from its first group, and each with its speed against ours beside it."""
    peers = [name for name in names if name != OURS]
    rows: list[dict[str, Any]] = []
    for begin in range(0, len(peers), together):
        group = [OURS, *peers[begin : begin + together]]
        warm = [Warm(["contender.py", name, size, str(threads)], threads) for name in group]
        ours, *others = take_turns(warm, rounds, steps)
        rows += [{**row, "slower_than_ours": row["median_s"] / ours["median_s"]} for row in others]
        if begin == 0:
            rows.insert(0, {**ours, "slower_than_ours": 1.0})
    tokens, flops = SIZES[size]["batch"] * SIZES[size]["seq_length"], train_flops(SIZES[size])
    return [
        {**row, "size": size, "tokens_per_s": tokens / row["median_s"], "flops_per_s": flops / row["median_s"]}
        for row in rows
    ]


def show(rows: list[dict[str, Any]], size: str, peaks: dict[str, float]) -> None:
    """One table of a size."""
    shape = ", ".join(f"{key} {value}" for key, value in SIZES[size].items())
    table = Table(title=f"{size}: {shape}", title_justify="left")
    for header in (
        "full train step",
        "tokens/s",
        "x ours",
        "median s",
        "min .. max s",
        "memory",
        "first step",
        "of peak",
    ):
        table.add_column(header, justify="left" if header == "full train step" else "right")
    for row in rows:
        peak = peaks["fp32" if "fp32" in row["name"] else "bf16"]
        table.add_row(
            row["name"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['slower_than_ours']:.2f}",
            f"{row['median_s']:.3f}",
            f"{row['min_s']:.3f} .. {row['max_s']:.3f}",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            f"{row['first_step_s']:.1f} s",
            f"{100 * row['flops_per_s'] / peak:.0f} %",
        )
    Console(width=150).print(table)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny"], choices=sorted(SIZES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--together", type=int, default=4, help="peers warm at a time")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--out", type=Path, help="JSON file; figures that it has already are kept, but for these sizes")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    about = machine(threads)
    print(json.dumps(about))
    for size in args.sizes:
        rows = bench(size, args.only, args.together, args.rounds, args.steps, threads)
        show(rows, size, about["peak_flops"])
        write_figures(args.out, "train", size, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
