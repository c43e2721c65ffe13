"""What a launch does when something goes wrong: one clear word, a code, nothing left behind."""

import re
import socket
import time

import psutil
import pytest


def ranks(cli, name: str) -> dict[int, int]:
    folder = cli.folder / "runs" / name / "logs"
    return {int(path.stem.split("_")[1]): int(path.read_text()) for path in folder.glob("rank_*.pid")}


def test_a_killed_rank_ends_the_launch_and_is_named(cli):
    process = cli.start("launch", "--cards", "2", "name=killed", "train.steps=400")
    cli.wait_for_step("killed", 2, process)
    psutil.Process(ranks(cli, "killed")[1]).kill()
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode not in (0, None)
    assert "rank 1 was killed by signal 9" in output and "resume" in output
    assert not cli.related()


def test_a_stopped_launch_twice_asked_ends_at_once(cli):
    process = cli.start("launch", "--cards", "2", "name=twice", "train.steps=400")
    cli.wait_for_step("twice", 1, process)
    process.terminate()
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=30)
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
        (["parallel.tp=2"], "parallel.tp=2"),
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
        "train", "name=nan", "optim.lr=1.0", "optim.eps=1e-30", "optim.clip_norm=0", "model.initializer_range=1e18"
    )
    assert code == 3, output
    said = re.search(r"not finite.* saved as step (\d+)", output)
    assert said and (cli.metrics("nan").parent / "checkpoints" / f"step-{int(said[1]):08d}").is_dir()
