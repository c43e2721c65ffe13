"""Faults for a rank of a launch under test: imported by every Python process that has this folder on its path.

A file `FAULT_FOLDER/rank_R.KIND` makes rank R fail the next time it reads data: `raise` raises, `sleep` never returns,
and `deadlock` takes a lock twice.
"""

import os
import sys
import threading
import time
from pathlib import Path


def _fail(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("injected fault")
    if kind == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    time.sleep(3600)


def _watch(folder: Path, rank: str) -> None:
    """Waits for the order, then breaks the reader of this process."""
    while not (orders := list(folder.glob(f"rank_{rank}.*"))) or "mindmoe.train.loop" not in sys.modules:
        time.sleep(0.05)
    loader = sys.modules["mindmoe.data.loader"]
    loader.TokenBatches.batch = lambda *_: _fail(orders[0].suffix[1:])


if "FAULT_FOLDER" in os.environ and os.environ.get("MS_ROLE") == "MS_WORKER":
    place = (Path(os.environ["FAULT_FOLDER"]), os.environ["RANK_ID"])
    threading.Thread(target=_watch, args=place, daemon=True).start()
