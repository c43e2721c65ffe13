"""A router that another package brings: found by its entry point, checked like any section."""

from pathlib import Path

import pytest

from mindmoe.config.load import config_schema, dump_config, load_config
from mindmoe.host.errors import ConfigError
from mindmoe.moe.router.types import router_class, router_types

QUICKSTART, MIN_P = "configs/quickstart.yaml", "examples/router-min-p/min-p.yaml"


def problems(root: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as info:
        load_config(root / QUICKSTART, overrides, root / MIN_P)
    return info.value.problems


def test_without_the_package_the_types_that_are_there_are_named(root: Path) -> None:
    (problem,) = problems(root)
    assert problem.endswith(
        "moe.router={...}: must have a type that is one of static, moge, top_p, expert_choice, dmr: change its type"
    )


def test_with_the_package_its_preset_loads_and_is_written_back(
    root: Path, router_package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(router_package)
    assert router_types()[-1] == "min_p"
    config = load_config(root / QUICKSTART, preset=root / MIN_P)
    assert config.moe is not None and type(config.moe.router) is router_class("min_p")
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    titles = [known["title"] for known in config_schema()["$defs"]["MoeConfig"]["properties"]["router"]["oneOf"]]
    assert titles == ["TopK", "Moge", "TopP", "ExpertChoice", "Dmr", "MinP"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("moe.router.kmax=3", "override moe.router.kmax=3: unknown key; did you mean moe.router.k_max?"),
        ("moe.router.p=2", "override moe.router.p=2: must be at most 1: lower it"),
        ("moe.router.type=minp", "must have a type that is one of static, moge, top_p, expert_choice, dmr, min_p: "
         "did you mean min_p?"),
        ("moe.router.k_max=99", "must be at most num_experts=16: lower router.k_max"),
    ],
)  # fmt: skip
def test_its_keys_are_checked_like_any_others(
    root: Path, router_package: Path, monkeypatch: pytest.MonkeyPatch, override: str, problem: str
) -> None:
    monkeypatch.syspath_prepend(router_package)
    assert any(found.endswith(problem) for found in problems(root, override)), problems(root, override)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('half an update')", "cannot be loaded: RuntimeError('half an update')"),
        ("MinP = dict", "is no mindmoe.moe.router.base.Router"),
        ("from mindmoe.moe.router.base import Router as MinP", "has no `build`, so it routes nothing"),
    ],
)
def test_a_package_that_is_broken_is_named(
    root: Path, router_package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str
) -> None:
    for path in router_package.glob("*.dist-info"):
        (tmp_path / path.name).mkdir()
        for file in ("METADATA", "entry_points.txt"):
            (tmp_path / path.name / file).write_text((path / file).read_text())
    entry = next(tmp_path.glob("*.dist-info")) / "entry_points.txt"
    entry.write_text(entry.read_text().replace("router_min_p:", "router_broken:"))
    (tmp_path / "router_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "router_broken", raising=False)
    (problem,) = problems(root)
    assert f"router.type=min_p of router-min-p {said}: mend or remove that package" in problem
