"""Training with the pack and with the reference ops, against the spread that seeds alone make.

agreement.py [--steps N] [--seeds N] [--out FILE]

A small mixture learns sequences of a random Markov chain. Each run is one process-wide set of ops, precision and seed;
the figure is the mean loss of the last 20 steps.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from contender import run_sections
from sizes import TINY, Size
from warm import machine, write_figures

SIZE: Size = {**TINY, "hidden": 64, "layers": 2, "experts": 8, "top_k": 2, "expert_width": 64, "heads": 4,
              "head_dim": 16, "vocab": 256, "seq_length": 64, "batch": 8, "window": 16}  # fmt: skip


def markov(steps: int, size: Size) -> np.ndarray:
    """Rows (steps, B, S + 1) of a chain in which each token has four likely successors."""
    rng = np.random.default_rng(5)
    likely = rng.integers(0, size["vocab"], (size["vocab"], 4))
    rows = np.zeros((steps, size["batch"], size["seq_length"] + 1), np.int32)
    rows[..., 0] = rng.integers(0, size["vocab"], rows.shape[:2])
    for i in range(1, rows.shape[2]):
        pick = likely[rows[..., i - 1], rng.choice(4, rows.shape[:2], p=[0.5, 0.25, 0.15, 0.1])]
        rows[..., i] = np.where(rng.random(rows.shape[:2]) < 0.9, pick, rng.integers(0, size["vocab"], rows.shape[:2]))
    return rows


def train(kernels: str, precision: str, seed: int, rows: np.ndarray) -> list[float]:
    """Losses of every step."""
    from mindmoe.config.run import RunConfig, resolve
    from mindmoe.data.loader import Batch
    from mindmoe.host.env import place
    from mindmoe.train.setup import build_trainer

    sections = {**run_sections(SIZE, kernels, precision, 2), "seed": seed}
    config = resolve(RunConfig.model_validate(sections), 1)
    trainer = build_trainer(config, place())
    losses = []
    for step, row in enumerate(rows):
        inputs, labels = row[:, :-1].copy(), row[:, 1:].copy()
        mask, segments = np.ones(inputs.shape, np.float32), np.zeros(inputs.shape, np.int32)
        batch = Batch(inputs, labels, mask, segments, np.zeros(len(inputs), np.int32))
        losses.append(trainer.step.run(step, [batch], float(inputs.size), 3e-3 * min(1, (step + 1) / 20), False).loss)
    return losses


def main() -> None:
    """Parses the command line and runs."""
    from mindmoe.host.env import quiet_mindspore

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    quiet_mindspore(2)
    import mindspore as ms

    ms.set_device("CPU")
    data, about = markov(args.steps, SIZE), machine(2)
    rows: list[dict[str, Any]] = []
    for kernels, precision, seeds in (("cpu", "fp32", args.seeds), ("reference", "fp32", 2), ("cpu", "bf16", 2)):
        for seed in range(seeds):
            losses = train(kernels, precision, seed, data)
            rows.append({"kernels": kernels, "precision": precision, "seed": seed, "losses": losses,
                         "last": statistics.mean(losses[-20:])})  # fmt: skip
            print(f"{kernels:<10} {precision} seed {seed}: {losses[0]:.4f} -> {rows[-1]['last']:.4f}", flush=True)
            write_figures(args.out, "agreement", "markov", {"machine": about, "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
