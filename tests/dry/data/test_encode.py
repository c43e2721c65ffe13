"""What no tokenizer takes is refused by name and never ends the job, even if it ends a process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.config import PrepareConfig
from mindmoe.data.encode import Job, encode_job
from mindmoe.data.indexed import IndexedDataset
from mindmoe.data.manifest import load_manifest
from mindmoe.data.prepare import prepare
from mindmoe.data.records import Record, Rejected
from mindmoe.data.tokenizer import load_tokenizer

EVERY_KIND = [
    "sentencepiece",
    "sentencepiece verbatim",
    "sentencepiece user-defined",
    "byte-level",
    "byte-level not special",
    "byte fallback",
    "word level",
    "tiktoken",
]


def prepared(tmp_path: Path, tokenizer: Path, texts: list[str]) -> tuple[Path, list[dict]]:
    """The folder made of these texts, and what was refused."""
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    out = tmp_path / "out"
    prepare([str(tmp_path / "c.jsonl")], out, PrepareConfig(tokenizer=str(tokenizer), valid_fraction=0.0, workers=1))
    quarantine = out / "quarantine.jsonl"
    return out, [json.loads(line) for line in quarantine.read_text().splitlines()] if quarantine.exists() else []


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_text_never_becomes_the_end_of_a_document(
    tmp_path: Path, write_tokenizer: Callable[[str], Path], kind: str
) -> None:
    """Neither in the middle nor as the whole text; where the tokenizer has no other way to write it, it is refused."""
    names = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
    texts = ["fox dog fox", *(f"the fox {name} dog" for name in names), *names, "fox <think> dog", "dog"]
    out, refused = prepared(tmp_path, write_tokenizer(kind), texts)
    tokenizer, data = load_tokenizer(out), IndexedDataset(out / "train")
    assert tokenizer.eod_id >= 0
    assert data.num_documents == len(texts) - len(refused)
    assert int((data.flat == tokenizer.eod_id).sum()) == data.num_documents
    assert len(refused) == (2 if kind == "word level" else 0)
    for entry in refused:
        assert "makes its end-of-document token, 3, of this text" in entry["reason"]
    if kind not in ("word level", "sentencepiece"):
        assert [tokenizer.decode(data.document(i)[:-1].tolist()).lstrip() for i in range(len(texts))] == texts


@pytest.mark.slow
@pytest.mark.parametrize("run", [" ", "\n", "\t \r\n", "\u00a0\u3000"])
def test_white_space_without_end_in_tiktoken(
    tmp_path: Path, write_tokenizer: Callable[[str], Path], run: str, capfd: pytest.CaptureFixture[str]
) -> None:
    long = "a" + run * (600_000 // len(run)) + "b"
    out, refused = prepared(tmp_path, write_tokenizer("tiktoken"), ["first", long, "last"])
    assert [(Path(entry["file"]).name, entry["line"]) for entry in refused] == [("c.jsonl", 2)]
    assert "a run of more than 500,000 white space characters" in refused[0]["reason"]
    assert "panicked" not in capfd.readouterr().err
    assert IndexedDataset(out / "train").num_documents == 2


@pytest.mark.slow
@pytest.mark.parametrize("character", ["a", " ", "\n", "\u6f22", "."])
@pytest.mark.parametrize("kind", ["tiktoken", "byte-level", "sentencepiece verbatim"])
def test_long_runs_of_one_character_survive(write_tokenizer: Callable[[str], Path], kind: str, character: str) -> None:
    tokenizer = load_tokenizer(write_tokenizer(kind))
    text = character * 200_000 + "x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


class Broken:
    """A vocabulary that answers as it is told to."""

    def __init__(self, answer):
        self.answer = answer
        self.has_piece, self.eod_id = np.ones(300, np.bool_), 1

    def encode(self, text: str) -> list[int]:
        if isinstance(self.answer, type):
            raise self.answer("no memory\nor other trouble")
        return self.answer


class Panic(BaseException):
    """As pyo3 raises it: no Exception."""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Panic, r"the tokenizer fails on this text \('?no memory'?\)"),
        (RuntimeError, "the tokenizer fails on this text"),
        (MemoryError, "the tokenizer fails on this text"),
        ([4, -1], "makes the id -1 of this text, and has ids below 300"),
        ([300], "makes the id 300 of this text"),
        ([65_536 + 4], "makes the id 65540 of this text"),
        ([1 << 70], "the tokenizer fails on this text"),
        ([4, 1, 5], "makes its end-of-document token, 1, of this text"),
    ],
)
def test_answers_that_no_file_may_hold(monkeypatch: pytest.MonkeyPatch, answer, reason: str) -> None:
    from mindmoe.data import encode
    from mindmoe.data.tokenizer import Tokenizer

    monkeypatch.setattr(encode, "_tokenizer", lambda path, digest: Tokenizer(Broken(answer), ""))
    record = Record("f", 3, b"some text", False, 0)
    (result,) = encode_job(Job([record], 0, Path("t"), "", "text", True, 0)).results
    assert isinstance(result, Rejected) and (result.file, result.line) == ("f", 3)
    assert re.search(reason, result.reason)


def test_an_interruption_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindmoe.data import encode
    from mindmoe.data.tokenizer import Tokenizer

    monkeypatch.setattr(encode, "_tokenizer", lambda path, digest: Tokenizer(Broken(KeyboardInterrupt), ""))
    with pytest.raises(KeyboardInterrupt):
        encode_job(Job([Record("f", 3, b"some text", False, 0)], 0, Path("t"), "", "text", True, 0))


DYING = """
import os, signal, sys
from pathlib import Path
import mindmoe.data.encode as encode
real = encode._encode_record
def deadly(record, job, tokenizer):
    if b"kill" in record.payload:
        os.kill(os.getpid(), {signal})
    return real(record, job, tokenizer)
encode._encode_record = deadly
if {at_once}:
    encode.encode_job.__globals__["_tokenizer"] = lambda *_: os._exit(3)
if __name__ == "__main__":
    from mindmoe.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


def run_dying(
    tmp_path: Path, root: Path, signal_number: int, at_once: bool, workers: int = 2
) -> subprocess.CompletedProcess[str]:
    texts = [f"document {i} of the quick brown fox" + " kill" * (i in (3, 900)) for i in range(1200)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(signal=signal_number, at_once=at_once))
    command = [
        sys.executable,
        str(script),
        "data",
        "prepare",
        str(tmp_path / "c.jsonl"),
        "--out",
        str(tmp_path / "out"),
    ]
    settings = ["vocab_size=300", f"workers={workers}", "valid_fraction=0.0"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "workers"), [(signal.SIGKILL, 2), (signal.SIGABRT, 2), (signal.SIGABRT, 1)])
def test_a_record_that_kills_its_process_is_named(tmp_path: Path, root: Path, signal_number: int, workers: int) -> None:
    done = run_dying(tmp_path, root, signal_number, at_once=False, workers=workers)
    assert done.returncode == 0, done.stderr
    refused = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in refused] == [4, 901]
    assert all("the process that tokenised it died" in entry["reason"] for entry in refused)
    manifest = load_manifest(tmp_path / "out")
    assert manifest is not None and manifest.splits["train"].documents == 1198 and manifest.quarantined == 2


@pytest.mark.slow
def test_processes_that_die_without_a_record(tmp_path: Path, root: Path) -> None:
    done = run_dying(tmp_path, root, signal.SIGKILL, at_once=True)
    assert done.returncode == 2 and "die before they have a text" in done.stderr and "fewer workers" in done.stderr
