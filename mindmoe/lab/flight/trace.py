"""The flight recorder of routing: which experts a batch's tokens went to, one small file a recorded step (dry).

The ranks of the first data replica each write what they know, their layers and their tokens of the first micro-batch,
with no exchange between them; reading puts the files of a step together. Places are stored as they were ranked, so a
smaller k can be replayed.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, open_regular, replace_file, shown

_FILE = re.compile(r"step-(\d{8})-rank-(\d{5})\.npz")
_MOST = 2**30  # decisions of a step that fit a report
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and zipfile raise for files that are none of theirs."""

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
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(folder / name, content.getvalue())


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
    whole, known, sizes = None, np.zeros(0, bool), None
    for path in paths:
        try:
            part = _part(path)
            if sizes is None:
                sizes = part.sizes
            _require(part.sizes == sizes, f"it is of another model than {paths[0].name}")
            layers, length, experts = sizes
            for layer, rows in part.layers.items():
                shape = (layers, rows.shape[0], length, rows.shape[2])
                if whole is None:
                    _require(np.prod(shape, dtype=float) <= _MOST, f"{shape} are too many decisions")
                    whole, known = np.zeros(shape, np.uint16), np.zeros((layers, length), bool)
                _require(whole.shape == shape, f"{shape} does not fit {whole.shape}")
                whole[layer][:, part.positions] = rows
                known[layer, part.positions] = True
        except _DAMAGE as error:
            if isinstance(error, FileError):
                raise
            raise UserError(f"{shown(str(path), 300)} is damaged: {shown(str(error), 200)}", "delete it") from error
    if whole is None or not known.all():
        return None
    return Trace(step=step, ids=whole, num_experts=experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What a rank's file holds: sizes (layers, S, E), positions (S'), and by layer rows (B, S', K)."""

    sizes: tuple[int, int, int]
    positions: np.ndarray
    layers: dict[int, np.ndarray]


def _part(path: Path) -> _Part:
    """A rank's file, everything in it checked.

    Raises:
        FileError: it cannot be read.
        Exception: one of _DAMAGE.
    """
    with open_regular(path, follow=False) as opened, zipfile.ZipFile(opened) as zipped:
        unpacked = sum(member.file_size for member in zipped.infolist())
        _require(unpacked <= 2 * _MOST, f"{unpacked} bytes unpacked are too many")
        with np.load(opened, allow_pickle=False) as file:
            sizes, positions = file["sizes"], file["positions"]
            _require(sizes.shape == (3,) and sizes.dtype.kind == "i" and (sizes > 0).all(), "sizes are no sizes")
            layers, length, experts = (int(size) for size in sizes)
            _require(positions.ndim == 1 and positions.dtype.kind == "i", "positions are no positions")
            _require(((positions >= 0) & (positions < length)).all(), f"a position lies outside {length} tokens")
            found = {}
            for name in (name for name in file.files if name.startswith("layer-")):
                layer, rows = int(name.removeprefix("layer-")), file[name]
                _require(0 <= layer < layers, f"{name} lies outside {layers} layers")
                _require(rows.dtype == np.uint16 and rows.ndim == 3, f"{name} holds no decisions")
                _require(rows.shape[1] == positions.size, f"{name} has {rows.shape[1]} of {positions.size} tokens")
                _require(rows.size > 0 and int(rows.max()) <= experts, f"{name} names no expert below {experts}")
                found[layer] = rows
    return _Part(sizes=(layers, length, experts), positions=positions, layers=found)


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
