"""Every file under configs/ can be used."""

import re
from pathlib import Path

from mindmoe.load import load_config


def _runs(root: Path) -> list[Path]:
    return sorted((root / "configs").glob("*.yaml"))


def test_every_run_loads_and_is_named_after_its_file(root: Path) -> None:
    runs = _runs(root)
    assert runs
    assert {path.stem: load_config(path).name for path in runs} == {path.stem: path.stem for path in runs}


def test_every_part_belongs_to_a_run(root: Path) -> None:
    included = {name for path in _runs(root) for name in re.findall(r"[\w/.-]+\.yaml", _include(path))}
    parts = {str(path.relative_to(root / "configs")) for path in (root / "configs").glob("*/**/*.yaml")}
    assert parts == included


def _include(path: Path) -> str:
    return next((line for line in path.read_text().splitlines() if line.startswith("include:")), "")
