"""What `data inspect` prints, and that a document cannot steer the terminal."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.config import PrepareConfig
from mindmoe.data.indexed import IndexedDataset, IndexedWriter
from mindmoe.data.inspect import document_lengths, harmless, inspect, vocabulary_use
from mindmoe.data.prepare import prepare
from mindmoe.host.errors import UserError


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"document number {i} says hello\x1b[2J to the world" for i in range(40)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    prepare([str(tmp_path / "c.jsonl")], tmp_path / "out", PrepareConfig(vocab_size=300, valid_fraction=0.2, workers=1))
    capsys.readouterr()
    inspect(tmp_path / "out", 2)
    out = capsys.readouterr().out
    assert "says hello\\x1b[2J to the world" in out and "\x1b" not in out
    for entry in ("bytes per token", "document length, 50 %", "of 300 (", "tokenizer SHA-256", "end-of-document token"):
        assert out.count(entry) == 2  # in train and in valid
    assert out.count("says hello") == 4


def test_bare_pair_shows_ids(write_pair: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    inspect(write_pair([[4, 5, 6], [7] * 200]), 5)
    out = capsys.readouterr().out
    assert "4 5 6" in out and "[104 tokens more]" in out


@pytest.mark.parametrize("documents", [[], [[]]])
def test_empty_pair(
    write_pair: Callable[..., Path], capsys: pytest.CaptureFixture[str], documents: list[list[int]]
) -> None:
    inspect(write_pair(documents), 3)
    assert "tokens" in capsys.readouterr().out


def test_statistics_against_loops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [[rng.integers(0, 50, rng.integers(0, 5)) for _ in range(rng.integers(0, 3))] for _ in range(30)]
    with IndexedWriter(tmp_path / "set", "u2") as writer:
        for document in documents:
            writer.add_document(document)
    data = IndexedDataset(tmp_path / "set")
    assert document_lengths(data).tolist() == [sum(map(len, document)) for document in documents]
    tokens = [int(token) for document in documents for sequence in document for token in sequence]
    assert vocabulary_use(data) == (len(set(tokens)), max(tokens), len(tokens))


def test_harmless() -> None:
    assert (
        harmless("a\tb\n\u6f22\u3000\u00e9 \x1b[31m\r\x00\u202e") == "a\tb\n\u6f22\u3000\u00e9 \\x1b[31m\\r\\x00\\u202e"
    )


def test_mistakes(tmp_path: Path, write_pair: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="neither a token folder nor the prefix"):
        inspect(tmp_path / "absent", 1)
    with pytest.raises(UserError, match="samples=-1"):
        inspect(tmp_path, -1)
    with pytest.raises(UserError, match="no token ids"):
        inspect(write_pair([[-1, 2]], dtype="i4"), 1)
