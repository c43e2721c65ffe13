"""Files of a token folder and of a tokenizer that are no files, unreadable, or made to mislead."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindmoe.cli.main import main
from mindmoe.data.config import PrepareConfig
from mindmoe.data.dataset import locate
from mindmoe.data.indexed import IndexedDataset
from mindmoe.data.prepare import prepare
from mindmoe.data.sources import discover
from mindmoe.data.tokenizer import load_tokenizer
from mindmoe.host.errors import UserError

FILES = ["dataset.json", "tokenizer.model", "train.bin", "train.idx"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": f"some words {i}"}) for i in range(30)))
    prepare([str(tmp_path / "c.jsonl")], tmp_path / "set", PrepareConfig(vocab_size=280, workers=1, valid_fraction=0.0))
    return tmp_path / "set"


def inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `data inspect` says of a folder that it must refuse."""
    assert main(["data", "inspect", str(folder)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_a_folder_or_nothing_in_place_of_a_file(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).rename(folder / "moved")
    os.mkfifo(folder / name)
    assert f"{name} is not a regular file" in inspected(folder, capsys)
    (folder / name).unlink()
    (folder / name).mkdir()
    told = "holds none of" if name == "tokenizer.model" else "is a directory"  # a tokenizer may be given by its folder
    assert f"{name} {told}" in inspected(folder, capsys)
    (folder / name).rmdir()
    (folder / name).symlink_to("nothing")
    if name != "dataset.json":  # without which it is no token folder
        assert f"{name} is a link to nothing" in inspected(folder, capsys)
    (folder / name).unlink()
    (folder / name).symlink_to("moved")
    assert main(["data", "inspect", str(folder)]) == 0


UNREADABLE = """
import os, sys
from mindmoe.cli.main import main
folder, name = sys.argv[1:]
assert main(["data", "inspect", folder]) == 0  # and everything is imported while it can be read
os.chmod(os.path.join(folder, name), 0)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(["data", "inspect", folder]))
"""


@pytest.mark.parametrize("name", FILES)
def test_unreadable_by_this_user(folder: Path, root: Path, name: str) -> None:
    folder.parent.chmod(0o755)
    command = [sys.executable, "-c", UNREADABLE, str(folder), name]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{name} cannot be read: Permission denied" in done.stderr, done.stderr


def test_a_manifest_cannot_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "dataset.json").read_text()
    values = json.loads(text)
    values["sources"] = ["\x1b[2Jgone\nline", "[bold]plain"]
    (folder / "dataset.json").write_text(json.dumps(values))
    assert main(["data", "inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "x1b[2Jgone" in out and "[bold]plain" in out


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"version": 1}', b"\xff\xfe", b'"' + b"x" * 100_000, b"[" * 200_000, b"9" * 10_000],
)
def test_manifests_that_are_none(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        locate(str(folder), "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", b""),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("tokenizer.model", b"\x00" * 1000),
        ("tokenizer.json", b'{"model": ' + b"[" * 100_000),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}'),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":4294967295},"unk_token":"a"}}'),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":-1},"unk_token":"a"}}'),
        ("tokenizer.json", b"{\xff}"),
        ("tokenizer.tiktoken", b"YQ== 0\n!!!! 1\n"),
        ("tokenizer.tiktoken", b"YQ== 0\nYg==\n"),
        ("tokenizer.tiktoken", b"YQ== 0\nYg== -1\n"),
        ("tokenizer.tiktoken", b"YQ== 0\nYg== " + b"9" * 10_000 + b"\n"),
    ],
)
def test_tokenizers_that_are_none(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "tokenizer.json":
        pytest.importorskip("tokenizers")
    if name == "tokenizer.tiktoken":
        pytest.importorskip("tiktoken")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("change", ["a rank twice", "a rank left out", "no such byte"])
def test_ranks_of_no_published_encoding(write_tokenizer: Callable[[str], Path], change: str) -> None:
    """Each of them would make the library fail, or give the end-of-document token, in the middle of a job."""
    path = write_tokenizer("tiktoken")
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "a rank twice":
        lines[9] = lines[9].split()[0] + b" 10\n"
    elif change == "a rank left out":
        lines[-1] = lines[-1].split()[0] + b" 50256\n"
    else:
        lines[9] = b"AAAAAA== 9\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="ranks are not those of a published|has no rank for the byte 0x09"):
        load_tokenizer(path)


def test_settings_beside_a_tokenizer(write_tokenizer: Callable[[str], Path]) -> None:
    """Where the vocabulary has none of the usual names, tokenizer_config.json must say which token ends a document."""
    path = write_tokenizer("word level")
    path.write_text(path.read_text().replace("</s>", "stop"))
    settings = path.with_name("tokenizer_config.json")
    assert load_tokenizer(path).eod_id == -1
    settings.write_text('{"eos_token": "stop"}')
    assert load_tokenizer(path).eod_id == 3
    for content in ("{", "[]", '{"eos_token": "a", "eos_token": "b"}', "9" * 10_000):
        settings.write_text(content)
        with pytest.raises(UserError, match=r"tokenizer_config\.json"):
            load_tokenizer(path)
    for content in ("{}", '{"eos_token": 3}', '{"eos_token": {"content": null}}', '{"eos_token": "absent"}'):
        settings.write_text(content)
        assert load_tokenizer(path).eod_id == -1


def test_links_in_circles_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "one.txt").symlink_to("two.txt")
    (tmp_path / "two.txt").symlink_to("one.txt")
    found = discover(str(tmp_path), "auto", "text")
    assert [item.name for item in found.inputs] == ["a.txt"]
    with pytest.raises(UserError, match="does not exist"):
        discover(str(tmp_path / "one.txt"), "auto", "text")


def test_a_named_file_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"text": "a"}\n')
    (tmp_path / "a.jsonl").symlink_to("blob")
    (record,) = discover(str(tmp_path / "a.jsonl"), "auto", "text").inputs[0].read()
    assert record.payload == b'{"text": "a"}\n'


def test_an_index_behind_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.idx")
    (tmp_path / "set.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"set\.idx is not a regular file"):
        IndexedDataset(tmp_path / "set")
