"""A run goes on under another layout each time: it loads the same bits, and computes what one process computes."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.digest import add
from mindmoe.observe.metrics import read_metrics

SAME = ("train.global_batch_size=12", "optim.schedule=constant", "train.eval_every=0", "checkpoint.every=2")
LOSS = 1e-5  # [nats per token], the bound on what another order of summing may change
HOPS = (
    ("ep2", 2, ("parallel.ep=2",)),
    ("tp2", 2, ("parallel.tp=2",)),
    ("pp2", 2, ("parallel.pp=2",)),
    ("dp3", 3, ()),
    ("one", 1, ()),
)


@pytest.fixture
def witness(cli) -> Path:
    """The folder where ranks write down what they have loaded."""
    folder = cli.folder / "witness"
    folder.mkdir()
    paths = [str(Path(__file__).parent / "witness"), os.environ.get("PYTHONPATH", "")]
    cli.env |= {"WITNESS": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return folder


def loaded(witness: Path, ranks: int) -> dict[str, str]:
    """The digest of every tensor from what all ranks hold; replicas must be equal and count once."""
    boxes: dict[str, dict[tuple, str]] = {}
    files = sorted(witness.iterdir())
    assert len(files) == ranks, files
    for file in files:
        for name, (offset, shape, digest) in json.loads(file.read_text()).items():
            place = (*offset, *shape)
            assert boxes.setdefault(name, {}).setdefault(place, digest) == digest, f"replicas of {name} differ"
        file.unlink()
    sums = {}
    for name, parts in boxes.items():
        total = 0
        for digest in parts.values():
            total = add(total, int(digest, 16))
        sums[name] = f"{total:016x}"
    return sums


def losses(runs: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(runs / "small" / "metrics.jsonl") if r["kind"] == "train"}


def go_on(cli, runs: Path, ranks: int, words: tuple[str, ...], steps: int) -> None:
    command = ("train",) if ranks == 1 else ("launch", "--cards", str(ranks))
    code, output = cli.run(*command, f"output_dir={runs}", f"train.steps={steps}", *SAME, *words)
    assert code == 0, output


def test_a_chain_of_layouts_loads_the_same_bits_and_goes_on_alike(cli, witness):
    """ep2 -> tp2 -> pp2 -> 3 ranks -> 1 rank; beside each, one process goes on from the same checkpoint."""
    step, chain = 2, cli.folder / "chain"
    go_on(cli, chain, *HOPS[0][1:], step)
    assert not list(witness.iterdir())  # nothing was loaded yet
    for layout, ranks, words in HOPS[1:]:
        alone = cli.folder / f"alone-{layout}"
        shutil.copytree(chain, alone)
        saved = store.open_step(store.list_steps(chain / "small" / "checkpoints")[0])
        assert saved.manifest.step == step
        step += 2
        digests = {name: record.digest for name, record in saved.tensors.items()}
        for runs, place in ((chain, (ranks, words)), (alone, (1, ()))):
            go_on(cli, runs, *place, step)
            assert loaded(witness, place[0]) == digests, layout
        together, by_itself = losses(chain), losses(alone)
        assert list(together) == list(by_itself) == list(range(1, step + 1))
        differ = [abs(together[after] - by_itself[after]) for after in (step - 1, step)]
        assert max(differ) <= (LOSS if ranks > 1 else 0.0), (layout, differ)
