"""Small token sets, made with the writer under test where only their use is tested, and tokenizers of every kind."""

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mindmoe.data.indexed import IndexedWriter
from mindmoe.data.manifest import DatasetManifest, SplitStats


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: on a busy disk the fsyncs of so many small sets would take a minute."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def write_pair(tmp_path: Path) -> Callable[..., Path]:
    """Writes documents (lists of token ids, one sequence each) as a pair and returns its prefix."""

    def write(documents: Sequence[Sequence[int]], name: str = "set", dtype: str = "u2") -> Path:
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with IndexedWriter(prefix, dtype) as writer:
            for document in documents:
                writer.add_document([np.array(document, np.int64)])
        return prefix

    return write


@pytest.fixture
def write_folder(tmp_path: Path, write_pair: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a token folder as `prepare` leaves it, without preparing text; 3.0 bytes a token."""

    def write(name: str, train: Sequence[Sequence[int]], valid: Sequence[Sequence[int]], vocab_size: int = 100) -> Path:
        folder = tmp_path / name
        splits = {}
        for split, documents in (("train", train), ("valid", valid)):
            if documents:
                write_pair(documents, f"{name}/{split}")
                tokens = sum(map(len, documents))
                splits[split] = SplitStats(documents=len(documents), tokens=tokens, bytes=3 * tokens)
        content = b"the bytes of a tokenizer"
        (folder / "tokenizer.model").write_bytes(content)
        DatasetManifest(
            vocab_size=vocab_size,
            eod_id=1,
            dtype="uint16",
            tokenizer="tokenizer.model",
            tokenizer_digest=hashlib.sha256(content).hexdigest(),
            splits=splits,
            quarantined=0,
            empty=0,
            sources=["test"],
            settings={},
            inputs="",
        ).save(folder)
        return folder

    return write


_EOD = "<|endoftext|>"
_WORDS = [f"the quick brown fox jumps over the lazy dog number {i}" for i in range(300)]


def _sentencepiece_model(path: Path, **options) -> Path:
    """A BPE model with byte fallback; by default with SentencePiece's own normalisation and leading space."""
    model = io.BytesIO()
    settings = {"vocab_size": 320, "byte_fallback": True, "character_coverage": 1.0, "model_type": "bpe", **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_WORDS), model_writer=model, minloglevel=2, hard_vocab_limit=False, **settings
    )
    path.write_bytes(model.getvalue())
    return path


def _byte_level_json(path: Path, *, special: bool = True) -> Path:
    """A byte-level BPE tokenizer.json, whose end-of-document token may be a special one or not."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    model.train_from_iterator(_WORDS, trainer)
    model.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    model.add_tokens([tokenizers.AddedToken(_EOD, special=special, normalized=False)])
    model.save(str(path))
    return path


def _byte_fallback_json(path: Path) -> Path:
    """A tokenizer.json as Llama 2 has it: a leading space that the decoder takes away, unknown characters as bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<unk>", "</s>", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127))]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he")]
    names += [left + right for left, right in merges]
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    model.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.add_special_tokens(["</s>"])
    model.save(str(path))
    return path


def _word_json(path: Path) -> Path:
    """A word-level tokenizer.json, in which the end-of-document token is a word like any other."""
    pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "fox": 1, "dog": 2, "</s>": 3}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    path.write_text(json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}))
    return path


def _tiktoken_ranks(path: Path, count: int = 50_256) -> Path:
    """A rank file of GPT-2's size: single bytes, pairs of bytes, some triples of letters."""
    pytest.importorskip("tiktoken")
    tokens = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(97, 123) for b in range(256)]
    tokens += [bytes([a, b, c]) for a in range(97, 123) for b in range(97, 123) for c in range(256)]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens[:count])))
    return path


_KINDS: dict[str, Callable[[Path], Path]] = {
    "sentencepiece": lambda folder: _sentencepiece_model(folder / "tokenizer.model"),
    "sentencepiece verbatim": lambda folder: _sentencepiece_model(
        folder / "tokenizer.model",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        eos_piece=_EOD,
    ),
    "sentencepiece user-defined": lambda folder: _sentencepiece_model(
        folder / "tokenizer.model", eos_id=-1, user_defined_symbols=["<think>", _EOD]
    ),
    "byte-level": lambda folder: _byte_level_json(folder / "tokenizer.json"),
    "byte-level not special": lambda folder: _byte_level_json(folder / "tokenizer.json", special=False),
    "byte fallback": lambda folder: _byte_fallback_json(folder / "tokenizer.json"),
    "word level": lambda folder: _word_json(folder / "tokenizer.json"),
    "tiktoken": lambda folder: _tiktoken_ranks(folder / "tokenizer.tiktoken"),
}


@pytest.fixture
def write_tokenizer(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a tokenizer of one of _KINDS into a folder of its name and returns its file."""

    def write(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        return _KINDS[kind](folder)

    return write
