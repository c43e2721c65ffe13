"""What a set of tokens is, told from its files and not from its path: what a checkpoint remembers of it (dry)."""

import math
from pathlib import Path
from typing import Any

import xxhash

from mindmoe.data.config import DataConfig
from mindmoe.data.dataset import Split, locate
from mindmoe.data.files import file_digest
from mindmoe.data.indexed import bin_path, idx_path
from mindmoe.data.tokenizer import tokenizer_file
from mindmoe.host.files import open_regular

_PIECE = 2**16  # [bytes]
_PIECES = 256  # of a .bin are read; all of it would take hours for a large set


def data_identity(data: DataConfig) -> dict[str, Any]:
    """The digests and sizes of everything that a run reads, as JSON.

    Keys: `sources`, the sets that are trained on in their order; `valid`, the held-out set; `tokenizer`, the SHA-256 of
    the configured tokenizer, null if there is none. Of each set: its `split`; `idx`, the digest of its index;
    `bin_bytes`, the size of its tokens [bytes]; `bin_sample`, the digest of pieces spread evenly over them;
    `tokenizer`, the SHA-256 that its folder records, null if there is no record.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    tokenizer = None if data.tokenizer is None else file_digest(tokenizer_file(data.tokenizer))
    return {
        "sources": [_set_identity(source.path, "train") for source in data.sources],
        "valid": _set_identity(data.valid or data.sources[0].path, "valid"),
        "tokenizer": tokenizer,
    }


def _set_identity(path: str, split: Split) -> dict[str, Any]:
    prefix, manifest = locate(path, split)
    index = xxhash.xxh3_128()
    # The index is read whole: it is small beside the tokens and changes with the length of any document.
    with open_regular(idx_path(prefix)) as file:
        while piece := file.read(2**20):
            index.update(piece)
    size, sample = _sample(bin_path(prefix))
    return {
        "split": prefix.name if manifest is not None else split,
        "idx": index.hexdigest(),
        "bin_bytes": size,
        "bin_sample": sample,
        "tokenizer": manifest.tokenizer_digest if manifest is not None else None,
    }


def _sample(path: Path) -> tuple[int, str]:
    """Size [bytes] of a file, and the digest of at most _PIECES pieces of it, the first and the last among them."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        size = file.seek(0, 2)
        count = min(_PIECES, math.ceil(size / _PIECE))
        for number in range(count):
            # From 0 to the last piece in equal steps, so that both ends of the file count.
            file.seek(max(0, size - _PIECE) * number // max(1, count - 1))
            digest.update(file.read(_PIECE))
    return size, digest.hexdigest()
