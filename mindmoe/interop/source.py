"""Weights by name, read a few rows at a time: from a checkpoint or from a Hugging Face folder, always as fp32."""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from mindmoe.checkpoint.chunks import MAX_HEADER, TensorInfo, parse_header
from mindmoe.checkpoint.dtypes import numpy_dtype
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.host import strict_json
from mindmoe.host.errors import CheckpointError, UserError
from mindmoe.host.files import open_regular, shown
from mindmoe.interop.mxfp4 import dequantize
from mindmoe.parallel.box import Box

INDEX = "model.safetensors.index.json"
_BLOCKS, _SCALES = "_blocks", "_scales"
_FLOATS = ("F32", "F16", "BF16", "F64")
_SINGLE_EXPERT = re.compile(r"(.*\.experts)\.[0-9]+\..*")
_TWO_FORMS = "keep one form: which of them is the model cannot be known"


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
        box = Box.whole(shape).cut(0, start, stop - start)
        return widen(self.checkpoint.read({name: box})[name], self.checkpoint.tensors[name].dtype)


@dataclass(frozen=True, slots=True)
class _Stored:
    file: Path
    entry: TensorInfo


class FolderSource:
    """The weights of a Hugging Face folder: floats as they are, MXFP4 experts dequantised under their own name.

    Files of the folder may be links, as they are in Hugging Face's cache; no name that a file holds leads elsewhere.

    Raises:
        UserError: no weights, damaged files, a dtype that is no float, blocks without scales, or a weight twice.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._stored = _stored_tensors(folder)
        self._files: dict[Path, BinaryIO] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, stored in self._stored.items():
            base, dtype, shape = name.removesuffix(_BLOCKS), stored.entry.dtype, stored.entry.shape
            if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in self._stored:
                continue
            if name.endswith(_BLOCKS):
                if base in self._stored:
                    what = f"{_shown(folder)} holds {shown(base, 100)} both as it is and as MXFP4 blocks"
                    raise UserError(what, _TWO_FORMS)
                self.shapes[base] = self._expert_shape(base, shape)
            elif dtype in _FLOATS:
                self.shapes[name] = shape
            else:
                raise UserError(
                    f"{_shown(stored.file)}: {shown(name, 100)} is stored as {dtype}, which is no weight that is known "
                    "here",
                    f"save the model as {', '.join(_FLOATS)} or MXFP4",
                )
        single = {match[1]: name for name in self.shapes if (match := _SINGLE_EXPERT.fullmatch(name))}
        for name in self.shapes:
            if (at := name.rpartition(".")[0]) in single:
                other = shown(single[at], 100)
                what = f"{_shown(folder)} holds experts one by one ({other}) and together ({shown(name, 100)})"
                raise UserError(what, _TWO_FORMS)

    def _expert_shape(self, base: str, blocks: tuple[int, ...]) -> tuple[int, ...]:
        scales = self._stored.get(base + _SCALES)
        fits = len(blocks) == 4 and blocks[3] == 16 and scales is not None and scales.entry.shape == blocks[:3]
        tags = {self._stored[base + _BLOCKS].entry.dtype, scales.entry.dtype if scales else ""}
        if not fits or tags != {"U8"}:
            found = f"blocks {blocks} and scales {scales.entry.shape if scales else 'missing'}"
            what = f"{_shown(self.folder)}: {shown(base, 100)} is no MXFP4 tensor: {found}"
            raise UserError(what, "download the folder again")
        return blocks[0], blocks[2] * 32, blocks[1]

    def __enter__(self) -> "FolderSource":
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of a tensor."""
        if name in self._stored:
            return widen(self._raw(name, start, stop), self._stored[name].entry.dtype)
        return dequantize(self._raw(name + _BLOCKS, start, stop), self._raw(name + _SCALES, start, stop))

    def _raw(self, name: str, start: int, stop: int) -> np.ndarray:
        stored = self._stored[name]
        entry = stored.entry
        if stored.file not in self._files:
            self._files[stored.file] = open_regular(stored.file)
        row = (entry.end - entry.begin) // max(entry.shape[0], 1) if entry.shape else entry.end - entry.begin
        data = bytearray((stop - start) * row)
        done, fd = 0, self._files[stored.file].fileno()
        while done < len(data):
            try:
                got = os.preadv(fd, [memoryview(data)[done:]], entry.begin + start * row + done)
            except OSError as error:
                what = f"{_shown(stored.file)} cannot be read: {error.strerror}"
                raise UserError(what, "check the disk, or download the folder again") from None
            if not got:
                what = f"{_shown(stored.file)} ends within {shown(name, 100)}"
                raise UserError(what, "download the folder again")
            done += got
        return np.frombuffer(data, numpy_dtype(entry.dtype)).reshape((stop - start, *entry.shape[1:]))


class _Index(BaseModel):
    """model.safetensors.index.json: the file that each tensor lies in."""

    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]


def _stored_tensors(folder: Path) -> dict[str, _Stored]:
    """Where every tensor of the folder lies.

    Raises:
        UserError: there is none, one is in two files, or the index does not fit.
    """
    if not folder.is_dir():
        raise UserError(f"{_shown(folder)} is no folder", "give a folder of Hugging Face")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{_shown(folder)} holds no .safetensors file", "save the model with safe_serialization")
    found: dict[str, _Stored] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name in found:
                what = f"{shown(name, 100)} is in both {_shown(found[name].file)} and {_shown(file)}"
                raise UserError(what, "remove the file that is left over")
            found[name] = _Stored(file, entry)
    index = folder / INDEX
    if os.path.lexists(index):
        listed = strict_json.checked(_Index, strict_json.read(index, MAX_HEADER), str(index)).weight_map
        for name, home in listed.items():
            if Path(home).name != home:
                what = f"{_shown(index)}: weight_map puts {shown(name, 100)} into {shown(home, 100)}"
                raise UserError(what, "name files of the folder itself")
        missing = sorted(name for name, home in listed.items() if name not in found or found[name].file.name != home)
        if missing:
            raise UserError(
                f"{_shown(folder)}: {len(missing)} tensors are in no file, or not in the one that {INDEX} names, "
                f"{shown(missing[0], 100)} for example",
                "download the folder again",
            )
    return found


def _header(file: Path) -> dict[str, TensorInfo]:
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise UserError(f"{_shown(file)} is no safetensors file", "download it again")
        head = start + stream.read(length)
    try:
        return parse_header(head, size, file)[0]
    except CheckpointError as error:
        remedy = "download it again, or save the model as F32, F16, BF16 or MXFP4"
        raise UserError(shown(error.message, 500), remedy) from None


def _shown(path: Path) -> str:
    return shown(str(path), 300)
