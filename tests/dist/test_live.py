"""One set of ranks in a run folder: a launcher that goes, a second start, and a takeover."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.observe.metrics import read_metrics

WORDS = ("launch", "--cards", "2", "train.steps=4000", "checkpoint.every=0")


def folder_of(cli, name: str) -> Path:
    return cli.folder / "runs" / name


def wait_until_alone(cli) -> None:
    """Returns once no process of a run is left; only a run that never ends takes as long as this allows."""
    deadline = time.monotonic() + 120
    while left := cli.related():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def saved_step(cli, name: str) -> int:
    """The step that a run has saved, which must be the last one that it has recorded."""
    step = step_of(list_steps(folder_of(cli, name) / "checkpoints")[0])
    assert step == max(record["step"] for record in read_metrics(cli.metrics(name)) if record["kind"] == "train")
    return step


def goes_on(cli, name: str, step: int) -> str:
    """A later start of the same command resumes; returns what it printed."""
    words = [f"train.steps={step + 1}", "optim.on_jump=accept", "checkpoint.every=0"]
    code, output = cli.run("launch", "--cards", "2", f"name={name}", *words)
    assert code == 0 and f"resuming from step {step}" in output, output
    return output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_ranks_whose_launcher_goes_save_and_end(cli, number):
    process = cli.start(*WORDS, "name=gone")
    cli.wait_for_step("gone", 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143), output
    wait_until_alone(cli)
    step = saved_step(cli, "gone")
    said = [record["message"] for record in read_metrics(cli.metrics("gone")) if record.get("event") == "signal"]
    assert said == [
        ("a launcher has gone" if number == signal.SIGKILL else "asked to stop")
        + f": saved step {step}; the same command resumes there"
    ]
    goes_on(cli, "gone", step)


def test_a_terminal_that_closes_ends_the_run_after_saving(cli):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mindmoe", WORDS[0], str(cli.config), *WORDS[1:], "name=closed"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "GLOG_v": "3", "NO_COLOR": "1"},
    )
    os.close(slave)
    cli.wait_for_step("closed", 2, process)
    os.close(master)
    assert process.wait(timeout=120) == 143
    wait_until_alone(cli)
    assert saved_step(cli, "closed") >= 2


def test_a_process_alone_that_is_hung_up_saves_and_ends(cli):
    process = cli.start("train", "name=alone", "train.steps=4000", "checkpoint.every=0")
    cli.wait_for_step("alone", 1, process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # a closing terminal sends it twice
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 129, output
    assert saved_step(cli, "alone") >= 1
    assert not (folder_of(cli, "alone") / "live.json").exists()


def test_a_second_start_is_refused_and_a_takeover_is_not(cli):
    first = cli.start(*WORDS, "name=one")
    cli.wait_for_step("one", 2, first)
    for words in (("launch", "--cards", "2"), ("train",), ("launch", "--cards", "2", "--cards-per-node", "1", "--slurm")):
        code, output = cli.run(*words, "name=one", "train.steps=4000", "checkpoint.every=0")
        assert code == 2, output
        assert re.search(rf"in use by `mindmoe launch`, process {first.pid} on \S+, alive \d+ s ago", output), output
        assert "--takeover" in output
    assert first.poll() is None
    second = cli.start("launch", "--cards", "2", "--takeover", "name=one", "train.steps=4001", "checkpoint.every=0")
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 5 and "another start takes this run over" in output, output
    step = saved_step(cli, "one")
    cli.wait_for_step("one", step + 1, second)
    second.terminate()
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 143 and f"process {first.pid} on " in output and f"resuming from step {step}" in output


def test_a_process_alone_is_taken_over(cli):
    first = cli.start("train", "name=mine", "train.steps=4000", "checkpoint.every=0")
    cli.wait_for_step("mine", 1, first)
    second = cli.start("train", "--takeover", "name=mine", "train.steps=4001", "checkpoint.every=0")
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 5 and "another start takes this run over: saved step" in output, output
    cli.wait_for_step("mine", saved_step(cli, "mine") + 1, second)
    second.terminate()
    assert second.wait(timeout=120) == 143


def test_a_start_after_a_killed_launcher_waits_for_its_ranks(cli):
    """A rank that is stopped does not end: the next start must not begin beside it."""
    first = cli.start(*WORDS, "name=late", "launch.hang_timeout=0")
    cli.wait_for_step("late", 2, first)
    rank = psutil.Process(int((folder_of(cli, "late") / "logs" / "rank_1.pid").read_text()))
    rank.suspend()
    first.kill()
    first.wait()
    second = cli.start(*WORDS, "name=late")
    assert second.stdout is not None
    line = next(line for line in second.stdout if "has gone" in line)
    assert f"process {first.pid} on " in line and "waiting for its ranks" in line
    before = set(folder_of(cli, "late").glob("logs/worker_*.log")), rank.pid
    assert second.poll() is None and rank.status() == psutil.STATUS_STOPPED, before
    rank.resume()
    rest = ""
    for line in second.stdout:
        rest += line
        if "resuming from step" in line:
            break
    # Its parent, which waits for the other ranks, may not have taken note of its end.
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, rest
    second.terminate()
    second.communicate(timeout=120)
    assert second.returncode == 143


def test_the_log_of_rank_0_has_the_steps(cli):
    code, output = cli.run("launch", "--cards", "2", "name=logged", "train.steps=3")
    assert code == 0, output
    log = (folder_of(cli, "logged") / "logs" / "worker_0.log").read_text()
    steps = [int(found[1]) for found in re.finditer(r"^ +(\d+) +\d+\.\d{4} ", log, re.MULTILINE)]
    assert steps == [1, 2, 3] and "valid loss" in log and "finished 3 steps" in log
