"""A run that d5266f2 began on two ranks goes on under this version as it did under that one."""

import shutil
from pathlib import Path

import pytest

LOSSES = (3.97621750831604, 3.978952407836914)  # of steps 5 and 6 there [nats per token]
NORMS = (0.9691046711573034, 0.7483065878910871)  # of their gradients


@pytest.fixture
def old_run(cli, root: Path) -> Path:
    """A copy of the run in the folder of the command line."""
    asset = root / "tests/assets/old-run"
    for name in ("tokens.bin", "tokens.idx"):
        shutil.copy(asset / name, cli.folder / name)
    cli.config = Path(shutil.copy(asset / "config.yaml", cli.folder / "old.yaml"))
    shutil.copytree(asset / "step-00000004", cli.folder / "runs/old/checkpoints/step-00000004")
    return cli.folder


# Two ranks go on as they were; alone, the sums over ranks are taken in another order.
@pytest.mark.parametrize("command", [("launch", "--cards", "2"), ("train", "parallel.ep=1", "parallel.zero=0")])
def test_it_goes_on(cli, old_run, command):
    tokens = f"data={{sources: {old_run / 'tokens'}, valid: {old_run / 'tokens'}}}"
    code, output = cli.run(*command, f"output_dir={old_run / 'runs'}", tokens)
    assert code == 0, output
    assert "resuming from step 4" in output
    records = read_train(cli)
    assert [record["step"] for record in records] == [5, 6]
    assert [record["loss"] for record in records] == pytest.approx(LOSSES, abs=1e-5)
    assert [record["grad_norm"] for record in records] == pytest.approx(NORMS, rel=1e-4)


def read_train(cli) -> list[dict]:
    from mindmoe.observe.metrics import read_metrics

    return [record for record in read_metrics(cli.metrics("old")) if record["kind"] == "train"]
