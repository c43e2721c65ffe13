"""Preparing: the same bytes by any number of processes, after a kill, and never over other work."""

import filecmp
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindmoe.data.config import PrepareConfig
from mindmoe.data.encode import draw_of
from mindmoe.data.indexed import IndexedDataset
from mindmoe.data.manifest import load_manifest
from mindmoe.data.prepare import prepare
from mindmoe.data.tokenizer import load_tokenizer
from mindmoe.host.errors import UserError

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
]


def text_of(number: int) -> str:
    rng = random.Random(number)
    return "\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(rng.randint(1, 12)))


TEXTS = [text_of(i) for i in range(60)]


def settings(**changes) -> PrepareConfig:
    return PrepareConfig(**{"vocab_size": 320, "valid_fraction": 0.1, "workers": 1, **changes})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 good documents in three kinds of files, 6 bad records, 2 empty documents, a file with junk at its end."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for i in range(20):
        (folder / "sub" / f"{i:02}.txt").write_text(TEXTS[i])
    (folder / "sub" / "broken.txt").write_bytes(b"caf\xe9")
    (folder / "sub" / "empty.txt").write_bytes(b"")
    lines = [json.dumps({"text": text, "id": i}).encode() for i, text in enumerate(TEXTS[20:40])]
    bad = [b"{", b'{"body": 1}', b'{"text": "\\u0000"}', b'{"text": "\\udc00"}', b"[" * 50_000]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines[:10] + bad + lines[10:] + [b'{"text": ""}']))
    lines = [json.dumps({"text": text}).encode() for text in TEXTS[40:]]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n") + b"junk")
    return folder


def decoded(folder: Path, split: str) -> list[str]:
    """The documents of a set as texts, each checked to end with the end-of-document token."""
    tokenizer, data = load_tokenizer(folder), IndexedDataset(folder / split)
    texts = []
    for i in range(data.num_documents):
        *ids, last = data.document(i).tolist()
        assert last == tokenizer.eod_id
        texts.append(tokenizer.decode(ids))
    return texts


def assert_equal_folders(one: Path, two: Path) -> None:
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(two))
    assert filecmp.cmpfiles(one, two, names, shallow=False) == (names, [], [])


def test_every_good_document_arrives_and_every_bad_one_is_named(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    prepare([str(corpus)], out, settings())
    train, valid = decoded(out, "train"), decoded(out, "valid")
    assert sorted(train + valid) == sorted(TEXTS)
    assert valid and len(valid) < 20
    # The order is that of the files: a.jsonl, b.jsonl.gz, sub/. Before the first held-out document, one waits.
    in_order = TEXTS[20:] + TEXTS[:20]
    first = in_order.index(valid[0])
    assert sorted(train[:first]) == sorted(in_order[:first])
    assert train[first:] == [text for text in in_order[first:] if text not in valid]
    assert all((draw_of(text.encode(), 0) < 0.1) == (text in valid) for text in TEXTS)
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(r["file"]).name, r["line"]) for r in refused] == [
        *(("a.jsonl", line) for line in range(11, 16)),
        ("b.jsonl.gz", 21),
        ("broken.txt", 0),
    ]
    manifest = load_manifest(out)
    assert manifest is not None
    assert (manifest.quarantined, manifest.lost, manifest.empty) == (6, 1, 2)
    assert (manifest.vocab_size, manifest.dtype) == (320, "uint16")
    for split, texts in (("train", train), ("valid", valid)):
        stats = manifest.splits[split]
        assert stats.documents == len(texts)
        assert stats.bytes == sum(len(text.encode()) for text in texts)
        assert stats.tokens == IndexedDataset(out / split).num_tokens
    assert not (out / ".partial").exists()


def test_two_processes_write_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    """Of a corpus of a dozen jobs, more than are ever under way."""
    lines = (json.dumps({"text": f"{TEXTS[i % 60][:30]} {i}"}) for i in range(6000))
    (corpus / "many.jsonl").write_text("\n".join(lines))
    prepare([str(corpus)], tmp_path / "one", settings())
    prepare([str(corpus)], tmp_path / "two", settings(workers=2))
    assert_equal_folders(tmp_path / "one", tmp_path / "two")


def test_a_second_time_there_is_nothing_to_do(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare([str(corpus)], out, settings())
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    prepare([str(corpus)], out, settings(workers=2, max_bad=7))
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_other_work_is_never_overwritten(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    prepare([str(corpus)], out, settings())
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"seed is 0 there and 1 here; valid_fraction is 0\.1 there and 0\.2 here"):
        prepare([str(corpus)], out, settings(seed=1, valid_fraction=0.2))
    (corpus / "sub/00.txt").write_text("changed")
    with pytest.raises(UserError, match="input files are others or have changed.*delete"):
        prepare([str(corpus)], out, settings())
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_a_damaged_result_is_noticed(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    prepare([str(corpus)], out, settings())
    (out / "train.bin").write_bytes((out / "train.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train\.bin: file size"):
        prepare([str(corpus)], out, settings())


def test_foreign_files_are_left_alone(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds train\.bin but no dataset\.json"):
        prepare([str(corpus)], tmp_path, settings())
    assert (tmp_path / "train.bin").read_bytes() == b"mine"


KILLED = """
import os, sys
from pathlib import Path
import mindmoe.data.encode as encode, mindmoe.data.indexed as indexed
real = {owner}.{function}
calls = []
def counted(*arguments):
    calls.append(arguments)
    if len(calls) == {call}:
        os._exit(9)
    return real(*arguments)
{owner}.{function} = counted
from mindmoe.data.prepare import prepare
from mindmoe.data.config import PrepareConfig
prepare([sys.argv[1]], Path(sys.argv[2]), PrepareConfig(vocab_size=320, valid_fraction=0.1, workers=1))
"""


@pytest.mark.parametrize(
    ("owner", "function", "call"),
    # Each pair is renamed by two calls of os.replace, then the files move one by one.
    [("indexed.IndexedWriter", "end_document", 30), ("indexed", "rename_durably", 3), ("os", "replace", 7)],
    ids=["while tokenising", "between the pairs", "while files get their names"],
)
def test_killed_and_done_again(
    tmp_path: Path, corpus: Path, root: Path, owner: str, function: str, call: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    script = KILLED.format(owner=owner, function=function, call=call)
    done = subprocess.run([sys.executable, "-c", script, str(corpus), str(out)], cwd=root, check=False, timeout=60)
    assert done.returncode == 9
    assert not (out / "dataset.json").exists()
    prepare([str(corpus)], out, settings())
    assert "half-finished" in capsys.readouterr().out
    prepare([str(corpus)], tmp_path / "fresh", settings())
    assert_equal_folders(out, tmp_path / "fresh")


ORPHANS = """
import os, signal, sys
from mindmoe.data.encode import Job, encode_all
from mindmoe.data.records import Record
from multiprocessing import active_children
if __name__ == "__main__":
    def jobs():
        while True:
            yield Job([Record("f", 0, b"some text", False, 0)], 0, sys.argv[1], sys.argv[2], "text", True, 0)
    results = encode_all(jobs(), 2)
    next(results)
    print(*[child.pid for child in active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_a_kill(tmp_path: Path, corpus: Path, root: Path) -> None:
    prepare([str(corpus)], tmp_path / "out", settings())
    tokenizer = tmp_path / "out/tokenizer.model"
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, str(script), str(tokenizer), load_tokenizer(tokenizer).digest]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    # To a file: an orphan would keep a pipe open.
    with open(tmp_path / "stdout", "w+") as stream:
        done = subprocess.run(command, env=environment, stdout=stream, check=False, timeout=60)
        stream.seek(0)
        children = [int(pid) for pid in stream.read().split()]
    assert done.returncode == -signal.SIGKILL and len(children) == 2
    while any(alive(pid) for pid in children):  # an orphan would stay, and the time of the test run out
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_too_many_bad_records(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="6 records could not be read, more than max_bad=5; the last: .*broken.txt"):
        prepare([str(corpus)], out, settings(max_bad=5))
    assert os.listdir(out) == ["quarantine.jsonl"]
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 7
    prepare([str(corpus)], out, settings(max_bad=6))
    assert (out / "dataset.json").exists()


def test_max_documents(tmp_path: Path, corpus: Path) -> None:
    prepare([str(corpus)], tmp_path / "out", settings(max_documents=25))
    texts = decoded(tmp_path / "out", "train") + decoded(tmp_path / "out", "valid")
    assert sorted(texts) == sorted(TEXTS[20:45])


def test_split_follows_the_text_alone(tmp_path: Path) -> None:
    """Moving, renaming and repeating documents moves none of them to the other side."""
    for name, order in (("one", TEXTS), ("two", TEXTS[::-1] + TEXTS)):
        lines = "\n".join(json.dumps({"text": text}) for text in order)
        (tmp_path / f"{name}.jsonl").write_text(lines)
        prepare([str(tmp_path / f"{name}.jsonl")], tmp_path / name, settings(valid_fraction=0.3))
    assert set(decoded(tmp_path / "one", "valid")) == set(decoded(tmp_path / "two", "valid"))
    prepare([str(tmp_path / "one.jsonl")], tmp_path / "seed", settings(valid_fraction=0.3, seed=1))
    assert set(decoded(tmp_path / "one", "valid")) != set(decoded(tmp_path / "seed", "valid"))


def test_draws_are_uniform() -> None:
    draws = np.array([draw_of(str(i).encode(), 3) for i in range(20_000)])
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 6 * np.sqrt(38)  # chi-squared: mean + 6 standard deviations


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_small_corpus_still_has_a_held_out_document(tmp_path: Path, count: int) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:count]))
    prepare([str(tmp_path / "c.jsonl")], tmp_path / "out", settings(valid_fraction=1e-9))
    lowest = min(TEXTS[:count], key=lambda text: draw_of(text.encode(), 0))
    assert decoded(tmp_path / "out", "valid") == [lowest]
    assert sorted(decoded(tmp_path / "out", "train")) == sorted(set(TEXTS[:count]) - {lowest})


def test_no_held_out_set_on_request(tmp_path: Path, corpus: Path) -> None:
    prepare([str(corpus)], tmp_path / "out", settings(valid_fraction=0.0))
    assert sorted(decoded(tmp_path / "out", "train")) == sorted(TEXTS)
    assert not (tmp_path / "out/valid.bin").exists()


def test_a_given_tokenizer_and_no_eod(tmp_path: Path, corpus: Path) -> None:
    prepare([str(corpus)], tmp_path / "one", settings())
    given = PrepareConfig(tokenizer=str(tmp_path / "one"), append_eod=False, workers=1)
    prepare([str(corpus)], tmp_path / "two", given)
    one, two = load_manifest(tmp_path / "one"), load_manifest(tmp_path / "two")
    assert one is not None and two is not None
    assert one.tokenizer_digest == two.tokenizer_digest
    with_eod, without = (sum(s.tokens for s in m.splits.values()) for m in (one, two))
    assert with_eod - without == len(TEXTS)
    with pytest.raises(UserError, match="vocab_size=999, but the tokenizer .* has 320 ids"):
        prepare([str(corpus)], tmp_path / "three", settings(tokenizer=str(tmp_path / "one"), vocab_size=999))


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ({}, {}, "holds no text"),
        ({"a.bin": b"\x00"}, {}, r"left out by suffix: 1 \.bin"),
        ({"a.txt": b""}, {}, "no text to train a tokenizer on"),
        ({"a.jsonl": b"{}\n{}\n"}, {}, "no text to train a tokenizer on.*a.jsonl:1: no key 'text'; it has none"),
        (
            {"a.jsonl": b'{"id": "7", "body": "some words"}\n'},
            {},
            "a.jsonl:1: no key 'text'; it has 'id', 'body': set text_key=body: repair",
        ),
        ({"a.txt": b"a lonely document"}, {"vocab_size": 270}, "1 documents cannot be split"),
        ({"a.txt": b"some words", "b.txt": b"more words"}, {"vocab_size": 50}, "vocab_size=50 is too small"),
        ({"a.txt": b"some words", "b.txt": b"more words"}, {"vocab_size": 9000}, "vocab_size=9000 is too large"),
        ({"a.txt": b"some words"}, {"tokenizer": "absent.model"}, "tokenizer absent.model does not exist"),
    ],
)
def test_hopeless_input(tmp_path: Path, content: dict[str, bytes], changes: dict, message: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for name, data in content.items():
        (source / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        prepare([str(source)], out, settings(**changes))
    assert not out.exists() or os.listdir(out) == []


def test_no_readable_document_with_a_given_tokenizer(tmp_path: Path, corpus: Path) -> None:
    prepare([str(corpus)], tmp_path / "one", settings())
    (tmp_path / "bad.jsonl").write_text("{\n" * 3)
    given = PrepareConfig(tokenizer=str(tmp_path / "one"), workers=1)
    with pytest.raises(
        UserError, match=r"no documents: 3 records .* 0 were empty; the first: .*bad\.jsonl:1: bad JSON"
    ):
        prepare([str(tmp_path / "bad.jsonl")], tmp_path / "two", given)
    assert os.listdir(tmp_path / "two") == ["quarantine.jsonl"]


def test_a_folder_in_use(tmp_path: Path, corpus: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            prepare([str(corpus)], out, settings())
    finally:
        os.close(descriptor)
    prepare([str(corpus)], out, settings())


def test_an_output_that_cannot_be_written(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot read or write .*file.*File exists|Not a directory"):
        prepare([str(corpus)], tmp_path / "file", settings())
    with pytest.raises(UserError, match="cannot read or write"):
        prepare([str(corpus)], tmp_path / "file/below", settings())


def test_progress_is_plain_lines_without_a_terminal(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare([str(corpus)], tmp_path / "out", settings())
    out = capsys.readouterr().out
    for stage in (
        "finding input",
        "training a SentencePiece tokenizer of 320",
        "tokenising with 1 process",
        "prepared",
    ):
        assert stage in out
    assert "\x1b" not in out


def test_lost_parts_of_files_are_told_apart_from_bad_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of them counts under max_bad, and each is listed at the end."""
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)
    source = tmp_path / "source"
    source.mkdir()
    (source / "cut.jsonl").write_bytes(lines[:-9])
    (source / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-30])
    out = tmp_path / "out"
    prepare([str(source)], out, settings(max_bad=0))
    manifest = load_manifest(out)
    assert manifest is not None and (manifest.quarantined, manifest.lost) == (0, 2)
    told = capsys.readouterr().out
    assert "PARTS OF FILES ARE LOST, 2 of them" in told
    assert "cut.jsonl:60: the file is cut" in told and "cut.jsonl.gz:" in told
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(entry["file"]).name, entry["rest"]) for entry in entries] == [
        ("cut.jsonl", True),
        ("cut.jsonl.gz", True),
    ]
