"""A run that changes its layout at every start goes on as if it had never stopped."""

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps
from mindmoe.observe.metrics import read_metrics

SAME = ("train.global_batch_size=6", "train.micro_batch_size=1", "optim.schedule=constant", "train.eval_every=0")
CHAIN = (
    ("launch", "--cards", "2", "parallel.ep=2"),
    ("launch", "--cards", "2", "parallel.tp=2"),
    ("launch", "--cards", "2", "parallel.pp=2"),
    ("launch", "--cards", "3", "parallel.zero=1"),
    ("train",),
)


def losses(cli, name: str) -> list[float]:
    return [record["loss"] for record in read_metrics(cli.metrics(name)) if record["kind"] == "train"]


def test_experts_then_tensors_then_stages_then_three_ranks_then_one(cli):
    code, output = cli.run("train", "name=straight", "train.steps=10", *SAME)
    assert code == 0, output
    for hop, command in enumerate(CHAIN, 1):
        code, output = cli.run(*command, "name=chain", f"train.steps={2 * hop}", *SAME)
        assert code == 0, output
        root = cli.folder / "runs" / "chain" / "checkpoints"
        with store.open_step(list_steps(root)[0]) as checkpoint:
            assert checkpoint.manifest.step == 2 * hop and not list(checkpoint.damage())
    straight, chain = losses(cli, "straight"), losses(cli, "chain")
    assert len(straight) == len(chain) == 10
    assert max(abs(a - b) for a, b in zip(straight, chain, strict=True)) < 1e-5
