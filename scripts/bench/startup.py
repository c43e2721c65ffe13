"""Time from the start of a process to the end of its first step, by number of layers: startup.py [--layers N ...]."""

import argparse
import json
import os
from pathlib import Path

from contender import OURS
from sizes import TINY
from warm import Warm, machine, write_figures


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12, 36])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    rows = []
    for layers in args.layers:
        size = {**TINY, "layers": layers, "seq_length": 128, "batch": 1, "experts": 8}
        process = Warm(["contender.py", OURS, json.dumps(size), str(threads)], threads)
        process.finish()
        first, whole = process.ready["first"], process.ready["process_s"]
        rows.append({"layers": layers, "first_step_s": first, "process_s": whole})
        print(f"{layers} layers: first step after {first:.1f} s, {whole:.1f} s after the start of the process")
    write_figures(args.out, "startup", "layers", {"machine": machine(threads), "rows": rows})


if __name__ == "__main__":
    main()
