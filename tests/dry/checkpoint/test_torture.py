"""The torture itself: it finds nothing wrong with ours, and finds what is wrong with a writer that is."""

from dataclasses import replace
from pathlib import Path

import pytest

from mindmoe.checkpoint.torture import faults, power_loss
from mindmoe.checkpoint.torture.contenders import ours, plain_safetensors
from mindmoe.checkpoint.torture.state import plain


def test_a_writer_that_does_not_verify_is_caught(ram: Path) -> None:
    verdict = faults.flips(plain_safetensors(), ram / "x", 12)
    assert verdict.silent > 0 and verdict.trials == 12


@pytest.mark.slow
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
