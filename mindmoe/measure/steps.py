"""Times whole steps of models so small that little but MindSpore's and Python's own time is left; prints JSON.

Rows of (layers, micro-batches, seconds by processor time of one thread), and the memory of the process.
"""

import json
import resource
import sys
import time
from typing import Any

from mindmoe.env import place, quiet_mindspore

MODEL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 32,
    "sliding_window": 16,
}
EXPERTS, TOP_K, LENGTH = 4, 2, 32
RUNS = ((2, 1), (6, 1), (2, 4))  # layers, micro-batches
_STEPS = 12


def sections(layers: int, micro_batches: int) -> dict[str, Any]:
    """The config of one run."""
    return {
        "name": "measure",
        "model": {**MODEL, "num_hidden_layers": layers},
        "moe": {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "balance": {}},
        "train": {
            "steps": 1000,
            "seq_length": LENGTH,
            "global_batch_size": micro_batches,
            "micro_batch_size": 1,
            "precision": "bf16",
            "mode": "pynative",
        },
        "data": {"sources": "none"},
        "launch": {"threads": 1},
    }


def main() -> int:
    """Runs all of them."""
    quiet_mindspore(1)
    import numpy as np

    from mindmoe.config import RunConfig, resolve
    from mindmoe.data.loader import Batch
    from mindmoe.train.setup import build_trainer, start_device

    here, rows = place(), []
    configs = {run: resolve(RunConfig.model_validate(sections(*run)), 1) for run in RUNS}
    start_device(configs[RUNS[0]], here)
    for (layers, micro_batches), config in configs.items():
        trainer = build_trainer(config, here)
        ids, ones = np.zeros((1, LENGTH), np.int32), np.ones((1, LENGTH), np.float32)
        batch = Batch(ids, ids, ones, ids, np.zeros(1, np.int32))
        times = []
        for step in range(_STEPS):
            began = time.process_time()
            trainer.step.run(step, [batch] * micro_batches, float(LENGTH), 1e-3, False)
            times.append(time.process_time() - began)
        rows.append((layers, micro_batches, min(times)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"rows": rows, "process_bytes": peak}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
