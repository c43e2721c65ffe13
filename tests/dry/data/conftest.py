"""Small token sets, made with the writer under test where only their use is tested."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.indexed import IndexedWriter
from mindmoe.data.manifest import Manifest, SplitStats


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
        Manifest(
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
