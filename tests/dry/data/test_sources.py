"""Finding and reading inputs: order, compression, damage, links, bombs, and the standard library."""

import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mindmoe.data.records import MAX_LINE, Record, Rejected, parse
from mindmoe.data.sources import discover
from mindmoe.host.errors import UserError


def read(source: Path | str, text_key: str = "text", **options) -> tuple[list[str], list[tuple[str, int, str]]]:
    """Texts and (file name, line, reason) of what is refused, in order."""
    found = discover(str(source), options.get("format", "auto"), text_key, options.get("exclude"))
    texts, bad = [], [(Path(r.file).name, r.line, r.reason) for r in found.rejected]
    for item in found.inputs:
        for record in item.read():
            if isinstance(record, Record):
                texts.append(parse(record, text_key))
            else:
                bad.append((Path(record.file).name, record.line, record.reason))
    return texts, bad


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(count))


def test_folder_is_read_in_name_order_whatever_the_creation_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/10.txt", "b.md", "z/deep/er/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c.jsonl").write_bytes(lines(2))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config.txt").write_text("hidden")
    texts, bad = read(tmp_path)
    assert texts == ["a.txt", "b.md", "b/10.txt", "b/2.txt", "document 0", "document 1", "z/deep/er/x.py"]
    assert bad == []
    assert discover(str(tmp_path), "auto", "text").skipped == {".png": 1}
    assert "\x89" not in "".join(texts)


def test_format_txt_reads_every_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("log")
    (tmp_path / "b.jsonl").write_text("not json")
    assert read(tmp_path, format="txt")[0] == ["log", "not json"]


def test_output_inside_the_source_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/left.txt").write_text("x")
    (tmp_path / "a.txt").write_text("a")
    assert read(tmp_path, exclude=tmp_path / "out")[0] == ["a"]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_jsonl(tmp_path: Path, compression: str) -> None:
    content = b"\n" + lines(3) + b"\r\n  \n" + b'{"text": "no line break at the end"}'
    path = tmp_path / f"c.jsonl{compression}"
    path.write_bytes(compress(content, compression))
    records = list(discover(str(path), "auto", "text").inputs[0].read())
    assert [r.line for r in records] == [2, 3, 4, 7]
    assert read(path)[0] == ["document 0", "document 1", "document 2", "no line break at the end"]
    assert records[-1].position == path.stat().st_size


def compress(content: bytes, compression: str) -> bytes:
    if compression == ".gz":
        return gzip.compress(content)
    if compression == ".zst":
        zstandard = pytest.importorskip("zstandard")
        return zstandard.ZstdCompressor().compress(content)
    return content


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_frames_follow_each_other(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"c.txt{compression}"
    path.write_bytes(compress(b"one ", compression) + compress(b"two", compression))
    assert read(path) == (["one two"], [])


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_damaged_compression(tmp_path: Path, compression: str) -> None:
    """Cut short anywhere or followed by junk: what was whole is read, the rest is reported with its line."""
    whole = compress(lines(200), compression)
    path = tmp_path / f"c.jsonl{compression}"
    expected = [f"document {i}" for i in range(200)]
    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        texts, bad = [], []
        for record in discover(str(path), "auto", "text").inputs[0].read():
            if isinstance(record, Rejected):
                bad.append(record)
            elif record.payload.endswith(b"\n"):
                texts.append(parse(record, "text"))
        assert len(bad) == 1 and "unreadable" in bad[0].reason
        assert texts == expected[: len(texts)]
    path.write_bytes(whole + b"trailing junk")
    texts, bad = read(path)
    assert texts == expected
    assert [(name, line) for name, line, _ in bad] == [(path.name, 201)]


def test_a_long_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines(1) + b'{"text": "' + b"x" * (MAX_LINE + 5) + b'"}\n' + lines(1))
    texts, bad = read(path)
    assert texts == ["document 0", "document 0"]
    assert bad == [("c.jsonl", 2, "line longer than 16 MiB")]


BOMB = """
import sys
from mindmoe.data.sources import discover
for item in discover(sys.argv[1], "auto", "text").inputs:
    for record in item.read():
        print(record)
# ru_maxrss would count the parent as well: a child inherits the mark of the process that it was forked from
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("name", ["bomb.jsonl.zst", "bomb.txt.zst"])
def test_zstd_bomb(tmp_path: Path, root: Path, name: str) -> None:
    """256 MiB of zeros in 10 kB: reported, in bounded memory."""
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / name
    with open(path, "wb") as stream, zstandard.ZstdCompressor(level=1).stream_writer(stream) as writer:
        for _ in range(16):
            writer.write(bytes(16 << 20))
    assert path.stat().st_size < 50_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    *rejected, peak = done.stdout.splitlines()
    assert len(rejected) == 1 and "decompresses to more than 1000 times" in rejected[0]
    assert int(peak) < 400  # [MiB] the ratio is looked at from 64 MiB on, and growing a text may copy it once


def test_links_out_of_the_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.txt").write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a")
    (source / "file.txt").symlink_to("../secret/key.txt")
    (source / "folder").symlink_to(tmp_path / "secret")
    (source / "same.txt").symlink_to("a.txt")
    (source / "loop").symlink_to(".")
    os.mkfifo(source / "pipe.txt")
    texts, bad = read(source)
    assert texts == ["a"]
    assert [name for name, _, reason in bad if "symbolic link out" in reason] == ["file.txt", "folder"]
    assert len(bad) == 2


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    inputs = discover(str(tmp_path), "auto", "text").inputs
    (tmp_path / "b.txt").unlink()
    outcome = [record for item in inputs for record in item.read()]
    assert isinstance(outcome[1], Rejected) and "does not exist" in outcome[1].reason


def test_odd_file_names_can_be_printed(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\x1b[31m.txt")
    (tmp_path / odd).write_text("x")
    (item,) = discover(str(tmp_path), "auto", "text").inputs
    assert item.name == r"'caf\udce9\x1b[31m.txt'"
    assert read(tmp_path)[0] == ["x"]


@pytest.mark.parametrize("name", ["absent", "absent.jsonl"])
def test_missing_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        discover(str(tmp_path / name), "auto", "text")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        discover("/dev/null", "auto", "text")


def test_standard_library() -> None:
    """Megabytes of it, every document a text, twice the same, without test suites and foreign packages."""
    inputs = discover("python-stdlib", "auto", "text").inputs
    names = [item.name for item in inputs]
    assert {"argparse.py", "json/decoder.py", "language-reference", "builtin-docstrings"} <= set(names)
    assert names[:-2] == sorted(names[:-2])
    assert not [name for name in names if "test" in name.split("/") or "site-packages" in name]
    assert sum(item.size for item in inputs) > 4_000_000
    prose = [record for item in inputs[-2:] for record in item.read()]
    again = [record for item in discover("python-stdlib", "auto", "text").inputs[-2:] for record in item.read()]
    assert prose == again and len(prose) > 50
    assert all(parse(record, "text").strip() for record in prose)
    assert "itertools.chain" in "".join(parse(record, "text") for record in prose)


def test_reading_holds_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with open(path, "wb") as stream:
        for _ in range(64):
            stream.write(b'{"text": "' + b"x" * (1 << 20) + b'"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in discover(str(path), "auto", "text").inputs[0].read()) == 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # [KiB] of 64 MiB read


def test_a_line_that_the_file_ends_in_is_a_loss(tmp_path: Path) -> None:
    """A cut within the last line is told as such; a last line that is bad in another way is a bad record."""
    path = tmp_path / "c.jsonl"
    whole = lines(3)
    for size in range(len(lines(2)) + 1, len(whole) - 2):
        path.write_bytes(whole[:size])
        *records, lost = discover(str(path), "auto", "text").inputs[0].read()
        assert len(records) == 2 and isinstance(lost, Rejected) and (lost.line, lost.rest) == (3, True)
        assert f"the file is cut {size - len(lines(2))} bytes into this line" in lost.reason
    path.write_bytes(whole[:-1])  # only its line break is missing
    assert read(path) == (["document 0", "document 1", "document 2"], [])
    path.write_bytes(lines(1) + b"no JSON")
    assert not any(isinstance(record, Rejected) for record in discover(str(path), "auto", "text").inputs[0].read())


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_what_is_lost_of_a_cut_shard(tmp_path: Path, compression: str) -> None:
    rng = random.Random(0)
    content = b"".join(json.dumps({"text": rng.randbytes(500).hex()}).encode() + b"\n" for _ in range(2000))
    stored = compress(content, compression)
    path = tmp_path / f"c.jsonl{compression}"
    path.write_bytes(stored[: len(stored) // 2])
    *records, lost = discover(str(path), "auto", "text").inputs[0].read()
    assert isinstance(lost, Rejected) and lost.rest and 700 < lost.line < 1300
    assert f"the rest of the file is lost, it ends after {len(stored) // 2:,} bytes" in lost.reason
    if compression == ".zst":  # whose frames say how much they hold
        assert "bytes of text before its end" in lost.reason
    half = stored + b"XXXX" + stored  # frames follow each other, the second one without its head
    path.write_bytes(half)
    *records, lost = discover(str(path), "auto", "text").inputs[0].read()
    assert len(records) == 2000 and isinstance(lost, Rejected) and (lost.line, lost.rest) == (2001, True)
    told = re.search(r"the rest of the file is lost, ([0-9,]+) of its ([0-9,]+) bytes", lost.reason)
    assert told and 0.8 * len(stored) < int(told[1].replace(",", "")) < len(stored) + 5
    assert told[2] == f"{len(half):,}"
