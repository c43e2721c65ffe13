"""Times whole steps of small models, to see what MindSpore and Python take around the ops; prints JSON.

The models are small, but what they compute on outgrows the core's cache: between ops that leave the cache to the
interpreter, its own work takes a third of the time that it takes in a real run. Rows of (layers, micro-batches,
processor time of one thread in yardsticks), times of the yardstick, and the memory of the process.
"""

import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mindmoe.host.env import place, quiet_mindspore

if TYPE_CHECKING:
    from mindmoe.config.run import RunConfig
    from mindmoe.proof.measure.yardstick import Yardstick

MODEL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 128,
    "sliding_window": 128,
}
EXPERTS, TOP_K, LENGTH = 8, 2, 1024
RUNS = ((2, 1), (6, 1), (2, 4))  # layers, micro-batches
_FIRST, _STEPS = 2, 10  # the first ones set up
_SHORTEST = 32  # tokens


def sections(layers: int, micro_batches: int, length: int = LENGTH) -> dict[str, Any]:
    """The config of one run."""
    return {
        "name": "measure",
        "model": {**MODEL, "num_hidden_layers": layers},
        "moe": {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "balance": {}},
        "train": {
            "steps": 1000,
            "seq_length": length,
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
    from mindmoe.config.run import RunConfig, resolve
    from mindmoe.train.setup import start_device

    shortest, *configs = (resolve(RunConfig.model_validate(sections(*run)), 1) for run in ((1, 1, _SHORTEST), *RUNS))
    start_device(shortest, place())
    next(seconds_of_steps(shortest))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the process, with hardly a model
    from mindmoe.proof.measure.yardstick import Yardstick

    yardstick = Yardstick()
    rows = [(*run, time_of_step(config, yardstick)) for run, config in zip(RUNS, configs, strict=True)]
    json.dump({"rows": rows, "yardstick": yardstick.seconds, "process_bytes": peak}, sys.stdout)
    return 0


def time_of_step(config: "RunConfig", yardstick: "Yardstick") -> float:
    """Median of some steps [yardsticks]."""
    steps = seconds_of_steps(config)
    for _ in range(_FIRST):
        next(steps)
    return statistics.median(yardstick.in_units(steps.__next__) for _ in range(_STEPS))


def seconds_of_steps(config: "RunConfig") -> Iterator[float]:
    """Processor time of one step after the other [s]."""
    import numpy as np

    from mindmoe.data.loader import Batch
    from mindmoe.train.setup import build_trainer

    trainer, length, count = build_trainer(config, place()), config.train.seq_length, config.train.global_batch_size
    ids, ones = np.zeros((1, length), np.int32), np.ones((1, length), np.float32)
    batch = Batch(ids, ids, ones, ids, np.zeros(1, np.int32))
    for step in itertools.count():
        began = time.process_time()
        trainer.step.run(step, [batch] * count, float(count * length), 1e-3, stop=False)
        yield time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
