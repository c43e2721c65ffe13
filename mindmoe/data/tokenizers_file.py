"""tokenizer.json files of Hugging Face's `tokenizers` library."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.vocabulary import EOD_NAMES, ByteTable, package_missing
from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, shown

MAX_SETTINGS = 1 << 24  # [bytes] of a tokenizer_config.json
_MAX_IDS = 1 << 24


class HuggingFaceVocabulary:
    """A tokenizer.json; see Vocabulary.

    Args:
        content: of the file.
        path: of the file; a tokenizer_config.json beside it may name the end-of-document token.
    """

    def __init__(self, content: bytes, path: Path):
        try:
            import tokenizers
        except ImportError:
            raise package_missing(path, "tokenizers", "hf") from None
        self._model = model = tokenizers.Tokenizer.from_buffer(content)
        # A file may ask for cut or padded texts, and for control tokens to be read out of text; none of that is wanted.
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._ids = vocabulary = model.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        # A single absurd id would otherwise ask for memory for all ids below it.
        if size > _MAX_IDS:
            raise ValueError(f"it has the id {size - 1}, and {_MAX_IDS:,} ids are the most that is taken")
        self.has_piece = np.zeros(size, np.bool_)
        self.has_piece[list(vocabulary.values())] = True
        name = next((name for name in EOD_NAMES if name in vocabulary), None)
        if name is None:
            name = _eos_name(path.with_name("tokenizer_config.json"))
        self.eod_id: int = vocabulary.get(name, -1) if name is not None else -1
        if self.eod_id >= 0:  # as a special token it is never taken out of text
            model.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """See Vocabulary."""
        return self._model.decode(ids, skip_special_tokens=False)

    def count_bytes(self, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
        """See Vocabulary."""
        if self._table is not None:
            return self._table.count(ids, starts)
        counted = (ids >= 0) & (ids != self.eod_id)
        # Each document by itself: such a decoder treats the first token of a text in its own way.
        documents = zip(np.split(ids, starts[1:]), np.split(counted, starts[1:]), strict=True)
        texts = (self._model.decode(part[chosen].tolist(), skip_special_tokens=True) for part, chosen in documents)
        return sum(len(text.encode()) for text in texts)

    @cached_property
    def _table(self) -> ByteTable | None:
        """None for decoders that make text of several tokens at once."""
        from tokenizers import pre_tokenizers

        decoder = self._model.decoder
        if decoder is None or json.loads(decoder.__getstate__()).get("type") != "ByteLevel":
            return None
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())  # a character for each byte
        sizes = [0] * len(self.has_piece)
        for piece, i in self._ids.items():
            # In a byte-level vocabulary one character stands for one byte; added tokens are plain text.
            sizes[i] = len(piece) if alphabet.issuperset(piece) else len(piece.encode())
        for i, token in self._model.get_added_tokens_decoder().items():
            if token.special or i == self.eod_id:
                sizes[i] = 0
        return ByteTable(sizes, sizes)


def _eos_name(settings: Path) -> str | None:
    """The eos_token that a tokenizer_config.json names, if it is there and names one.

    Raises:
        UserError: it cannot be read.
    """
    try:
        values = strict_json.read(settings, MAX_SETTINGS)
    except FileMissing:
        return None
    if not isinstance(values, dict):
        raise UserError(f"{shown(str(settings), 300)} is no JSON object", "restore the file that belongs here")
    token = values.get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None
