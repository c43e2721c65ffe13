"""tiktoken rank files of the published encodings, told apart by their number of ranks."""

import base64
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindmoe.data.vocabulary import ByteTable, package_missing
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown


class _Encoding(NamedTuple):
    """What a rank file leaves out: how text is split, and where the end-of-document token is."""

    pattern: str
    eod: str
    eod_id: int


# Source: openai/tiktoken, tiktoken_ext/openai_public.py; meta-llama/llama3, llama/tokenizer.py.
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENCODINGS = {  # by number of ranks
    50_256: _Encoding(_GPT2_PATTERN, "<|endoftext|>", 50_256),  # GPT-2, r50k_base
    50_280: _Encoding(_GPT2_PATTERN, "<|endoftext|>", 50_256),  # p50k_base: ranks on both sides of that id
    100_256: _Encoding(_CL100K_PATTERN, "<|endoftext|>", 100_257),  # cl100k_base
    128_000: _Encoding(_LLAMA3_PATTERN, "<|end_of_text|>", 128_001),  # Llama 3
    199_998: _Encoding(_O200K_PATTERN, "<|endoftext|>", 199_999),  # o200k_base
}
# The library's matcher steps back one character at a time through white space, and panics at a million steps.
_MAX_SPACES = 500_000
_TOO_MANY_SPACES = re.compile(rf"\s{{{_MAX_SPACES + 1}}}")


class TiktokenVocabulary:
    """A rank file; see Vocabulary.

    Args:
        content: of the file.
        path: of the file.
    """

    def __init__(self, content: bytes, path: Path):
        try:
            import tiktoken
        except ImportError:
            raise package_missing(path, "tiktoken", "tiktoken") from None
        # Not tiktoken's own loader: it caches by path and would serve an older file of the same name.
        lines = [line.split() for line in content.splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        if len(ranks) not in ENCODINGS:
            known = ", ".join(f"{count:,}" for count in ENCODINGS)
            raise UserError(
                f"{shown(str(path), 300)} has {len(ranks):,} ranks; how text is split is known for {known}",
                "convert it to a tokenizer.json, which carries its splitting rule",
            )
        encoding = ENCODINGS[len(ranks)]
        self.eod_id = encoding.eod_id
        # A dict keeps one of two equal tokens: fewer entries than lines tell that some are given twice.
        if len(lines) != len(ranks) or sorted(ranks.values()) != self._expected_ranks(len(ranks)):
            raise ValueError("its ranks are not those of a published encoding, each once")
        # Every byte has a rank of its own, or some text could not be encoded at all.
        if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise ValueError(f"it has no rank for the byte 0x{missing[0]:02x}")
        self._model = tiktoken.Encoding(
            path.name, pat_str=encoding.pattern, mergeable_ranks=ranks, special_tokens={encoding.eod: self.eod_id}
        )
        self.has_piece = np.zeros(self._model.n_vocab, np.bool_)
        self.has_piece[[*ranks.values(), self.eod_id]] = True
        sizes = [0] * len(self.has_piece)
        for token, rank in ranks.items():
            sizes[rank] = len(token)
        self._table = ByteTable(sizes, sizes)

    def _expected_ranks(self, count: int) -> list[int]:
        """From 0 on, without the id of the end-of-document token."""
        return [rank for rank in range(count + (self.eod_id < count)) if rank != self.eod_id]

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        if _TOO_MANY_SPACES.search(text):
            raise ValueError(f"it holds a run of more than {_MAX_SPACES:,} white space characters")
        return self._model.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """See Vocabulary."""
        return self._model.decode(ids, errors="replace")

    def count_bytes(self, ids: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
        """See Vocabulary."""
        return self._table.count(ids, starts)
