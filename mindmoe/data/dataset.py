"""One token set as a list of windows: the concatenation of its documents, cut into rows of seq_length + 1 tokens.

Row k holds tokens k * seq_length .. (k + 1) * seq_length, both included: every token but the first is predicted
exactly once, and fewer than seq_length tokens at the end are not used.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.files import file_digest
from mindmoe.data.indexed import IndexedDataset, bin_path, idx_path
from mindmoe.data.manifest import FILE_NAME, STAGING, DatasetManifest, load_manifest
from mindmoe.data.tokenizer import Tokenizer
from mindmoe.host.errors import UserError

Split = Literal["train", "valid"]
_SCAN_TOKENS = 1 << 22  # tokens of a set without a manifest that are checked when it is opened
_SCAN_RUN = 1 << 14  # of them, neighbours read together


def locate(path: str, split: Split) -> tuple[Path, DatasetManifest | None]:
    """The prefix of the pair meant by a path, and its manifest if it was prepared here.

    Args:
        path: a folder written by `prepare`, or the prefix of a pair, with or without .bin or .idx.
        split: which pair of a folder.

    Raises:
        UserError: there is no such set.
    """
    folder = Path(path)
    if os.path.isdir(folder):
        manifest = load_manifest(folder)
        if manifest is None and os.path.lexists(folder / STAGING):
            raise UserError(f"{path} is half-finished", "run `mindmoe data prepare` again")
        if manifest is None:
            raise UserError(
                f"{path} is no token folder: it has no {FILE_NAME}",
                "make one with `mindmoe data prepare`, or give the prefix of a .bin/.idx pair",
            )
        if split not in manifest.splits:
            raise UserError(
                f"{path} has no {split} set: it was prepared with valid_fraction=0",
                "name another set (data.valid for the held-out one) or prepare it with a fraction",
            )
        return folder / split, manifest
    prefix = Path(path.removesuffix(".bin").removesuffix(".idx"))
    if not os.path.lexists(idx_path(prefix)) and not os.path.lexists(bin_path(prefix)):
        raise UserError(
            f"{path} is neither a token folder nor the prefix of a .bin/.idx pair",
            "check the path, or make the folder with `mindmoe data prepare`",
        )
    manifest = load_manifest(prefix.parent)
    return prefix, manifest if manifest is not None and prefix.name in manifest.splits else None


class TokenSet:
    """The windows of one set, read from the mapped file as they are asked for.

    Args:
        path: see `locate`.
        split: which pair of a folder.
        seq_length: predicted tokens of a row.
        vocab_size: of the model; no token may reach it.

    Raises:
        UserError: the set is missing, damaged, too short, or made for a larger vocabulary.
    """

    def __init__(self, path: str, split: Split, seq_length: int, vocab_size: int):
        self.path = path
        prefix, self.manifest = locate(path, split)
        self.prefix = prefix
        self._data = IndexedDataset(prefix)
        self._seq_length, self._vocab_size = seq_length, vocab_size
        self.num_tokens = self._data.num_tokens
        # Neighbouring windows share a token: the last label of one is the first input of the next.
        self.num_windows = max(self.num_tokens - 1, 0) // seq_length
        if self._data.dtype.kind == "f":
            raise UserError(f"{prefix}.idx says {self._data.dtype.name}, tokens are integers", "give a set of tokens")
        if not self.num_windows:
            raise UserError(
                f"{prefix} holds {self.num_tokens:,} tokens, fewer than one row of seq_length + 1 = {seq_length + 1:,}",
                "lower train.seq_length or give more data",
            )
        if self.manifest is None:
            self._scan()
        else:
            self._check_manifest(self.manifest, prefix)

    def _check_manifest(self, manifest: DatasetManifest, prefix: Path) -> None:
        """The folder's files belong together, and its vocabulary fits the model."""
        stats = manifest.splits[prefix.name]
        remedy = "the folder was changed by hand: prepare it again"
        if stats.tokens != self.num_tokens or manifest.dtype != self._data.dtype.name:
            raise UserError(
                f"{prefix}.bin holds {self.num_tokens:,} tokens of {self._data.dtype.name}, but {FILE_NAME} beside it "
                f"says {stats.tokens:,} of {manifest.dtype}",
                remedy,
            )
        # A folder without its tokenizer can be trained on; one with another tokenizer cannot be right.
        tokenizer = prefix.parent / manifest.tokenizer
        if os.path.lexists(tokenizer) and file_digest(tokenizer) != manifest.tokenizer_digest:
            raise UserError(f"{tokenizer} is not the tokenizer that the tokens beside it were made with", remedy)
        if manifest.vocab_size > self._vocab_size:
            raise UserError(
                f"{self.path} uses a vocabulary of {manifest.vocab_size:,}, the model has {self._vocab_size:,}",
                f"set model.vocab_size to {manifest.vocab_size} or more, or prepare the data with a smaller vocabulary",
            )

    def _scan(self) -> None:
        """Checks tokens of a set whose vocabulary is not recorded: all of them, or runs all over a large set."""
        runs = max(_SCAN_TOKENS // _SCAN_RUN, 1)
        stride = max(self.num_tokens // runs, _SCAN_RUN)
        # A scan of all of a large set would read it from end to end; `rows` checks each token again when it is served.
        for start in range(0, self.num_tokens, stride):
            self._check_range(self._data.flat[start : start + _SCAN_RUN])

    def _check_range(self, tokens: NDArray[np.integer]) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._vocab_size:
            raise UserError(
                f"{self.path} holds the token {low if low < 0 else high}, outside the model's vocabulary of "
                f"{self._vocab_size:,}",
                "set model.vocab_size to that of the tokenizer the data was made with",
            )

    def rows(self, windows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, seq_length + 1) the tokens of windows.

        Args:
            windows: (n,) numbers in range(num_windows).

        Raises:
            UserError: a token lies outside the vocabulary.
        """
        rows = np.empty((len(windows), self._seq_length + 1), self._data.dtype)
        for row, window in zip(rows, windows, strict=True):
            start = int(window) * self._seq_length
            row[:] = self._data.flat[start : start + self._seq_length + 1]
        if rows.size:
            self._check_range(rows)
        return rows.astype(np.int32)

    def segments(self, windows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, seq_length + 1) for each token of the windows, the number of its document within the row, from 0."""
        segments = np.zeros((len(windows), self._seq_length + 1), np.int32)
        for row, window in zip(segments, windows, strict=True):
            start = int(window) * self._seq_length
            document, last = self._document_at(start), self._document_at(start + self._seq_length)
            # = 1, not += 1: documents without a token start at the same place and count once. The first document of the
            # row begins at or before it and is number 0.
            row[self._data.document_starts(document + 1, last + 1) - start] = 1
            np.cumsum(row, out=row)
        return segments

    def text_bytes(self, windows: int, tokenizer: Tokenizer, within_documents: bool) -> int:
        """The bytes of UTF-8 text of the tokens that the first windows predict.

        Args:
            windows: how many.
            tokenizer: what the tokens were made with.
            within_documents: whether the first token of a document, predicted from another document, is left out.
        """
        # One more than is predicted: the first token of the set is an input only.
        stop = windows * self._seq_length + 1
        tokens = self._data.flat[:stop]
        starts = np.unique(self._data.document_starts(0, self._document_at(stop - 1) + 1))  # some have no token
        not_predicted = tokens[starts if within_documents else starts[:1]]  # nothing comes before the first one
        return tokenizer.count_bytes(tokens, starts) - tokenizer.count_bytes(
            not_predicted, np.arange(len(not_predicted))
        )

    def _document_at(self, token: int) -> int:
        """The last document that starts at or before a token; document 0 starts at 0."""
        low, high = 0, self._data.num_documents
        while high - low > 1:
            middle = (low + high) // 2
            if self._data.document_start(middle) <= token:
                low = middle
            else:
                high = middle
        return low
