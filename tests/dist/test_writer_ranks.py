"""Many ranks, one checkpoint: of one mind, and nothing acknowledged lost, whatever goes wrong on some of them.

The ranks are processes without MindSpore; tests/dist/programs/rank.py is what each runs.
"""

import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps


@pytest.fixture(scope="module")
def rank() -> ModuleType:
    """The module that the ranks run."""
    spec = importlib.util.spec_from_file_location("rank", Path(__file__).parent / "programs" / "rank.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    root: Path,
    rank: ModuleType,
    source: Path,
    world: int,
    steps: int,
    victim: int | None = None,
    every: str = "",
    **faults: str,
) -> list[list[list[str]]]:
    """Runs all ranks to their end; the words of each line each of them printed.

    Args:
        victim: a rank that kills itself; once it has gone, time passes quickly for the others.
        every: the fault of ranks that have none of their own.
        faults: by `rankR`.
    """
    (root / rank.DEAD).unlink(missing_ok=True)
    generation = store.claim(root)
    processes = [
        subprocess.Popen(
            [sys.executable, str(rank.__file__), str(root), str(r), str(world), generation, str(steps)]
            + faults.get(f"rank{r}", every).split(),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        for r in range(world)
    ]
    try:
        if victim is not None:
            processes[victim].wait()
            (root / rank.DEAD).touch()
            while any(process.poll() is None for process in processes):
                rank.advance(root, rank.TIMEOUT / 4)
                time.sleep(0.02)
        return [[line.split(maxsplit=2) for line in process.communicate()[0].splitlines()] for process in processes]
    finally:
        for process in processes:
            process.kill()


def is_whole(root: Path, rank: ModuleType, step: int) -> bool:
    found = store.newest_valid(root)
    wanted = rank.state(step)
    return (
        found is not None
        and found.manifest.step == step
        and found.tensors.keys() == wanted.keys()
        and all(found.tensors[name].tobytes() == array.tobytes() for name, array in wanted.items())
    )


@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_save_one_step(ram: Path, rank: ModuleType, root: Path, world: int) -> None:
    printed = run(ram, rank, root, world, 5)
    assert [[line[:2] for line in lines] for lines in printed] == [[[str(s), "saved"] for s in range(1, 6)]] * world
    assert is_whole(ram, rank, 5)
    assert len(list_steps(ram)) == 3
    newest = list_steps(ram)[0]
    assert len(list(newest.glob("shard-*"))) == world
    assert sorted(path.name for path in ram.iterdir() if path.name.startswith(".tmp-step")) == []


@pytest.mark.parametrize("fault", ["fail", "slow"])
@pytest.mark.parametrize("culprit", ["rank0", "rank2"])
def test_a_rank_that_fails_or_is_slow(ram: Path, rank: ModuleType, root: Path, fault: str, culprit: str) -> None:
    printed = run(ram, rank, root, 4, 4, **{culprit: f"{fault} 2"})
    for lines in printed:
        assert [line[1] for line in lines] == ["saved", "failed", "saved", "saved"]
        assert ("No space left" if fault == "fail" else "checkpoint.timeout") in lines[1][2]
    assert is_whole(ram, rank, 4)


@pytest.mark.parametrize(("kind", "word"), [("linger", "failed"), ("mute", "saved")])
def test_a_commit_that_takes_longer_than_anybody_waits(
    ram: Path, rank: ModuleType, root: Path, kind: str, word: str
) -> None:
    """Followers that have waited long enough end the save, or find it published: no rank believes something else.

    Rank 0 goes on only when they have, so that they end at all shows that their waiting is bounded.
    """
    printed = run(ram, rank, root, 3, 3, rank0=f"{kind} 2")
    for lines in printed:
        assert [line[1] for line in lines] == ["saved", word, "saved"]
    for lines in printed[1:]:
        assert word == "saved" or "checkpoint.timeout" in lines[1][2]
    assert is_whole(ram, rank, 3)
    assert {store.step_of(path) for path in list_steps(ram)} == ({1, 3} if word == "failed" else {1, 2, 3})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("world", [2, 4])
def test_kill_of_a_random_rank_at_a_random_moment(
    ram: Path, rank: ModuleType, root: Path, world: int, seed: int
) -> None:
    """The survivors agree and end; the newest complete step is found, and no step that a rank called saved is lost."""
    rng = random.Random(f"{world} {seed}")
    victim, changes = rng.randrange(world), rng.randrange(1, 60)
    printed = run(ram, rank, root, world, 500, victim=victim, every="end 0", **{f"rank{victim}": f"kill {changes}"})
    assert len(printed[victim]) < 500, "it was killed"
    survivors = [lines for index, lines in enumerate(printed) if index != victim]
    told = [[line[:2] for line in lines] for lines in survivors]
    assert all(lines == told[0] for lines in told), "of one mind"
    assert [word for _, word in told[0]][-1] == "failed" and all(word == "saved" for _, word in told[0][:-1])
    acknowledged = max(int(step) for lines in printed for step, word, *_ in lines if word == "saved")
    found = store.newest_valid(ram)
    assert found is not None and found.manifest.step >= acknowledged and not found.quarantined
    assert is_whole(ram, rank, found.manifest.step)


@pytest.mark.parametrize("culprit", [0, 3])
def test_a_rank_that_dies(ram: Path, rank: ModuleType, root: Path, culprit: int) -> None:
    printed = run(ram, rank, root, 4, 2, victim=culprit, **{f"rank{culprit}": "die 2"})
    for index, lines in enumerate(printed):
        expected = ["saved"] if index == culprit else ["saved", "failed"]
        assert [line[1] for line in lines] == expected, "the survivors agree, and do not wait for ever"
    assert is_whole(ram, rank, 1)
    run(ram, rank, root, 2, 3)  # another number of ranks takes over
    assert is_whole(ram, rank, 3)
    assert not list(ram.glob(".tmp-step*")), "what the dead run left is gone"
