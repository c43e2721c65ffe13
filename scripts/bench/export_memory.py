"""Peak memory of exporting a synthetic model of the shape of gpt-oss-20b, beside its largest tensor.

Usage: export_memory.py FOLDER [--form mxfp4] [--layers 24]. Weights are made up row by row, so nothing else takes
memory; the folder is deleted afterwards.
"""

import argparse
import resource
import shutil
import time
from math import prod
from pathlib import Path

import numpy as np

from mindmoe.config.load import load_config
from mindmoe.interop.export import export, plan, predicted_size, weight_shapes


class Synthetic:
    """Weights that are computed when they are asked for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes
        self.noise = np.random.default_rng(0).standard_normal(2**20, np.float32) * np.float32(0.02)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows: the same noise again and again, scaled by the row."""
        shape = (stop - start, *self.shapes[name][1:])
        return np.resize(self.noise, shape) * np.float32(1 + start % 7)


def main() -> None:
    """Exports and prints time, size and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=("bf16", "mxfp4"), default="mxfp4")
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    run = load_config("configs/gpt-oss-20b.yaml", [f"model.num_hidden_layers={args.layers}", "parallel.pp=1"])
    shapes = weight_shapes(run.model, run.moe)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    error = export(Synthetic(shapes), args.folder, run.model, run.moe, args.form)
    seconds = time.perf_counter() - started
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    written = sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))
    shutil.rmtree(args.folder)
    assert written == predicted_size(plan(shapes, args.form)), "the size was predicted wrongly"
    stored = max(target.nbytes for part in plan(shapes, args.form) for ts in part.targets.values() for target in ts)
    largest = 4 * max(map(prod, shapes.values()))
    print(f"{args.layers} layers as {args.form}: {written / 2**30:.2f} GiB in {seconds:.0f} s")
    mib = 2**20
    print(f"extra memory {extra / mib:.0f} MiB; largest tensor {largest / mib:.0f} MiB fp32, {stored / mib:.0f} stored")
    if error.count:
        print(f"relative RMS error {error.relative_rms:.4f}")


if __name__ == "__main__":
    main()
