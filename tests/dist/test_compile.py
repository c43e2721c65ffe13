"""A rank of 512 compiles with native collectives, and its graph has the derived ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindmoe.dryrun.stubs import environment
from mindmoe.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "gpt-oss-120b.yaml"
SMALL = ["hidden_size=64", "num_hidden_layers=1", "num_attention_heads=8", "head_dim=16", "intermediate_size=64"]


def test_the_compiled_graph_has_the_derived_collectives(tmp_path):
    try:
        environment(tmp_path)
    except UserError as error:
        pytest.skip(str(error))
    words = [f"model.{word}" for word in [*SMALL, "vocab_size=2048"]]
    words += ["train.seq_length=64", "train.global_batch_size=512", "parallel.pp=1"]
    command = [sys.executable, "-m", "mindmoe", "dryrun", str(CONFIG), "--world", "512", "--rank", "7", "--compile"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all_gather over 8 ranks 0-7: 2 in the compiled graph, 2 derived" in done.stdout
    assert "all_reduce over 512 ranks 0-511: 1 in the compiled graph, 1 derived" in done.stdout
    assert "it was compiled only, nothing ran" in done.stdout
