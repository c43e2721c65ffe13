"""The page that replays the project plan says what the arithmetic and the planner say."""

import re
from pathlib import Path

import pytest

from mindmoe.cli import main
from mindmoe.load import load_config
from mindmoe.planner.architecture import from_config

TOKENS, PEAK = 2.5e12, 163.8e15
DAY = 86400.0


@pytest.fixture
def page(root: Path) -> dict[str, str]:
    """The values of the table by quantity."""
    lines = (root / "docs" / "cluster.md").read_text("utf-8").split("## The project plan's own numbers")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 3}


def test_the_arithmetic(page: dict[str, str]) -> None:
    total, active = 116_829_156_672, 5_132_849_472
    assert page["peak of a card"] == f"{PEAK / 512 / 1e12:.1f} TFLOP/s"
    assert page["FLOPs, as the plan counts"] == f"{6 * total * TOKENS:.2e}".replace("e+", "e")
    assert page["days at 100% of the peak, as the plan counts"] == f"{6 * total * TOKENS / PEAK / DAY:.1f}"
    assert page["days at 30% of the peak, as the plan counts"] == f"{6 * total * TOKENS / (0.3 * PEAK) / DAY:.1f}"
    assert page["FLOPs of the parameters that work"] == f"{6 * active * TOKENS:.2e}".replace("e+", "e")
    assert page["days at 30% of the peak"] == f"{6 * active * TOKENS / (0.3 * PEAK) / DAY:.1f}"


def test_the_planner(page: dict[str, str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "configs" / "gpt-oss-120b.yaml"
    run = load_config(path)
    per_token = from_config(run.name, run.model, run.moe).flops_per_token(4096)
    name = "FLOPs with attention and head, by the planner's rule"
    assert page[name] == f"{per_token * TOKENS:.2e}".replace("e+", "e")
    steps = round(TOKENS / (run.train.global_batch_size * run.train.seq_length))
    assert main(["plan", str(path), "--cards", "512", "--hardware", "ascend-910b2", f"train.steps={steps}"]) == 0
    said = re.search(r"days at the planned speed\W+([\d.]+)", capsys.readouterr().out)
    assert said and page["days, by the planner"] == said[1]
