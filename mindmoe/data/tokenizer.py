"""One face for the tokenizers of the field: SentencePiece models, Hugging Face tokenizer.json, tiktoken files.

What kind a file is follows from its content, not its name (Llama 3 calls a tiktoken file tokenizer.model).
Text is never read as control tokens: "<|endoftext|>" written in a document is encoded as the characters it is.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mindmoe.data.files import file_digest
from mindmoe.errors import UserError

FILE_NAMES = ("tokenizer.model", "tokenizer.json", "tokenizer.tiktoken")
# Names of the token that separates documents, the most specific first.
_EOD_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eod|>",
    "<|eos|>",
    "</s>",
    "<eos>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
_SPACE_SYMBOL = "\u2581"  # SentencePiece writes a space as this character


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        vocab_size: one more than the largest id.
        eod_id: the end-of-document token, -1 if there is none.
        digest: SHA-256 of the file.
    """

    vocab_size: int
    eod_id: int
    digest: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added before or behind."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer file itself, when `path` may also be a folder that holds one.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in FILE_NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds none of {', '.join(FILE_NAMES)}", "name a tokenizer file")
    if not path.is_file():
        raise UserError(f"tokenizer {path} does not exist", "check the path")
    return path


def tokenizer_kind(path: Path) -> str:
    """The canonical name of a tokenizer file of this content, one of FILE_NAMES."""
    with open(path, "rb") as stream:
        head = stream.read(4096).lstrip()
    if head.startswith(b"{"):
        return "tokenizer.json"
    fields = head.split(b"\n", 1)[0].split()
    try:
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
    kind = tokenizer_kind(file)
    if kind == "tokenizer.json":
        return HuggingFaceTokenizer(file)
    return TiktokenTokenizer(file) if kind == "tokenizer.tiktoken" else SentencePieceTokenizer(file)


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(f"{path} is no {what} ({reason[0][:200] if reason else type(error).__name__})", "check the file")


class SentencePieceTokenizer:
    """A SentencePiece model. With the identity normalisation that ours are trained with, any text survives."""

    def __init__(self, path: Path):
        import sentencepiece

        try:
            content = path.read_bytes()
            if not content:  # the library would take this for "load no model yet"
                raise OSError("the file is empty")
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise _damaged(path, "SentencePiece model", error) from None
        self.vocab_size: int = self._model.get_piece_size()
        self.eod_id: int = self._model.eos_id()
        if self.eod_id < 0:
            pieces = {name: self._model.piece_to_id(name) for name in _EOD_NAMES}
            found = [i for name, i in pieces.items() if self._model.id_to_piece(i) == name]
            self.eod_id = found[0] if found else -1
        self.digest = file_digest(path)
        # The character that stands for a space would come back as one, so it goes through its bytes where text
        # is otherwise kept as it is: pieces then concatenate, and the text may be cut around it.
        names = [f"<0x{byte:02X}>" for byte in _SPACE_SYMBOL.encode()]
        ids = [self._model.piece_to_id(name) for name in names]
        verbatim = self._model.normalize(" a  b\t") == " a  b\t".replace(" ", _SPACE_SYMBOL)
        self._space_symbol = ids if verbatim and [self._model.id_to_piece(i) for i in ids] == names else []

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        if not self._space_symbol or _SPACE_SYMBOL not in text:
            return self._model.encode(text)
        parts = self._model.encode(text.split(_SPACE_SYMBOL))
        ids = parts[0]
        for part in parts[1:]:
            ids += self._space_symbol
            ids += part
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return self._model.decode([int(i) for i in ids])


class HuggingFaceTokenizer:
    """A tokenizer.json of the `tokenizers` library."""

    def __init__(self, path: Path):
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"reading {path} needs the package tokenizers", "pip install 'mindmoe[hf]'") from None
        try:
            self._model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise _damaged(path, "tokenizer.json", error) from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        names = [*_EOD_NAMES, *_eos_names(path.with_name("tokenizer_config.json"))]
        self.eod_id: int = next((vocabulary[name] for name in names if name in vocabulary), -1)
        self.digest = file_digest(path)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)


def _eos_names(config: Path) -> list[str]:
    """The eos_token that a tokenizer_config.json beside the tokenizer names, if any."""
    try:
        token = json.loads(config.read_text("utf-8"))["eos_token"]
        name = token["content"] if isinstance(token, dict) else token
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name] if isinstance(name, str) else []


class _Encoding(NamedTuple):
    """What a tiktoken file leaves out: how text is split, and where the special tokens are."""

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
_ENCODINGS = {  # by number of ranks
    50_256: _Encoding(_GPT2_PATTERN, "<|endoftext|>", 50_256),
    50_280: _Encoding(_GPT2_PATTERN, "<|endoftext|>", 50_256),
    100_256: _Encoding(_CL100K_PATTERN, "<|endoftext|>", 100_257),
    128_000: _Encoding(_LLAMA3_PATTERN, "<|end_of_text|>", 128_001),
    199_998: _Encoding(_O200K_PATTERN, "<|endoftext|>", 199_999),
}


class TiktokenTokenizer:
    """A tiktoken rank file of one of the published encodings, told apart by their number of ranks."""

    def __init__(self, path: Path):
        try:
            import tiktoken
        except ImportError:
            raise UserError(f"reading {path} needs the package tiktoken", "pip install 'mindmoe[tiktoken]'") from None
        # Not tiktoken's own loader: it caches by path and would serve an older file of the same name.
        ranks: dict[bytes, int] = {}
        try:
            for line in path.read_bytes().splitlines():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise _damaged(path, "tiktoken file", error) from None
        if len(ranks) not in _ENCODINGS:
            known = ", ".join(f"{count:,}" for count in _ENCODINGS)
            raise UserError(
                f"{path} has {len(ranks):,} ranks; how text is split is known for {known}",
                "convert it to a tokenizer.json, which carries its splitting rule",
            )
        encoding = _ENCODINGS[len(ranks)]
        self.eod_id = encoding.eod_id
        self._model = tiktoken.Encoding(
            path.name, pat_str=encoding.pattern, mergeable_ranks=ranks, special_tokens={encoding.eod: self.eod_id}
        )
        self.vocab_size: int = self._model.n_vocab
        self.digest = file_digest(path)

    def encode(self, text: str) -> list[int]:
        """See Tokenizer."""
        return self._model.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer."""
        return self._model.decode([int(i) for i in ids], errors="replace")
