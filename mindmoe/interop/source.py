"""Weights by name, read a few rows at a time: from a checkpoint or from a Hugging Face folder, always as fp32."""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mindmoe.checkpoint.chunks import MAX_HEADER, Entry, numpy_dtype, parse_header
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.errors import CheckpointError, UserError
from mindmoe.interop.mxfp4 import dequantize

INDEX = "model.safetensors.index.json"
_BLOCKS, _SCALES = "_blocks", "_scales"
_FLOATS = ("F32", "F16", "BF16", "F64")


class Source(Protocol):
    """Tensors of a model."""

    shapes: dict[str, tuple[int, ...]]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop along the first dimension, fp32."""


def widen(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a safetensors dtype as fp32; exact but for F64."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The bits (u16) of fp32 values rounded to the nearest bfloat16, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = ((bits[nan] >> 16) | np.uint32(0x40)).astype(np.uint16)
    return rounded


class CheckpointSource:
    """The weights of one of our checkpoints; moments are left out."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.shapes = {
            name: tensor.shape for name, tensor in checkpoint.tensors.items() if not name.startswith("adam_")
        }

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows, every byte of them verified."""
        shape = self.shapes[name]
        box = ((start,) + (0,) * (len(shape) - 1), (stop - start, *shape[1:]))
        return widen(self.checkpoint.read({name: box})[name], self.checkpoint.tensors[name].dtype)


@dataclass(frozen=True, slots=True)
class _Stored:
    file: Path
    entry: Entry


class FolderSource:
    """The weights of a Hugging Face folder: floats as they are, MXFP4 experts dequantised under their own name.

    Raises:
        UserError: no weights, damaged files, a dtype that is no float, or blocks without scales.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._stored = _stored_tensors(folder)
        self._fds: dict[Path, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, stored in self._stored.items():
            base, dtype, shape = name.removesuffix(_BLOCKS), stored.entry.dtype, stored.entry.shape
            if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in self._stored:
                continue
            if name.endswith(_BLOCKS):
                self.shapes[base] = self._expert_shape(base, shape)
            elif dtype in _FLOATS:
                self.shapes[name] = shape
            else:
                raise UserError(
                    f"{stored.file}: {name} is stored as {dtype}, which is no weight that is known here",
                    f"save the model as {', '.join(_FLOATS)} or MXFP4",
                )

    def _expert_shape(self, base: str, blocks: tuple[int, ...]) -> tuple[int, ...]:
        scales = self._stored.get(base + _SCALES)
        fits = len(blocks) == 4 and blocks[3] == 16 and scales is not None and scales.entry.shape == blocks[:3]
        tags = {self._stored[base + _BLOCKS].entry.dtype, scales.entry.dtype if scales else ""}
        if not fits or tags != {"U8"}:
            found = f"blocks {blocks} and scales {scales.entry.shape if scales else 'missing'}"
            raise UserError(f"{self.folder}: {base} is no MXFP4 tensor: {found}", "download the folder again")
        return blocks[0], blocks[2] * 32, blocks[1]

    def __enter__(self) -> "FolderSource":
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor."""
        if name in self._stored:
            return widen(self._raw(name, start, stop), self._stored[name].entry.dtype)
        return dequantize(self._raw(name + _BLOCKS, start, stop), self._raw(name + _SCALES, start, stop))

    def _raw(self, name: str, start: int, stop: int) -> np.ndarray:
        stored = self._stored[name]
        entry = stored.entry
        if stored.file not in self._fds:
            self._fds[stored.file] = os.open(stored.file, os.O_RDONLY | os.O_CLOEXEC)
        row = (entry.end - entry.begin) // max(entry.shape[0], 1) if entry.shape else entry.end - entry.begin
        data = bytearray((stop - start) * row)
        done = 0
        while done < len(data):
            got = os.preadv(self._fds[stored.file], [memoryview(data)[done:]], entry.begin + start * row + done)
            if not got:
                raise UserError(f"{stored.file} ends within {name}", "download the folder again")
            done += got
        return np.frombuffer(data, numpy_dtype(entry.dtype)).reshape((stop - start, *entry.shape[1:]))


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    """Where every tensor of the folder lies.

    Raises:
        UserError: there is none, one is in two files, or the index names one that is missing.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors file", "save the model with safe_serialization")
    found: dict[str, _Stored] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name in found:
                raise UserError(f"{name} is in both {found[name].file} and {file}", "remove the file that is left over")
            found[name] = _Stored(file, entry)
    if (folder / INDEX).is_file():
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map", {})
        if missing := sorted(name for name in listed if name not in found):
            raise UserError(
                f"{folder}: {len(missing)} tensors of {INDEX} are in no file, {missing[0]} for example",
                "download the missing files",
            )
    return found


def _header(file: Path) -> dict[str, Entry]:
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, file.stat().st_size - 8):
            raise UserError(f"{file} is no safetensors file", "download it again")
        head = start + stream.read(length)
    try:
        return parse_header(head, file.stat().st_size, file)[0]
    except CheckpointError as error:
        raise UserError(error.message, "download it again") from None
