"""Every file under configs/ can be used."""

import re
from pathlib import Path

from mindmoe.config.load import load_config, load_section
from mindmoe.lab.ablate.config import AblateConfig
from mindmoe.lab.ablate.jobs import Plan


def _runs(root: Path) -> list[Path]:
    return sorted((root / "configs").glob("*.yaml"))


def test_every_run_loads_and_is_named_after_its_file(root: Path) -> None:
    runs = _runs(root)
    assert runs
    assert {path.stem: load_config(path).name for path in runs} == {path.stem: path.stem for path in runs}


def test_every_part_belongs_to_a_run(root: Path) -> None:
    included = {name for path in _runs(root) for name in re.findall(r"[\w/.-]+\.yaml", _include(path))}
    parts = {str(path.relative_to(root / "configs")) for path in (root / "configs").glob("*/**/*.yaml")}
    assert {part for part in parts if not part.startswith(("ablate/", "router/"))} == included


def test_every_router_preset_fits_a_run(root: Path) -> None:
    presets = sorted((root / "configs/router").glob("*.yaml"))
    assert presets
    for preset in presets:
        assert load_config(root / "configs/quickstart.yaml", preset=preset).moe is not None


def test_every_ablation_is_a_valid_plan(root: Path) -> None:
    plans = [path for path in (root / "configs/ablate").glob("*.yaml") if "arms:" in path.read_text()]
    assert plans
    for path in plans:
        ablation = load_section(AblateConfig, path=path)
        assert ablation.name == path.stem
        for arm in ablation.arms:
            Plan(ablation, path.parent).job(arm, ablation.seeds[0])


def _include(path: Path) -> str:
    return next((line for line in path.read_text().splitlines() if line.startswith("include:")), "")
