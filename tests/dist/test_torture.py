"""`mindmoe ckpt torture` as a user runs it; what it is made of is tested in tests/dry/checkpoint."""

import pytest

from mindmoe.cli.main import main


def test_ours_survives_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ckpt", "torture", "--trials", "24", "--against", "safetensors"]) == 0
    out = capsys.readouterr().out
    assert "24/24" in out and "SILENT" in out and "mutation gate: 5 of 5" in out
