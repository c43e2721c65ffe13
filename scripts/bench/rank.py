"""One rank of mindmoe steps over several processes: `rank.py CONFIG STEPS FOLDER`, alone or under msrun.

Writes rank-R.json: the seconds of each step without the first two, by the clock and of
processor time, and the peak of this process's memory.
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Runs the steps on random tokens."""
    from mindmoe.host.env import is_scheduler, place, quiet_mindspore

    here = place()
    quiet_mindspore(1)
    from mindmoe.config.load import load_config
    from mindmoe.data.loader import Batch
    from mindmoe.parallel.groups import serve
    from mindmoe.train.setup import build_trainer, start_device

    if is_scheduler():
        serve("cpu")
        return
    config, steps = load_config(sys.argv[1]), int(sys.argv[2])
    start_device(config, here)
    trainer = build_trainer(config, here)
    train = config.train
    shape = (train.global_batch_size, train.seq_length + 1)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.int32)
    rows, valid = train.micro_batch_size, float(train.global_batch_size * train.seq_length)
    ones, zeros = np.ones((rows, train.seq_length), np.float32), np.zeros((rows, train.seq_length), np.int32)
    rest = (ones, zeros, np.zeros(rows, np.int32))
    batches = [
        Batch(tokens[start : start + rows, :-1].copy(), tokens[start : start + rows, 1:].copy(), *rest)
        for start in range(trainer.at.dp * rows, train.global_batch_size, trainer.mesh.dp * rows)
    ]
    seconds, busy = [], []
    for step in range(steps + 2):
        began, worked = time.perf_counter(), time.process_time()
        trainer.step.run(step, batches, valid, 1e-3, stop=False)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    figures = {"seconds": seconds[2:], "cpu_seconds": busy[2:], "peak_bytes": int(peak[1]) * 1024}
    Path(sys.argv[3], f"rank-{here.rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
