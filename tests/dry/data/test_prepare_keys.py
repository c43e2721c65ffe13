"""The table of `data prepare --help` says what PrepareConfig obeys."""

import pytest

from mindmoe.cli.data import PREPARE_KEYS
from mindmoe.cli.main import main
from mindmoe.config.load import load_section
from mindmoe.data.config import PrepareConfig


def test_names_and_defaults() -> None:
    assert list(PREPARE_KEYS) == list(PrepareConfig.model_fields)
    written = load_section(PrepareConfig, [f"{key}={default}" for key, (default, _) in PREPARE_KEYS.items()])
    assert written == PrepareConfig()


def test_they_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "prepare", "--help"])
    out = capsys.readouterr().out
    for key, (default, what) in PREPARE_KEYS.items():
        assert f"{key}={default}" in out and what in out
    assert "example: mindmoe data prepare" in out
