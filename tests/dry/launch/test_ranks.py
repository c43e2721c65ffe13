"""What a launcher believes of the files beside a log, and whom it signals."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mindmoe.host.env import LAUNCH_FOLDER, LAUNCH_MARK
from mindmoe.host.errors import UserError
from mindmoe.host.processes import birth, end_all, launcher_gone, marked
from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.hang import HangWatch
from mindmoe.launch.local import LocalRanks
from mindmoe.launch.ranks import Rank, dump_stacks

MARK = "0123456789abcdef:0"


@pytest.fixture
def start(running: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.Popen]:
    """Starts processes that wait, with variables in their environment."""
    return partial(running, "print('ready', flush=True); import signal; signal.pause()")


@pytest.mark.parametrize("variables", [{}, {LAUNCH_MARK: "another:0"}, {LAUNCH_MARK: "0123456789abcdef:01"}])
def test_a_process_without_the_mark_is_no_rank_whatever_the_file_says(tmp_path, start, variables):
    """Dumping stacks, asking to stop and ending all would each end it."""
    stranger = start(**variables)
    rank = Rank(0, tmp_path)
    rank.pid_file.write_text(str(stranger.pid))
    rank.log.write_text("a line\n")
    ranks = LocalRanks(["true"], [rank], {}, tmp_path / "msrun.log", MARK)
    assert ranks.ranks[0].process() is None and ranks.ranks[0].ended()
    assert dump_stacks(ranks.ranks, patience=0.0) == {}
    ranks.ask_to_stop()
    ranks.end(grace=0.1)
    assert "stopped by a signal" not in str(HangWatch(ranks.ranks, LaunchConfig(hang_timeout=1.0)).check(10.0))
    stranger.send_signal(0)
    assert stranger.poll() is None


def test_a_rank_with_the_mark_is_asked_to_stop(tmp_path, start):
    process = start(**{LAUNCH_MARK: MARK})
    Rank(0, tmp_path).pid_file.write_text(str(process.pid))
    LocalRanks(["true"], [Rank(0, tmp_path)], {}, tmp_path / "msrun.log", MARK).ask_to_stop()
    assert process.wait(timeout=60) == -signal.SIGTERM


def test_a_session_is_found_on_all_nodes_and_only_in_its_folder(tmp_path, start):
    here, there = tmp_path / "a", tmp_path / "b"
    here.mkdir()
    there.mkdir()
    found = start(**{LAUNCH_MARK: "session:0", LAUNCH_FOLDER: str(here)})
    other_node = start(**{LAUNCH_MARK: "session:1", LAUNCH_FOLDER: str(here)})
    copied = start(**{LAUNCH_MARK: "session:0", LAUNCH_FOLDER: str(there)})
    longer = start(**{LAUNCH_MARK: "session2:0", LAUNCH_FOLDER: str(here)})
    assert {process.pid for process in marked("session", here)} == {found.pid, other_node.pid}
    assert {process.pid for process in marked("session:0")} == {found.pid, copied.pid}
    end_all("session", folder=here)
    assert found.wait(60) == other_node.wait(60) == -signal.SIGTERM
    assert copied.poll() is None and longer.poll() is None


def test_a_launcher_is_gone_when_its_process_is_another_or_a_zombie(start):
    process = start()
    name = f"{process.pid}:{birth(process.pid)}"
    assert not launcher_gone(name) and not launcher_gone("") and not launcher_gone(f"{process.pid}:")
    assert launcher_gone(f"{process.pid}:1")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has waited for it
    assert launcher_gone(name)


HOSTILE = [b"", b"-1", b"0", b"\xff\xfe", b"9" * 5000, b"{}", b"1\n2", b"1.5", "\u0661".encode(), b"\0" * 100]


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("file", ["pid_file", "exit_file", "position_file"])
def test_no_content_of_a_file_of_a_rank_ends_its_reader(tmp_path, file, content):
    rank = Rank(0, tmp_path, MARK)
    getattr(rank, file).write_bytes(content)
    assert rank.process() is None and rank.position() is None
    assert rank.outcome() in (None, (1, "2"))
    rank.ended(), rank.failed()  # noqa: B018
    LocalRanks(["true"], [rank], {}, tmp_path / "msrun.log", MARK).failure()


@pytest.mark.parametrize("file", ["pid_file", "exit_file", "position_file", "log"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "loop"])
def test_what_lies_in_the_place_of_a_file_of_a_rank(tmp_path, file, kind):
    rank = Rank(0, tmp_path, MARK)
    path, victim = getattr(rank, file), tmp_path / "victim"
    victim.write_text("1\n")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(victim)
        case "loop":
            path.symlink_to(path)
    assert rank.process() is None and rank.position() is None and rank.outcome() is None
    LocalRanks(["true"], [rank], {}, tmp_path / "msrun.log", MARK).failure()
    if kind == "folder" and file != "log":
        with pytest.raises(UserError, match="cannot be removed"):
            rank.forget()
    elif file != "log":
        rank.forget()
        rank.begin()
        rank.leave(3, "a reason")
        assert rank.outcome() == (3, "a reason") and rank.pid() == os.getpid()
    elif kind in ("link", "loop"):
        rank.forget()
        assert not path.is_symlink()
    assert victim.read_text() == "1\n"


def written(output: Path) -> str:
    """What a process that is to be ended has written, once it has written at all."""
    while not (text := output.read_text()).endswith("\n"):
        time.sleep(0.01)
    return text


def test_the_output_of_msrun_replaces_a_link(tmp_path):
    victim, output = tmp_path / "victim", tmp_path / "msrun.log"
    victim.write_text("precious")
    output.symlink_to(victim)
    ranks = LocalRanks(["echo", "said"], [], {}, output, MARK)
    ranks.start()
    written(output)
    ranks.end()
    assert victim.read_text() == "precious" and output.read_text() == "said\n" and not output.is_symlink()


def test_the_marks_of_a_launch_name_its_launcher(tmp_path):
    ranks = LocalRanks(["env"], [Rank(0, Path(tmp_path))], {}, tmp_path / "out", MARK)
    ranks.start()
    said = written(tmp_path / "out")
    ranks.end()
    assert f"MINDMOE_LAUNCH={MARK}\n" in said and f"MINDMOE_LAUNCHER={os.getpid()}:{birth(os.getpid())}\n" in said
