"""One contender as a process: builds its step, then runs as many steps as it is asked for, line by line.

Usage: contender.py NAME SIZE THREADS
SIZE is a name of sizes.py or a size as JSON. Protocol: prints {"first": seconds, "loss": value}; for each number read
from stdin runs that many steps and prints {"seconds": [...], "cpu_seconds": [...]}; at the end of stdin prints
{"peak_bytes": ...}.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sizes import SIZES, Size, model_sections

Step = Callable[[], float]


def ours(size: Size, kernels: str, precision: str, threads: int) -> Step:
    """A full step of mindmoe: forward, backward, clipping, AdamW."""
    from mindmoe.host.env import place, quiet_mindspore

    quiet_mindspore(threads)
    from mindmoe.config.run import RunConfig, resolve
    from mindmoe.data.loader import Batch
    from mindmoe.train.setup import build_trainer, start_device

    here = place()
    config = resolve(RunConfig.model_validate(run_sections(size, kernels, precision, threads)), 1)
    start_device(config, here)
    trainer = build_trainer(config, here)
    inputs, labels = tokens(size)
    mask, segments = np.ones(inputs.shape, np.float32), np.zeros(inputs.shape, np.int32)
    batch = Batch(inputs, labels, mask, segments, np.zeros(len(inputs), np.int32))
    count, valid = iter(range(10**9)), float(inputs.size)
    return lambda: trainer.step.run(next(count), [batch], valid, 1e-3, False).loss


def run_sections(size: Size, kernels: str, precision: str, threads: int) -> dict[str, Any]:
    """The run config of a size."""
    return {
        "name": "bench",
        **model_sections(size),
        "train": {
            "steps": 1000,
            "seq_length": size["seq_length"],
            "global_batch_size": size["batch"],
            "micro_batch_size": size["batch"],
            "kernels": kernels,
            "precision": precision,
        },
        "data": {"sources": "none"},
        "launch": {"threads": threads},
    }


def tokens(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The same random rows for everyone."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, size["vocab"], (size["batch"], size["seq_length"] + 1)).astype(np.int32)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def hugging_face(experts: str, precision: str, compiled: bool = False) -> Callable[[Size, int], Step]:
    """Hugging Face's GptOss with these experts and this precision."""

    def build(size: Size, threads: int) -> Step:
        import peers

        return peers.train_step(lambda: peers.hugging_face(size, experts), precision, compiled, threads, tokens(size))

    return build


def plain(precision: str, compiled: bool = False) -> Callable[[Size, int], Step]:
    """The plain PyTorch MoE in this precision."""

    def build(size: Size, threads: int) -> Step:
        import peers

        return peers.train_step(lambda: peers.plain(size), precision, compiled, threads, tokens(size))

    return build


OURS = "mindmoe bf16"
CONTENDERS: dict[str, Callable[[Size, int], Step]] = {
    OURS: lambda size, threads: ours(size, "auto", "bf16", threads),
    "mindmoe fp32": lambda size, threads: ours(size, "auto", "fp32", threads),
    "mindmoe fp32, plain MindSpore ops": lambda size, threads: ours(size, "reference", "fp32", threads),
    "PyTorch MoE, bf16 weights": plain("bf16"),
    "PyTorch MoE, bf16 weights, compiled": plain("bf16", True),
    "PyTorch MoE, autocast": plain("autocast"),
    "PyTorch MoE, autocast, compiled": plain("autocast", True),
    "PyTorch MoE, fp32": plain("fp32"),
    "HF GptOss, grouped GEMM, autocast": hugging_face("grouped_mm", "autocast"),
    "HF GptOss, grouped GEMM, autocast, compiled": hugging_face("grouped_mm", "autocast", True),
    "HF GptOss, grouped GEMM, bf16 weights": hugging_face("grouped_mm", "bf16"),
    "HF GptOss, eager, fp32": hugging_face("eager", "fp32"),
}


def main() -> None:
    """Serves one contender until stdin ends."""
    name, threads = sys.argv[1], int(sys.argv[3])
    size = SIZES[sys.argv[2]] if sys.argv[2] in SIZES else json.loads(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print must not mix with the protocol
    started = time.perf_counter()
    step = CONTENDERS[name](size, threads)
    loss = step()
    print(json.dumps({"first": time.perf_counter() - started, "loss": loss}), file=replies)
    for line in sys.stdin:
        seconds, cpu_seconds = [], []
        for _ in range(int(line)):
            began, began_cpu = time.perf_counter(), time.process_time()
            step()
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - began_cpu)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), file=replies)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=replies)


if __name__ == "__main__":
    main()
