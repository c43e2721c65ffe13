"""Trains golden runs on one rank and writes what it saw: `program.py FOLDER`, which holds jobs.json.

A job is `{"name", "words", "noise", "draw", "ulp"}`: `words` are the settings that differ from base.yaml; with `noise`
every weight is multiplied before every step by 1 + noise * u, u uniform in [-1, 1], equal under any layout and another
one for each `draw`; `ulp` names a weight whose first element begins one ulp higher.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.host.env import Place, is_scheduler, place
from mindmoe.parallel.groups import serve
from mindmoe.train.preflight import open_batches


def main(folder: Path) -> None:
    """Runs all jobs one after the other in this process."""
    if is_scheduler():
        serve("cpu")
        return
    at = place()
    for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
        run_job(job, at, folder, first=number == 0)


def run_job(job: dict[str, Any], at: Place, folder: Path, first: bool) -> None:
    """Trains a run and writes NAME.RANK.npz.

    Keys: `series` (steps, 4) loss, gradient norm, auxiliary and z loss; `counts` (steps, layers, experts), empty in a
    dense model; `eval` (); `kernels`; and `MOMENT|NAME|OFFSET|SHAPE`, the boxes of the state at `start` and `end`.
    """
    from mindmoe.train.evaluate import Evaluator
    from mindmoe.train.loop import Loop
    from mindmoe.train.setup import build_trainer, start_device

    config = resolve(load_config(Path(__file__).with_name("base.yaml"), job["words"]), at.world)
    if first:
        start_device(config, at)
    trainer = build_trainer(config, at)
    evaluator = Evaluator(trainer.step, config, open_batches(config, "valid"), trainer.mesh, trainer.at)
    saver: Any = None  # nothing is saved
    loop = Loop(trainer, open_batches(config, "train"), evaluator, saver, sink=lambda record: None)
    if "ulp" in job:
        raise_by_an_ulp(trainer, job["ulp"])
    record, series, counts = boxes(trainer, "start"), [], []
    for step in range(config.train.steps):
        if "noise" in job:
            shake(trainer, job["noise"], f"{job['draw']} {step}")
        result = loop.step(step, False)
        series.append([result.loss, result.grad_norm, result.aux_loss, result.z_loss])
        counts.append(result.routing.counts if result.routing is not None else np.zeros((0, 0)))
    record |= boxes(trainer, "end")
    record["series"], record["counts"] = np.array(series), np.array(counts).round().astype(np.int64)
    record["eval"] = np.array(evaluator.run(config.train.steps)["loss"])
    record["kernels"] = np.array(trainer.kernels.name)
    np.savez(folder / f"{job['name']}.{at.rank}.npz", **record)


def boxes(trainer: Any, moment: str) -> dict[str, np.ndarray]:
    """What this rank holds of the state, copied."""
    found = {}
    for held in trainer.state:
        offset, shape = (",".join(map(str, numbers)) for numbers in (held.box.offset, held.spec.shape))
        found[f"{moment}|{held.spec.name}|{offset}|{shape}"] = held.param.asnumpy().copy()
    return found


def raise_by_an_ulp(trainer: Any, name: str) -> None:
    """Moves the first element of a tensor, which one process holds whole, to the next number."""
    (held,) = (held for held in trainer.state if held.spec.name == name)
    value = held.param.asnumpy().copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(np.inf))
    assign(held.param, value)
    trainer.publish()


def shake(trainer: Any, noise: float, seed: str) -> None:
    """Multiplies every element of the model's state by 1 + noise * u, u uniform in [-1, 1]."""
    for held in trainer.state:
        value = held.param.asnumpy()
        if value.dtype != np.float32 or held.spec.name.startswith("adam_"):
            continue
        key = int.from_bytes(hashlib.sha256(f"{seed} {held.spec.name}".encode()).digest()[:16], "little")
        words = np.random.Philox(key=key).random_raw(int(np.prod(held.spec.shape, dtype=np.int64)))
        u = (words.astype(np.float64) / 2.0**63 - 1.0).reshape(held.spec.shape)
        assign(held.param, value * (1 + noise * u[held.box.index]).astype(np.float32))
    trainer.publish()


def assign(param: Any, value: np.ndarray) -> None:
    """Gives a parameter another value in place."""
    from mindspore import Tensor, ops

    ops.assign(param, Tensor(np.ascontiguousarray(value)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
