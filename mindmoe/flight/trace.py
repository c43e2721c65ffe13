"""The flight recorder of routing: which experts a batch's tokens went to, one small file a recorded step (dry).

The ranks of the first data replica each write what they know, their layers and their tokens of the first micro-batch,
with no exchange between them; reading puts the files of a step together. Places are stored as they were ranked, so a
smaller k can be replayed.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindmoe.errors import UserError

_FILE = re.compile(r"step-(\d{8})-rank-(\d{5})\.npz")
FOLDER = "routing"
"""Below the folder of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Decisions of one step.

    Attributes:
        step: done when they were recorded.
        ids: (L, B, S, K) uint16, best first; num_experts where a slot was not used.
        num_experts: E.
    """

    step: int
    ids: np.ndarray
    num_experts: int


def write_trace(
    run: Path,
    step: int,
    rank: int,
    parts: Sequence[tuple[range, np.ndarray]],
    positions: np.ndarray,
    sizes: tuple[int, int, int],
) -> None:
    """Writes what a rank knows.

    Args:
        run: folder of the run.
        step: steps done.
        rank: of this process.
        parts: for each part of the network on this rank its layers and the chosen experts (layers, T, K).
        positions: (S') positions in the sequence of this rank's tokens, T = B * S'.
        sizes: layers of the network, tokens of a sequence, experts.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}-rank-{rank:05d}.npz"
    arrays = {"sizes": np.array(sizes), "positions": positions.astype(np.int32)}
    for layers, ids in parts:
        rows = ids.reshape(len(layers), -1, len(positions), ids.shape[-1]).astype(np.uint16)
        arrays |= {f"layer-{layer}": row for layer, row in zip(layers, rows, strict=True)}
    aside = folder / f".{name}"
    with aside.open("wb") as out:
        np.savez_compressed(out, **arrays)
    os.replace(aside, folder / name)


def recorded_steps(run: Path) -> dict[int, list[Path]]:
    """The files of every recorded step, ascending."""
    found: dict[int, list[Path]] = {}
    for path in sorted((run / FOLDER).glob("step-*.npz")):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), []).append(path)
    return found


def read_traces(run: Path, last: int = 8) -> list[Trace]:
    """The newest `last` complete traces of a run, oldest first.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    traces: list[Trace] = []
    for step, paths in reversed(recorded_steps(run).items()):
        trace = _read(step, paths)
        if trace is not None:
            traces.append(trace)
        if len(traces) == last:
            break
    if not traces:
        raise UserError(
            f"{run} has no recorded routing", "train it with observe.routing_every=100 (steps between two records)"
        )
    return traces[::-1]


def _read(step: int, paths: list[Path]) -> Trace | None:
    """The decisions of a step; None while a rank's file is missing, as after a kill."""
    whole, known = None, np.zeros(0, bool)
    experts = 0
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                layers, length, experts = (int(size) for size in file["sizes"])
                positions = file["positions"]
                for name in file.files:
                    if not name.startswith("layer-"):
                        continue
                    rows, layer = file[name], int(name.removeprefix("layer-"))
                    if whole is None:
                        whole = np.zeros((layers, rows.shape[0], length, rows.shape[2]), np.uint16)
                        known = np.zeros((layers, length), bool)
                    whole[layer][:, positions] = rows
                    known[layer, positions] = True
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{path} is damaged: {error}", "delete it") from error
    if whole is None or not known.all():
        return None
    return Trace(step=step, ids=whole, num_experts=experts)
