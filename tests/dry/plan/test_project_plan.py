"""The page that replays the project plan says what the arithmetic and the planner say."""

import re
from pathlib import Path

import pytest

from mindmoe.cli.main import main
from mindmoe.config.load import load_config
from mindmoe.plan.architecture import from_config

TOKENS, PEAK = 2.5e12, 163.8e15
DAY = 86400.0
BAR = "\u2502"  # between the columns of a table on the console


@pytest.fixture
def page(root: Path) -> dict[str, tuple[str, str]]:
    """The values of the table, and where they come from, by quantity."""
    lines = (root / "docs" / "cluster.md").read_text("utf-8").split("## The project plan's own numbers")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def test_the_arithmetic(page: dict[str, tuple[str, str]]) -> None:
    total, active = 116_829_156_672, 5_132_849_472
    assert page["peak of a card"][0] == f"{PEAK / 512 / 1e12:.1f} TFLOP/s"
    assert page["FLOPs, as the plan counts"][0] == f"{6 * total * TOKENS:.2e}".replace("e+", "e")
    assert page["days at 100% of the peak, as the plan counts"][0] == f"{6 * total * TOKENS / PEAK / DAY:.1f}"
    assert page["days at 30% of the peak, as the plan counts"][0] == f"{6 * total * TOKENS / (0.3 * PEAK) / DAY:.1f}"
    assert page["FLOPs of the parameters that work"][0] == f"{6 * active * TOKENS:.2e}".replace("e+", "e")
    assert page["days at 30% of the peak"][0] == f"{6 * active * TOKENS / (0.3 * PEAK) / DAY:.1f}"


@pytest.mark.slow
def test_the_planner(page: dict[str, tuple[str, str]], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "configs" / "gpt-oss-120b.yaml"
    run = load_config(path)
    per_token = from_config(run.name, run.model, run.moe).flops_per_token(4096)
    name = "FLOPs with attention and head, by the planner's rule"
    assert page[name][0] == f"{per_token * TOKENS:.2e}".replace("e+", "e")
    steps = round(TOKENS / (run.train.global_batch_size * run.train.seq_length))
    assert main(["plan", str(path), "--cards", "512", "--hardware", "ascend-910b2", f"train.steps={steps}"]) == 0
    out = capsys.readouterr().out
    days = re.search(r"days at the planned speed\W+([\d.]+)", out)
    first = next(line for line in out.splitlines() if line.startswith(f"{BAR} 1 ")).split(BAR)
    assert days and page["days, by the planner"] == (
        days[1],
        f"{first[9].strip()} s for 8.4M tokens on 910B2, MFU {first[12].strip()}",
    )
