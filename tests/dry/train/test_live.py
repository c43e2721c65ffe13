"""Who may enter a run folder: judged by a lock on one machine, by silence between machines."""

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mindmoe.host.env import LAUNCH_MARK, LAUNCHER, Place
from mindmoe.host.errors import UserError
from mindmoe.host.processes import birth
from mindmoe.launch.config import LaunchConfig
from mindmoe.train import live
from mindmoe.train.guard import EXIT_ORPHANED, EXIT_OVERTAKEN
from mindmoe.train.live import Hold, Member, joined

LAUNCH = LaunchConfig(node_timeout=1.0, hang_timeout=0)


HOLDER = """
import pathlib, sys, time
from mindmoe.launch.config import LaunchConfig
from mindmoe.train.live import Hold
with Hold(pathlib.Path(sys.argv[1]), LaunchConfig(node_timeout=1.0), "launch") as hold:
    print("ready", flush=True)
    while not hold.code:
        time.sleep(0.05)
    print("asked", hold.code, flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path, running: Callable[..., subprocess.Popen]) -> Callable[[], subprocess.Popen]:
    """Starts a process that holds the folder until it is asked to end, or killed."""
    return partial(running, HOLDER, str(tmp_path))


def of_another_machine(folder: Path, **changes: object) -> dict[str, object]:
    """Makes the record of a folder one that another machine has written."""
    record = {**json.loads((folder / "live.json").read_text()), "kernel": "another pid:[1]", **changes}
    (folder / "live.json").write_text(json.dumps(record))
    return record


def test_a_living_holder_is_named_and_stays(tmp_path, holder):
    process = holder()
    with pytest.raises(UserError, match=rf"in use by `mindmoe launch`, process {process.pid} on .*--takeover"):
        Hold(tmp_path, LAUNCH, "train").__enter__()
    assert process.poll() is None


def test_a_killed_holder_blocks_nobody(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    with Hold(tmp_path, LAUNCH, "train") as hold:
        assert json.loads((tmp_path / "live.json").read_text())["session"] == hold.session
    assert not (tmp_path / "live.json").exists()


def test_a_takeover_asks_the_holder_and_waits_for_it(tmp_path, holder, capsys):
    process = holder()
    with Hold(tmp_path, LAUNCH, "train", takeover=True):
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == f"asked {EXIT_OVERTAKEN}\n"
    assert f"process {process.pid} on " in capsys.readouterr().out


def test_a_copied_folder_is_free(tmp_path, holder):
    holder()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("live.json", ".live.lock"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    with Hold(copy, LAUNCH, "train"):
        pass


def test_another_machine_is_dead_when_it_is_silent(tmp_path, capsys):
    Hold(tmp_path, LAUNCH, "launch").__enter__().look()
    record = of_another_machine(tmp_path, host="far")
    os.utime(tmp_path / "live.json", (1.0, 1.0))
    with Hold(tmp_path / ".", LAUNCH, "train") as hold:
        assert json.loads((tmp_path / "live.json").read_text())["session"] == hold.session != record["session"]


@pytest.mark.parametrize("locks", [True, False])
def test_another_machine_lives_when_its_record_changes(tmp_path, monkeypatch, locks):
    first = Hold(tmp_path, LaunchConfig(node_timeout=60.0), "launch").__enter__()
    first._files.close()  # no lock of this machine
    record = of_another_machine(tmp_path, host="far", beat=1)
    if not locks:
        monkeypatch.setattr(live._Files, "lock", lambda *_: None)
    monkeypatch.setattr(live.time, "sleep", lambda _: of_another_machine(tmp_path, beat=record["beat"] + 1))
    with pytest.raises(UserError, match=r"in use by `mindmoe launch`, process \d+ on far"):
        Hold(tmp_path, LaunchConfig(node_timeout=60.0), "train").__enter__()


def test_without_locks_the_process_itself_decides(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(live._Files, "lock", lambda *_: None)
    process = holder()
    with pytest.raises(UserError, match=f"process {process.pid} on "):
        Hold(tmp_path, LAUNCH, "train").__enter__()
    process.kill()
    process.wait()
    with Hold(tmp_path, LAUNCH, "train"):
        pass


def test_one_that_was_taken_for_dead_finds_out(tmp_path):
    first = Hold(tmp_path, LAUNCH, "launch").__enter__()
    of_another_machine(tmp_path, session="of another start")
    first.look()
    assert first.code == EXIT_OVERTAKEN
    first.__exit__(None, None, None)
    assert json.loads((tmp_path / "live.json").read_text())["session"] == "of another start"


@pytest.mark.parametrize("text", ["", "5", "[]", "{", '{"session": 5}', "\0", '{"session": "x", "pid": "1"}'])
def test_a_record_that_is_none_blocks_nobody(tmp_path, text):
    (tmp_path / "live.json").write_text(text)
    (tmp_path / ".live.end").write_text(text)
    with Hold(tmp_path, LAUNCH, "train") as hold:
        hold.look()
        assert hold.code == 0


def test_files_that_are_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "live.json").symlink_to(victim)
    with Hold(folder, LAUNCH, "train"):
        assert victim.read_text() == "precious"
    (folder / ".live.lock").unlink()
    (folder / ".live.lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot write the run folder"):
        Hold(folder, LAUNCH, "train").__enter__()
    assert victim.read_text() == "precious"


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Gives this process the environment of a rank of a session and a launcher."""

    def be(session: str, launcher: str) -> None:
        monkeypatch.setenv("MS_ROLE", "MS_WORKER")
        monkeypatch.setenv(LAUNCH_MARK, f"{session}:0")
        monkeypatch.setenv(LAUNCHER, launcher)

    return be


def test_a_rank_stops_when_its_launcher_goes_or_another_start_comes(tmp_path, as_rank):
    with Hold(tmp_path, LAUNCH, "launch") as hold:
        as_rank(hold.session, f"{os.getpid()}:{birth(os.getpid())}")
        with Member(tmp_path, LAUNCH) as member:
            member.look()
            assert member.code == 0
            as_rank(hold.session, f"{os.getpid()}:1")
            member.look()
            assert member.code == EXIT_ORPHANED
            as_rank(hold.session, f"{os.getpid()}:{birth(os.getpid())}")
            (tmp_path / ".live.end").write_text(json.dumps({"session": hold.session}))
            member.look()
            assert member.code == EXIT_OVERTAKEN


def test_a_late_rank_of_a_start_that_is_over_does_not_begin(tmp_path, as_rank):
    with Hold(tmp_path, LAUNCH, "launch"):
        as_rank("an older session", f"{os.getpid()}:{birth(os.getpid())}")
        with pytest.raises(UserError, match="is not held for this rank"):
            Member(tmp_path, LAUNCH).__enter__()


def test_who_watches_over_a_process(tmp_path, as_rank):
    alone = Place(rank=0, world=1, local_world=1)
    assert isinstance(joined(tmp_path, LAUNCH, alone, False), Hold)
    assert not isinstance(joined(tmp_path, LAUNCH, Place(rank=1, world=2, local_world=2), False), Hold)
    as_rank("s", "1:1")
    assert isinstance(joined(tmp_path, LAUNCH, alone, False), Member)
