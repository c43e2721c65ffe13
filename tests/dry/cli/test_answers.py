"""How commands end where the system refuses: one message and exit code 2, never a stack trace."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mindmoe.cli.answers import answered
from mindmoe.cli.main import main
from mindmoe.host.errors import UserError

COMMAND = [sys.executable, "-m", "mindmoe"]


@pytest.fixture
def env(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.mark.parametrize("words", [["config", "show"], ["config", "validate"]])
def test_a_full_disk_behind_the_output(root: Path, env: dict[str, str], words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, *words, str(root / "configs" / "quickstart.yaml")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    said = [line for line in done.stderr.splitlines() if not line.startswith("mindmoe: warning: on this machine")]
    assert done.returncode == 2 and len(said) == 1
    assert said[0].startswith("mindmoe: the output: No space left on device")


def test_a_reader_that_has_gone(env: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "config", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_a_working_folder_that_was_deleted(tmp_path: Path, root: Path, env: dict[str, str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone}; exec {' '.join(COMMAND)} train {root / 'configs' / 'quickstart.yaml'}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=env, cwd=gone, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("mindmoe: ")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "configs/quickstart.yaml", "parallel.ep=1", "output_dir={long}"],
        ["train", "{long}"],
        ["ckpt", "ls", "{long}"],
        ["ckpt", "verify", "{long}"],
        ["export", "{long}"],
        ["report", "{long}"],
        ["eval", "{long}"],
    ],
)
def test_a_name_that_is_too_long(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(root)
    assert main([word.format(long="a" * 300) for word in words]) == 2
    err = capsys.readouterr().err
    assert "File name too long" in err or "is not a run folder" in err


@pytest.mark.parametrize("words", [["ckpt", "ls"], ["ckpt", "show"], ["export"], ["report"], ["data", "inspect"]])
def test_control_characters_of_a_path_do_not_reach_the_terminal(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "a\x1b]0;title\x07\x9b2J"]) == 2
    written = capsys.readouterr()
    assert (written.out + written.err).replace("\n", "").isprintable() and "title" in written.err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.ELOOP])
def test_what_the_system_says_of_a_place(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> int:
        raise OSError(number, os.strerror(number), "here\x1b")

    assert answered(refused) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mindmoe: 'here\\x1b': {os.strerror(number)}: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError(2, "x", "y"), KeyError()]
)
def test_a_bug_of_ours_keeps_its_trace(error: Exception) -> None:
    def broken() -> int:
        raise error

    with pytest.raises(type(error)):
        answered(broken)


def test_a_mistake_and_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> Callable[[], int]:
        def run() -> int:
            raise error

        return run

    assert answered(raising(UserError("a\x1b is wrong\n  here", "mend it"))) == 2
    assert capsys.readouterr().err == "mindmoe: a\\x1b is wrong\n  here: mend it\n"
    assert answered(raising(KeyboardInterrupt())) == 130


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
@pytest.mark.parametrize("words", [["ckpt", "ls"], ["ckpt", "verify"], ["ckpt", "prune"]])
def test_checkpoints_that_this_user_may_not_read(tmp_path: Path, env: dict[str, str], words: list[str]) -> None:
    (tmp_path / "checkpoints").mkdir(mode=0)
    user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*user, *COMMAND, *words, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2 and "Permission denied" in done.stderr and "Traceback" not in done.stderr
