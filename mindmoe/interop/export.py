"""Writing Hugging Face GptOss folders, bf16 or MXFP4, a few experts at a time: the model never is in memory.

The plan comes first: which tensor lies where in which file is known from names and shapes alone, so the size of an
export is known before a byte is written.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindmoe.checkpoint import disk
from mindmoe.checkpoint.chunks import encode_header
from mindmoe.checkpoint.dtypes import numpy_dtype
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.interop.hf_config import check_representable, config_json
from mindmoe.interop.hf_tokenizer import HfTokenizer, no_tokenizer
from mindmoe.interop.mxfp4 import dequantize, packed_shapes, quantize
from mindmoe.interop.source import INDEX, Source, to_bf16
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import param_specs
from mindmoe.moe.config import MoeConfig

Form = Literal["bf16", "mxfp4"]
MAX_FILE = 5 * 10**9  # [bytes], Hugging Face's usual size of a part
_SLAB = 2**26  # [bytes] of fp32 values converted at a time, or one row
BIAS = ".router.selection_bias"
_NAMED = 50  # tensors in a message


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the exported folder."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size [bytes]."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(slots=True)
class OutputFile:
    """One file: what comes from each of our tensors, in file order."""

    targets: dict[str, list[Target]] = field(default_factory=dict)

    @property
    def head(self) -> bytes:
        """The head of the file; transformers wants to know which framework it is for."""
        entries = {t.name: (t.dtype, t.shape, t.nbytes) for targets in self.targets.values() for t in targets}
        return encode_header(entries, {"format": "pt"})

    @property
    def data_size(self) -> int:
        """Size of the data [bytes]."""
        return sum(t.nbytes for targets in self.targets.values() for t in targets)


@dataclass(slots=True)
class BlockError:
    """What MXFP4 costs, over all tensors that were converted.

    Attributes:
        count: values.
        square_error, square: sums over values.
        largest: largest absolute error.
        largest_in_block: largest error as a part of the largest value of its block of 32.
        saturated: values that were cut to 6 times the scale.
    """

    count: int = 0
    square_error: float = 0.0
    square: float = 0.0
    largest: float = 0.0
    largest_in_block: float = 0.0
    saturated: int = 0

    @property
    def relative_rms(self) -> float:
        """Root of the squared error over the squared values."""
        return float((self.square_error / self.square) ** 0.5) if self.square else 0.0

    def take(self, values: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> None:
        """Counts experts (E, in, out) and what they became."""
        rounded = dequantize(blocks, scales)
        error = np.abs(rounded - values)
        self.count += values.size
        self.square_error += float(np.square(error, dtype=np.float64).sum())
        self.square += float(np.square(values, dtype=np.float64).sum())
        self.largest = max(self.largest, float(error.max(initial=0.0)))
        experts, inner, outer = values.shape
        in_blocks = (experts, inner // 32, 32, outer)
        peak = np.abs(values).reshape(in_blocks).max(axis=2)
        worst = error.reshape(in_blocks).max(axis=2)
        self.largest_in_block = max(
            self.largest_in_block, float(np.divide(worst, peak, out=np.zeros_like(peak), where=peak > 0).max(initial=0))
        )
        limit = np.ldexp(np.float32(6.5), scales.astype(np.int32) - 127).transpose(0, 2, 1)[:, :, None]
        self.saturated += int((np.abs(values).reshape(in_blocks) > limit).sum())


def weight_shapes(model: ModelConfig, moe: MoeConfig | None) -> dict[str, tuple[int, ...]]:
    """The weights of a model by name, in the order of the forward pass; selection biases are no weights."""
    return {name: spec.shape for name, spec in param_specs(model, moe).items() if not name.endswith(BIAS)}


def plan(shapes: Mapping[str, tuple[int, ...]], form: Form, max_file: int = MAX_FILE) -> list[OutputFile]:
    """The files of an export. What is made of one tensor stays in one file.

    Args:
        shapes: our tensors, in file order.
        form: MXFP4 packs the expert matrices and leaves all else bf16.
        max_file: size of the data of a file [bytes]; a larger tensor has a file of its own.

    Raises:
        UserError: experts whose size does not fit blocks of 32.
    """
    parts: list[OutputFile] = []
    for name, shape in shapes.items():
        if form == "mxfp4" and name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            blocks, scales = packed_shapes(shape)
            targets = [Target(f"{name}_blocks", "U8", blocks), Target(f"{name}_scales", "U8", scales)]
        else:
            targets = [Target(name, "BF16", shape)]
        if not parts or parts[-1].data_size + sum(t.nbytes for t in targets) > max_file:
            parts.append(OutputFile())
        parts[-1].targets[name] = targets
    return parts


def predicted_size(parts: list[OutputFile]) -> int:
    """Size of all weight files of an export [bytes]."""
    return sum(len(part.head) + part.data_size for part in parts)


def export(
    source: Source,
    out: Path,
    model: ModelConfig,
    moe: MoeConfig | None,
    form: Form,
    *,
    tokenizer: HfTokenizer | None = None,
    drop_selection_bias: bool = False,
    max_file: int = MAX_FILE,
) -> BlockError:
    """Writes a Hugging Face folder; it appears whole and durable, or not at all.

    Args:
        source: our weights.
        out: a folder that does not exist yet.
        model: of the weights.
        moe: of the weights.
        form: how weights are stored.
        tokenizer: what goes along for text, by default nothing.
        drop_selection_bias: whether to leave out the router's selection biases, which GptOss does not know.
        max_file: size of the data of a file [bytes].

    Returns:
        the error of the blocks; nothing counted for bf16, which rounds to nearest.

    Raises:
        UserError: GptOss cannot express the model, tensors are missing, `out` exists, or the disk refused.
    """
    experts = check_representable(model, moe)
    shapes = weight_shapes(model, moe)
    check_names(source.shapes, shapes, "the source")
    biases = sorted(name for name in source.shapes if name.endswith(BIAS))
    if biases and not drop_selection_bias and any(np.any(source.rows(n, 0, source.shapes[n][0])) for n in biases):
        raise UserError(
            f"GptOss has no selection bias for its router, and {len(biases)} layers have one (moe.balance.bias_rate)",
            "export with --drop-selection-bias: experts are then chosen without it, which changes the model",
        )
    if out.exists():
        raise UserError(f"{shown(str(out), 300)} exists", "give a new folder")
    parts = plan(shapes, form, max_file)
    aside = out.with_name(f"{disk.TEMPORARY}{out.name}-{uuid.uuid4().hex}")
    error = BlockError()
    with disk.reported(f"export to {out}"):
        disk.make_dirs(aside)
        try:
            _write_weights(aside, source, parts, error)
            _write_settings(aside, model, experts, form == "mxfp4", tokenizer or no_tokenizer("none was given"))
            disk.sync_dir(aside)
            os.rename(aside, out)
        except BaseException:
            disk.remove(aside)
            raise
        disk.sync_dir(out.parent)
    return error


def check_names(there: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses tensors that do not fit a model; selection biases may be there.

    Raises:
        UserError: names what is missing, unexpected or of another shape.
    """
    extra = {name for name in there if not name.endswith(BIAS)}
    wrong = [f"missing {name}" for name in wanted.keys() - there.keys()]
    wrong += [f"unexpected {shown(name, 100)}" for name in extra - wanted.keys()]
    wrong += [
        f"{name} has shape {there[name]}, the model wants {wanted[name]}"
        for name in wanted.keys() & there.keys()
        if there[name] != wanted[name]
    ]
    if wrong:
        named = "; ".join(sorted(wrong)[:_NAMED]) + ("; ..." if len(wrong) > _NAMED else "")
        raise UserError(
            f"{len(wrong)} tensors of {where} do not fit the model: {named}",
            "check that the configuration belongs to these weights",
        )


def _write_weights(folder: Path, source: Source, parts: list[OutputFile], error: BlockError) -> None:
    names = (
        ["model.safetensors"]
        if len(parts) == 1
        else [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    )
    for name, part in zip(names, parts, strict=True):
        _write_part(folder / name, source, part, error)
    if len(parts) > 1:
        homes = {t.name: name for name, p in zip(names, parts, strict=True) for ts in p.targets.values() for t in ts}
        index = {"metadata": {"total_size": sum(part.data_size for part in parts)}, "weight_map": homes}
        disk.write_new(folder / INDEX, _json(index))


def _write_settings(folder: Path, model: ModelConfig, moe: MoeConfig, mxfp4: bool, tokenizer: HfTokenizer) -> None:
    """config.json, generation_config.json and the files of the tokenizer."""
    ids = tokenizer.token_ids
    disk.write_new(folder / "config.json", _json(config_json(model, moe, mxfp4, ids)))
    pad = ids["eos_token_id"] if ids["pad_token_id"] is None else ids["pad_token_id"]
    generation: dict[str, Any] = ids | {"pad_token_id": pad}
    generation = {key: value for key, value in generation.items() if value is not None}
    if 0 < tokenizer.vocab_size < model.vocab_size:  # what a padded vocabulary has beyond the tokenizer is no text
        generation["suppress_tokens"] = list(range(tokenizer.vocab_size, model.vocab_size))
    disk.write_new(folder / "generation_config.json", _json(generation))
    for name, content in tokenizer.files.items():
        disk.make_dirs((folder / name).parent)
        disk.write_new(folder / name, content)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode()


def _write_part(path: Path, source: Source, part: OutputFile, error: BlockError) -> None:
    head = part.head
    position = len(head)
    with disk.new_file(path) as fd, ThreadPoolExecutor(1) as pool:
        disk.write_all(fd, head)
        writing = None
        for name, targets in part.targets.items():
            starts = [position + sum(t.nbytes for t in targets[:n]) for n in range(len(targets))]
            for pieces in _converted(source, name, len(targets) == 2, error):
                if writing is not None:
                    writing.result()  # one slab is being written while the next is converted
                writing = pool.submit(_write_pieces, fd, pieces, list(starts))
                starts = [start + piece.nbytes for start, piece in zip(starts, pieces, strict=True)]
            position += sum(t.nbytes for t in targets)
        if writing is not None:
            writing.result()


def _write_pieces(fd: int, pieces: tuple[np.ndarray, ...], starts: list[int]) -> None:
    for piece, start in zip(pieces, starts, strict=True):
        disk.write_all(fd, piece.reshape(-1).view(np.uint8).data, start)


def _converted(source: Source, name: str, packed: bool, error: BlockError) -> Iterator[tuple[np.ndarray, ...]]:
    """The stored form of a tensor, slab by slab along its first dimension."""
    shape = source.shapes[name]
    step = max(1, _SLAB // max(4 * prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
        values = source.rows(name, start, min(start + step, shape[0]))
        if not packed:
            yield (to_bf16(values),)
            continue
        blocks, scales = quantize(values)
        error.take(values, blocks, scales)
        yield blocks, scales
