"""`make bench`: full train steps, ours and the peers', side by side in one interleaved run.

Contenders stay warm and take turns, so that noise of the machine falls on everyone. Where the memory does not hold all
of them, peers come in groups, each with ours in its middle, and a peer is compared with ours of its own group.

    run.py [--sizes tiny ...] [--rounds N] [--together N] [--only NAME ...] [--out FILE]
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from contender import CONTENDERS, OURS
from rich.console import Console
from rich.table import Table
from sizes import SIZES, train_flops
from warm import machine, start_together, take_turns, write_figures


def bench(size: str, names: list[str], together: int, rounds: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """Figures of contenders at a size: ours from its first group, and each with its speed against ours beside it."""
    left = [["contender.py", name, size, str(threads)] for name in names if name != OURS]
    rows: list[dict[str, Any]] = []
    ended: dict[str, str] = {}
    while left or not rows:
        group, later = left[:together], left[together:]
        warm, ends, refused = start_together([["contender.py", OURS, size, str(threads)], *group], threads)
        if OURS in ends:
            sys.exit(ends[OURS])
        if group and len(refused) == len(group):  # a single one beside ours, even if the memory may not hold it
            alone, more, _ = start_together(refused[:1], threads)
            warm, ends, refused = warm + alone, ends | more, refused[1:]
        left, ended = [*refused, *later], ended | ends
        measured = {row["name"]: row for row in take_turns(warm, rounds, steps)}
        ended |= {name: row["ended"] for name, row in measured.items() if "ended" in row}
        ours = measured.pop(OURS)
        if "ended" in ours:
            sys.exit(ours["ended"])
        rows += [] if rows else [{**ours, "slower_than_ours": 1.0}]
        others = [row for row in measured.values() if "ended" not in row]
        rows += [{**row, "slower_than_ours": row["median_s"] / ours["median_s"]} for row in others]
    tokens, flops = SIZES[size]["batch"] * SIZES[size]["seq_length"], train_flops(SIZES[size])
    figures = [
        {**row, "size": size, "tokens_per_s": tokens / row["median_s"], "flops_per_s": flops / row["median_s"]}
        for row in rows
    ]
    return figures + [{"name": name, "size": size, "ended": end} for name, end in ended.items()]


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
        if "ended" in row:
            table.add_row(row["name"], "ended", *["-"] * 6)
            print(row["ended"])
            continue
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
