"""How our step time grows: with experts at equal active parameters, sequence length, and layers.

Every curve is one interleaved run of its own. scaling.py [--curves experts ...] [--rounds N] [--out FILE]
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from contender import OURS
from sizes import TINY, Size, train_flops
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


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    about = machine(threads)
    for name in args.curves:
        rows = curve(CURVES[name], args.rounds, threads)
        for row in rows:
            print(f"{name:<10} {row['name']:<28} {row['median_s']:.3f} s {row['tokens_per_s']:,.0f} tokens/s")
        write_figures(args.out, "scaling", name, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
