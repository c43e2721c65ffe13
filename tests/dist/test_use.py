"""What a user does with a run: evaluate it, sample from it, read its report."""

import re
import shutil
import subprocess
import sys

import pytest


def mindmoe(*words: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "mindmoe", *words], capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run(cli) -> str:
    code, output = cli.run("train", "name=used", "train.steps=4")
    assert code == 0, output
    return str(cli.folder / "runs" / "used")


def test_eval_generate_and_report(cli, run):
    from mindmoe.observe.metrics import read_metrics

    code, output = mindmoe("eval", run)
    assert code == 0, output
    loss = next(record["loss"] for record in reversed(read_metrics(cli.metrics("used"))) if record["kind"] == "eval")
    assert f"{loss:.4f}" in output and "bits per byte" in output
    code, other = mindmoe("eval", run, "--data", str(cli.corpus))
    assert code == 0 and f"{loss:.4f}" in other

    samples = [
        mindmoe("generate", run, "--prompt", "def ", "--max-new-tokens", "5", "--seed", seed) for seed in ("1", "1")
    ]
    assert samples[0] == samples[1]
    assert samples[0][0] == 0 and samples[0][1].startswith("def ")

    code, output = mindmoe("generate", run, "--prompt", "\udcff", "--max-new-tokens", "1")
    assert code == 2 and "--prompt is not UTF-8: 0xff" in output and "Traceback" not in output
    code, output = mindmoe("generate", run, "--prompt", "word " * 100, "--max-new-tokens", "2")
    assert code == 0 and "the model sees the last 32 of them" in output
    assert mindmoe("generate", run, "--prompt", "", "--max-new-tokens", "2")[0] == 0

    code, output = mindmoe("report", run)
    assert code == 0, output
    page = (cli.metrics("used").parent / "report.html").read_text()
    assert "used" in page and not re.search(r"(src|href)=.https?://", page)


def test_a_vocabulary_padded_beyond_the_tokenizer(cli):
    """At a high temperature, where most draws of an untrained model would have no piece."""
    code, output = cli.run("train", "name=padded", "train.steps=2", "model.vocab_size=4096")
    assert code == 0, output
    words = ("--prompt", "def ", "--max-new-tokens", "30", "--temperature", "9")
    code, output = mindmoe("generate", str(cli.folder / "runs" / "padded"), *words)
    assert code == 0 and output.startswith("def ") and "Traceback" not in output


def test_a_run_that_is_not_there(cli):
    for command in (("eval",), ("generate", "--prompt", "x"), ("report",)):
        code, output = mindmoe(command[0], str(cli.folder / "nowhere"), *command[1:])
        assert code == 2 and "nowhere" in output and "Traceback" not in output


def test_a_checkpoint_of_another_model_is_refused(cli, run):
    other = cli.folder / "runs" / "other"
    shutil.copytree(cli.folder / "runs" / "used" / "checkpoints", other / "checkpoints")
    code, output = cli.run("train", "name=other", "model.hidden_size=16")
    assert code == 2, output
    assert "another model" in output and "model.hidden_size" in output and "Traceback" not in output
    assert sorted(p.name for p in (other / "checkpoints").glob("step-*")) == ["step-00000003", "step-00000004"]


def test_a_corrupt_checkpoint_is_put_aside_and_said(cli, run):
    shard = next((cli.folder / "runs" / "used" / "checkpoints" / "step-00000004").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, output = cli.run("train", "name=used", "train.steps=5")
    assert code == 0, output
    assert "resuming from step 3" in output and "step-00000004" in output, output
    assert output.count("put the corrupt") == output.count("does not match its digest") == 1, "it is said once"
