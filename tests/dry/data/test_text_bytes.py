"""Bytes of the evaluated tokens, against decoding the documents one by one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.config import DataConfig, PrepareConfig
from mindmoe.data.indexed import IndexedDataset
from mindmoe.data.loader import TokenBatches
from mindmoe.data.prepare import prepare
from mindmoe.data.tokenizer import load_tokenizer
from mindmoe.host.errors import UserError

S = 16
# ASCII, so that no token is a part of a character, except in the tests that say otherwise
TEXTS = [f"document {i} has the quick brown fox" + " and a lazy dog" * (i % 4) + "\n" * (i % 3) for i in range(40)]
CONCATENATING = ["sentencepiece", "sentencepiece verbatim", "sentencepiece user-defined", "byte-level", "tiktoken"]
ALL = [*CONCATENATING, "byte-level not special", "byte fallback"]


def prepared(tmp_path: Path, tokenizer: Path, texts: list[str], **settings) -> Path:
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = PrepareConfig(**{"tokenizer": str(tokenizer), "valid_fraction": 0.5, "workers": 1, **settings})
    prepare([str(tmp_path / "c.jsonl")], tmp_path / "set", config)
    return tmp_path / "set"


def held_out(folder: Path, batch_size: int = 2, vocab_size: int = 60_000, **data) -> TokenBatches:
    return TokenBatches(DataConfig(sources=str(folder), **data), "valid", S, batch_size, vocab_size)


def decoded_bytes(folder: Path, batches: TokenBatches, count: int, within_documents: bool) -> int:
    """Text of the targets, document by document: of one that was begun, without what its first token adds."""
    tokenizer, data = load_tokenizer(folder), IndexedDataset(folder / "valid")
    stop = count * S * 2 + 1
    total = 0
    for index in range(data.num_documents):
        ids = data.document(index)[: max(stop - data.document_start(index), 0)].tolist()
        ids = [i for i in ids if i != tokenizer.eod_id]
        total += len(tokenizer.decode(ids).encode())
        if (within_documents or index == 0) and ids:
            total -= len(tokenizer.decode(ids[:1]).encode())
    return total


@pytest.mark.slow
@pytest.mark.parametrize("within_documents", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_against_decoding(
    tmp_path: Path, write_tokenizer: Callable[[str], Path], kind: str, within_documents: bool
) -> None:
    folder = prepared(tmp_path, write_tokenizer(kind), TEXTS)
    batches = held_out(folder, document_attention=within_documents)
    counts = range(1, batches.num_samples // 2 + 1)
    assert len(counts) > 5
    for count in counts:
        assert batches.text_bytes(count) == decoded_bytes(folder, batches, count, within_documents)


@pytest.mark.parametrize("kind", ALL)
def test_the_whole_set_is_its_text(tmp_path: Path, write_tokenizer: Callable[[str], Path], kind: str) -> None:
    """Characters of several tokens, byte fallback and literal control tokens in the text are counted as written."""
    texts = ["caf\u00e9 \u6f22\u5b57 \U0001f600", "text with </s> and <|endoftext|> in it", "a", "the  two  spaces"]
    texts = [text for text in texts if kind != "sentencepiece" or "  " not in text]  # which it takes away
    tokenizer = load_tokenizer(write_tokenizer(kind))
    documents = [tokenizer.encode(text) for text in texts]
    tokens = np.array([i for ids in documents for i in [*ids, tokenizer.eod_id]], np.int32)
    starts = np.cumsum([0, *(len(ids) + 1 for ids in documents[:-1])])
    decoded = [tokenizer.decode(ids) for ids in documents]
    assert tokenizer.count_bytes(tokens, starts) == sum(len(text.encode()) for text in decoded)
    if "sentencepiece" not in kind:
        assert decoded == texts


def test_ids_without_a_piece_count_nothing(tmp_path: Path, write_tokenizer: Callable[[str], Path]) -> None:
    for kind in ALL:
        tokenizer = load_tokenizer(write_tokenizer(kind))
        ids = tokenizer.encode("the fox")
        tokens = np.array([tokenizer.vocab_size + 7, *ids, -1, tokenizer.eod_id], np.int64)
        assert tokenizer.count_bytes(tokens, np.array([0])) in (7, 8)  # one of them has its leading space inside
        assert tokenizer.count_bytes(np.empty(0, np.int32), np.empty(0, np.int64)) == 0


def test_a_part_of_a_character_is_one_byte(write_tokenizer: Callable[[str], Path]) -> None:
    for kind in CONCATENATING:
        tokenizer = load_tokenizer(write_tokenizer(kind))
        ids = tokenizer.encode("x\U0001f600")
        sizes = [tokenizer.count_bytes(np.array(ids[:n]), np.array([0])) for n in range(len(ids) + 1)]
        assert sizes[-5:] == [1, 2, 3, 4, 5]


def test_where_the_tokenizer_is_not_known(tmp_path: Path, write_tokenizer: Callable[[str], Path]) -> None:
    folder = prepared(tmp_path, tokenizer := write_tokenizer("byte-level"), TEXTS)
    known = held_out(folder).text_bytes(3)
    (folder / "tokenizer.json").unlink()
    assert held_out(folder).text_bytes(3) is None
    assert held_out(folder, tokenizer=str(tokenizer)).text_bytes(3) == known
    (folder / "dataset.json").unlink()
    pair = str(folder / "valid")
    assert held_out(folder / "train", valid=pair).text_bytes(3) is None
    assert held_out(folder / "train", valid=pair, tokenizer=str(tokenizer)).text_bytes(3) == known


def test_a_tokenizer_that_cannot_be_read(folder_of_the_fixture: Path) -> None:
    with pytest.raises(UserError, match="is no SentencePiece model"):
        TokenBatches(DataConfig(sources=str(folder_of_the_fixture)), "valid", 8, 1, 100).text_bytes(1)


@pytest.fixture
def folder_of_the_fixture(write_folder: Callable[..., Path]) -> Path:
    return write_folder("set", [[1] * 30], [[1] * 30])
