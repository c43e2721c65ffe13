"""Layouts of every axis compute what one process computes; `make equiv` runs all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "equiv.yaml"


def equiv(corpus: Path, out: Path, steps: int, layouts: list[str], *words: str) -> tuple[int, str, dict]:
    command = [sys.executable, "-m", "mindmoe", "equiv", str(CONFIG), *words, f"data.sources={corpus}"]
    command += ["model.vocab_size=384", "moe.dispatch.capacity_chunk=16", f"train.steps={steps}", "--out", str(out)]
    done = subprocess.run([*command, "--layouts", *layouts], capture_output=True, text=True, timeout=290)
    found = out / "equiv.json"
    return done.returncode, done.stdout + done.stderr, json.loads(found.read_text()) if found.exists() else {}


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, ["tp2,ep2,etp1,graph", "cp2,ep2,ring", "pp2,interleaved,chunks2", "dp2,ep2,capacity,graph", "dp2,zero2"]),
        (4, ["tp2,pp2,graph", "dp2,cp2,ep4,ulysses", "dp2,tp2,ep2,zero1", "pp2,dp2,zero3,full"]),
    ],
)
def test_layouts_equal_one_process(corpus, tmp_path, ranks, layouts):
    code, output, found = equiv(corpus, tmp_path / "traces", 2, layouts)
    assert code == 0, output
    assert [row["layout"] for row in found["layouts"]] == layouts
    assert all(row["equal"] and row["ranks"] == ranks for row in found["layouts"])


def test_the_same_layout_twice_is_bitwise_equal(corpus, tmp_path):
    import numpy as np

    for name in ("first", "second"):
        code, output, _ = equiv(corpus, tmp_path / name, 2, ["dp2,ep2"])
        assert code == 0, output
    for rank in (0, 1):
        files = [np.load(tmp_path / name / "dp2-ep2" / f"rank-{rank}.npz") for name in ("first", "second")]
        assert files[0].files == files[1].files
        assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0].files)
