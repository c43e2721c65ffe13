"""One face for the tokenizers of the field: SentencePiece models, Hugging Face tokenizer.json, tiktoken files.

What kind a file is follows from its content, not its name (Llama 3 calls a tiktoken file tokenizer.model).

Text is never read as control tokens: "<|endoftext|>" written in a document is encoded as the characters it is. Pieces
that the tokenizer's author added as text (user-defined symbols, added tokens that are not special) do come out of
text, except the end-of-document token, which never does, whatever kind of piece it is.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.vocabulary import Vocabulary, guarded
from mindmoe.host.errors import UserError
from mindmoe.host.files import read_bytes, shown

FILE_NAMES = ("tokenizer.model", "tokenizer.json", "tokenizer.tiktoken")
MAX_FILE = 1 << 28  # [bytes] of a tokenizer file
_COUNTED = 1 << 20  # tokens whose bytes are counted at a time


class TextRefused(UserError):
    """A text that the tokenizer cannot take."""


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: one more than the largest id.
        has_piece: (vocab_size,) whether an id stands for something.
        eod_id: the end-of-document token, -1 if there is none.
        digest: SHA-256 of the file.
    """

    def __init__(self, vocabulary: Vocabulary, digest: str):
        self._vocabulary = vocabulary
        self.has_piece, self.eod_id, self.digest = vocabulary.has_piece, vocabulary.eod_id, digest
        self.vocab_size = len(self.has_piece)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, each in range(vocab_size) and none of them the end-of-document token.

        Raises:
            TextRefused: the tokenizer fails on this text.
        """
        with guarded("the tokenizer fails on this text", TextRefused, "leave it out, or use another tokenizer"):
            ids = self._vocabulary.encode(text)
            values = np.array(ids, np.int64)
        outside = values[(values < 0) | (values >= self.vocab_size)]
        if outside.size:
            raise TextRefused(
                f"the tokenizer makes the id {outside[0]} of this text, and has ids below {self.vocab_size}",
                "use another tokenizer",
            )
        # A document that holds its own end would be cut in two, and a prompt could end a generation.
        if self.eod_id >= 0 and (values == self.eod_id).any():
            raise TextRefused(
                f"the tokenizer makes its end-of-document token, {self.eod_id}, of this text", "use another tokenizer"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 and ids that have no piece become U+FFFD."""
        with guarded("the tokenizer cannot decode these ids", UserError, "use the tokenizer they were made with"):
            # Libraries fail on ids that they do not know, each in its own way; so they are given known ones only.
            runs = groupby((int(i) for i in ids), self._known)
            return "".join(
                self._vocabulary.decode(list(run)) if known else "\ufffd" * len(list(run)) for known, run in runs
            )

    def _known(self, token: int) -> bool:
        return 0 <= token < self.vocab_size and bool(self.has_piece[token])

    def count_bytes(self, tokens: NDArray[np.integer], starts: NDArray[np.int64]) -> int:
        """The bytes of UTF-8 text that the tokens of documents stand for, each document decoded by itself.

        Control tokens, the end of a document and ids without a piece count nothing, a byte that is no character of
        its own counts one. A decoder that makes text of several tokens at once counts U+FFFD for a character of
        which the end is not there.

        Args:
            tokens: (n,) of whole documents, of which the last may be cut.
            starts: (documents,) where in `tokens` documents begin, rising from 0.

        Raises:
            UserError: the tokenizer fails on them.
        """
        total, cuts = 0, [0]
        for start in starts.tolist():  # whole documents together, about _COUNTED tokens at a time
            if start - cuts[-1] >= _COUNTED:
                cuts.append(start)
        for first, stop in zip(cuts, [*cuts[1:], len(tokens)], strict=True):
            ids = tokens[first:stop].astype(np.int64)
            inside = (ids >= 0) & (ids < self.vocab_size)
            # First what lies outside, because the next line indexes with what is left.
            ids[~inside] = -1
            ids[inside & ~self.has_piece[ids]] = -1
            # The documents that begin in this stretch, their starts counted from its own beginning.
            low, high = np.searchsorted(starts, [first, stop])
            with guarded("the tokenizer cannot tell the bytes of its pieces", UserError, "use another tokenizer"):
                total += self._vocabulary.count_bytes(ids, starts[low:high] - first)
        return total


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer file itself, when `path` may also be a folder that holds one.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if os.path.isdir(path):
        for name in FILE_NAMES:
            if os.path.isfile(path / name):
                return path / name
        raise UserError(f"{shown(str(path), 300)} holds none of {', '.join(FILE_NAMES)}", "name a tokenizer file")
    if not os.path.lexists(path):
        raise UserError(f"tokenizer {shown(str(path), 300)} does not exist", "check the path")
    return path


def tokenizer_kind(path: Path) -> str:
    """The canonical name of a tokenizer file of this content, one of FILE_NAMES.

    Raises:
        UserError: the file cannot be read.
    """
    return kind_of(read_bytes(path, MAX_FILE))


def kind_of(content: bytes) -> str:
    """The canonical name of a tokenizer file of this content, one of FILE_NAMES."""
    head = content[:4096].lstrip()
    if head.startswith(b"{"):
        return "tokenizer.json"
    fields = head.split(b"\n", 1)[0].split()
    try:
        # A tiktoken file is lines of a token in base64 and its rank.
        if len(fields) == 2 and fields[1].isdigit() and base64.b64decode(fields[0], validate=True):
            return "tokenizer.tiktoken"
    except binascii.Error:
        pass
    return "tokenizer.model"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a tokenizer from a file, or from a folder that holds one under its usual name.

    Raises:
        UserError: there is no such file, it is damaged, or the package for its kind is missing.
    """
    file = tokenizer_file(path)
    content = read_bytes(file, MAX_FILE)
    return Tokenizer(_load(content, file), hashlib.sha256(content).hexdigest())


def _load(content: bytes, file: Path) -> Vocabulary:
    kind = kind_of(content)
    what = {"tokenizer.json": kind, "tokenizer.tiktoken": "tiktoken file"}.get(kind, "SentencePiece model")
    with guarded(f"{shown(str(file), 300)} is no {what}", UserError, "check the file"):
        # Imported here, because each needs a package that need not be installed for the others.
        if kind == "tokenizer.json":
            from mindmoe.data.tokenizers_file import HuggingFaceVocabulary

            return HuggingFaceVocabulary(content, file)
        if kind == "tokenizer.tiktoken":
            from mindmoe.data.tiktoken_file import TiktokenVocabulary

            return TiktokenVocabulary(content, file)
        from mindmoe.data.sentencepiece_file import SentencePieceVocabulary

        return SentencePieceVocabulary(content)
