"""What a launch does when something goes wrong: one clear word, a code, nothing left behind."""

import os
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest


HANG_TIMEOUT = 15  # [s], several times what a step or a save takes on a busy machine
WORDS = ("launch", "--cards", "2", "train.steps=4000", f"launch.hang_timeout={HANG_TIMEOUT}")


def pid_of(cli, name: str, rank: int) -> int:
    return int((cli.folder / "runs" / name / "logs" / f"rank_{rank}.pid").read_text())


def port_of(cli) -> int:
    """The port of the rendezvous, from the command of msrun's workers."""
    for process in cli.related():
        with suppress(psutil.Error):  # it may just be ending
            for word in process.cmdline():
                if word.startswith("--master_port="):
                    return int(word.partition("=")[2])
    raise AssertionError("msrun does not run")


@pytest.fixture
def inject(cli):
    """Makes a rank of the next launch fail when asked: inject(rank, kind)."""
    folders = [str(Path(__file__).parent / "inject"), os.environ.get("PYTHONPATH", "")]
    cli.env |= {"FAULT_FOLDER": str(cli.folder), "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    return lambda rank, kind: (cli.folder / f"rank_{rank}.{kind}").touch()


def ends_within(seconds: float, process: subprocess.Popen, cli) -> str:
    """The output of a launch that must fail, without an orphan and with its port free.

    It takes `seconds` on a machine that has nothing else to do; on another one nobody knows.
    """
    port = port_of(cli)
    output, _ = process.communicate(timeout=seconds + 400)
    assert process.returncode == 1, output
    assert not cli.related()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections linger, listeners do not
        probe.bind(("127.0.0.1", port))
    return output


def test_a_killed_rank_ends_the_launch_and_is_named(cli):
    process = cli.start(*WORDS, "name=killed")
    cli.wait_for_step("killed", 2, process)
    psutil.Process(pid_of(cli, "killed", 1)).kill()
    output = ends_within(30, process, cli)
    assert re.search(r"rank 1 was killed by signal 9 \(it was in step \d+, \w+", output), output
    assert "last lines of" in output and "worker_1.log" in output and "launch again to resume" in output


def test_a_rank_that_raises_ends_the_launch_and_is_named(cli, inject):
    process = cli.start(*WORDS, "name=raised")
    cli.wait_for_step("raised", 2, process)
    inject(1, "raise")
    output = ends_within(30, process, cli)
    assert re.search(r"rank 1 failed first: RuntimeError: injected fault \(it was in step \d+, reading data\)", output)
    assert "worker_1.log" in output and "in _fail" in output  # the end of its stack


@pytest.mark.parametrize("kind", ["sleep", "deadlock"])
def test_a_hanging_rank_ends_the_launch_and_is_named(cli, inject, kind):
    process = cli.start(*WORDS, "name=hung")
    cli.wait_for_step("hung", 2, process)
    inject(1, kind)
    output = ends_within(HANG_TIMEOUT + 30, process, cli)
    assert re.search(
        r"no rank has made progress for \d+ s: rank 1 is in step \d+, reading data, "
        r"and rank 0 waits for it in \w+",
        output,
    ), output
    assert "worker_1.log" in output and "sitecustomize.py" in output and "in _fail" in output  # its stack


def test_a_stopped_process_ends_the_launch_and_is_named(cli):
    process = cli.start(*WORDS, "name=stopped")
    cli.wait_for_step("stopped", 2, process)
    psutil.Process(pid_of(cli, "stopped", 1)).suspend()
    output = ends_within(HANG_TIMEOUT + 30, process, cli)
    assert re.search(r"no rank has made progress for \d+ s: stopped by a signal: rank 1 in step \d+", output), output
    assert "its stacks" in output and "most recent call first" in output


def test_a_killed_rank_is_started_again_from_the_newest_checkpoint(cli, trace):
    process = cli.start(*WORDS, "name=again", "train.steps=12", "launch.restarts=1", "launch.backoff=0")
    cli.wait_for_step("again", 4, process)
    psutil.Process(pid_of(cli, "again", 0)).kill()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "rank 0 was killed by signal 9" in output
    assert re.search(r"restart 1 of 1 without a newer checkpoint, from step \d+, in 0 s", output), output
    assert "resuming from step" in output and len(trace("again")) == 12
    assert (cli.folder / "runs" / "again" / "logs" / "attempt-001" / "worker_0.log").exists()


def test_a_run_that_fails_at_once_each_time_is_given_up(cli, inject):
    inject(1, "raise")
    code, output = cli.run(*WORDS, "name=vain", "launch.restarts=1", "launch.backoff=0")
    assert code == 1, output
    assert output.count("rank 1 failed first: RuntimeError: injected fault") == 2
    assert "1 restarts (launch.restarts) have brought no newer checkpoint than step 0" in output


def test_a_stopped_launch_twice_asked_ends_at_once(cli):
    process = cli.start("launch", "--cards", "2", "name=twice", "train.steps=400")
    cli.wait_for_step("twice", 1, process)
    process.terminate()
    assert any("press again to end at once" in line for line in process.stdout)
    process.terminate()
    process.communicate(timeout=400)
    assert process.returncode in (143, -15)
    assert not cli.related()


def test_a_port_in_use_is_refused_before_anything_starts(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, output = cli.run("launch", "--cards", "2", f"launch.port={taken.getsockname()[1]}")
    assert code == 2 and "launch.port=" in output and "launch.port=0" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.sources=nowhere"], "nowhere"),
        (["model.vocab_size=100"], "vocab"),
        (["train.global_batch_size=4096"], "held-out"),
        (["moe.num_experts_per_tok=9"], "num_experts_per_tok=9"),
        (["model.num_key_value_heads=3"], "num_key_value_heads=3"),
        (["train.steps=-1"], "train.steps"),
        (["train.global_batch_size=7"], "global_batch_size=7"),
        (["parallel.tp=3"], "parallel.tp=3"),
        (["output_dir=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_mistakes_are_one_clear_error(cli, words, expected):
    code, output = cli.run("launch", "--cards", "2", *words)
    assert code == 2, output
    assert expected in output and "Traceback" not in output


def test_a_folder_of_another_run_is_refused_and_untouched(cli):
    code, output = cli.run("train", "name=kept", "train.steps=2")
    assert code == 0, output
    before = {path: path.read_bytes() for path in cli.metrics("kept").parent.rglob("*") if path.is_file()}
    code, output = cli.run("train", "name=kept", "train.steps=4", "model.hidden_size=16")
    assert code == 2 and "model.hidden_size: 32 there, 16 here" in output
    assert before == {path: path.read_bytes() for path in cli.metrics("kept").parent.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_with_a_checkpoint(cli, trace):
    code, output = cli.run(
        "train",
        "name=nan",
        "train.steps=20",
        "optim={type: sgd, lr: 1.0, clip_norm: 0, warmup_steps: 0, schedule: constant}",
        "moe.balance.z_coef=1e4",
    )
    assert code == 3, output
    said = re.search(r"not finite.* saved as step (\d+)", output)
    assert said and (cli.metrics("nan").parent / "checkpoints" / f"step-{int(said[1]):08d}").is_dir()
