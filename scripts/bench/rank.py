"""One rank of mindmoe steps over several processes: `rank.py SIZE STEPS FILE` under msrun; rank 0 writes the file."""

import json
import os
import sys
import time
from pathlib import Path

from contender import ours
from sizes import SIZES


def main() -> None:
    """Runs the steps and keeps their times, without the first two."""
    size, steps, file = SIZES[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3])
    step = ours(size, "auto", "bf16", 1)
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    if os.environ["RANK_ID"] == "0":
        file.write_text(json.dumps(seconds[2:]))


if __name__ == "__main__":
    main()
