"""The torture itself: it finds nothing wrong with ours, and finds what is wrong with a writer that is."""

from dataclasses import replace
from pathlib import Path

import pytest

from mindmoe.checkpoint.torture import faults, power_loss
from mindmoe.checkpoint.torture.contenders import ours, plain_safetensors
from mindmoe.checkpoint.torture.state import plain
from mindmoe.cli import main


def test_ours_survives_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ckpt", "torture", "--trials", "8", "--against", "safetensors"]) == 0
    out = capsys.readouterr().out
    assert "8/8" in out and "SILENT" in out and "mutation gate: 5 of 5" in out


def test_a_writer_that_does_not_verify_is_caught(ram: Path) -> None:
    verdict = faults.flips(plain_safetensors(), ram / "x", 12)
    assert verdict.silent > 0 and verdict.trials == 12


def test_a_writer_that_forgets_is_caught(ram: Path) -> None:
    """One whose newest step is gone although it was acknowledged."""
    sound = ours()

    def find_older(root: Path) -> tuple[int, dict] | None:
        found = sound.find(root)
        return (found[0] - 1, plain(found[0] - 1)) if found else None

    verdict = faults.full_disks(replace(sound, find=find_older), ram / "x")
    if verdict is None:
        pytest.skip("mounting a tmpfs needs root")
    assert verdict.lost > 0 and verdict.silent == 0


def test_a_mutation_that_changes_nothing_counts_as_missed(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = power_loss.trace_saves(ram / "live")
    monkeypatch.setattr(power_loss, "without", lambda trace, _: trace)
    assert power_loss.unnoticed(trace, ram / "crashed", 4) == list(power_loss.MUTATIONS)
