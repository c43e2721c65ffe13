"""Whatever lies at a path, opening it ends with its content or with a sentence; what is written follows no link."""

import os
import stat
from pathlib import Path

import pytest

from mindmoe.host.files import FileError, FileMissing, open_append, read_bytes, read_text, replace_file


def _put(folder: Path, kind: str) -> Path:
    path = folder / "x"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to("x")
        case "latin-1":
            path.write_bytes(b"one\ntw\xfc\n")
        case "large":
            path.write_bytes(b"0" * 101)
        case "file as folder":
            path.write_bytes(b"")
            path = path / "y"
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "kind, said",
    [
        ("nothing", "does not exist"),
        ("folder", "is a directory"),
        ("pipe", "not a regular file"),
        ("dangling link", "link to nothing"),
        ("loop", "cannot be read"),
        ("latin-1", ":2: byte 0xfc is not UTF-8"),
        ("large", "larger than 100 bytes"),
        ("file as folder", "cannot be read"),
    ],
)
def test_what_is_no_small_text_is_refused_by_name(tmp_path: Path, kind: str, said: str) -> None:
    path = _put(tmp_path, kind)
    with pytest.raises(FileError, match=said) as error:
        read_text(path, 100)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "a" * 300])
def test_devices_and_names_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(FileError):
        read_bytes(Path(path))


def test_what_is_not_there_can_be_told_from_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        read_bytes(tmp_path / "x")
    with pytest.raises(FileError) as error:
        read_bytes(tmp_path)
    assert not isinstance(error.value, FileMissing)


def test_links_are_followed_only_where_a_user_named_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    assert read_text(tmp_path / "link") == "text"
    with pytest.raises(FileError, match="is a link"):
        read_text(tmp_path / "link", follow=False)


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(FileError) as error:
        read_bytes(tmp_path / "\x1b]0;title\x07")
    assert str(error.value).isprintable()


def test_a_file_is_replaced_as_a_whole_and_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    path.symlink_to(victim)
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)  # the name it is written under first is taken as well
    replace_file(path, "new")
    assert victim.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "victim"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "a", b"")
        open_append(tmp_path / "b").close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [mode, mode]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "dangling link", "folder"])
def test_appending_goes_to_regular_files_only(tmp_path: Path, kind: str) -> None:
    path = _put(tmp_path, kind)
    with pytest.raises(OSError):
        open_append(path)
    assert not (tmp_path / "nowhere").exists()
