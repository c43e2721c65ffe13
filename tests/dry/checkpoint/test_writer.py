"""Many ranks, one checkpoint: balanced, in the background, and all of one mind when something goes wrong."""

import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mindmoe.checkpoint import store, writer
from mindmoe.checkpoint.balance import share_out
from mindmoe.checkpoint.chunks import Box, Image
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.manifest import ShardRecord
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.writer import SavePolicy, Writer
from mindmoe.errors import CheckpointError


@pytest.fixture(scope="module")
def rank() -> ModuleType:
    """The module that the ranks run."""
    spec = importlib.util.spec_from_file_location("rank", Path(__file__).with_name("rank.py"))
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


def test_shares_are_balanced_and_tile() -> None:
    shapes = [(1000, 64), (500, 64), (64, 64), (64,), (), (0, 3)]
    held = []
    for rank in range(4):  # experts are cut in two, and every box is on two ranks; the rest is on all
        boxes = {f"w{i}": Box("F32", shape, shape, (0,) * len(shape)) for i, shape in enumerate(shapes)}
        boxes |= {f"e{i}": Box("F32", (4, 64, 64), (8, 64, 64), (4 * (rank % 2), 0, 0)) for i in range(8)}
        boxes["empty here"] = Box("F32", (0 if rank else 5,), (5,), (5 if rank else 0,))
        held.append(boxes)
    names = share_out(held)
    written = sorted((name, held[rank][name].offset) for rank, mine in enumerate(names) for name in mine)
    assert len(written) == len(set(written)) == len(shapes) + 16 + 1
    loads = [sum(held[rank][name].nbytes for name in mine) for rank, mine in enumerate(names)]
    assert max(loads) <= 4 / 3 * sum(loads) / 4
    held[1]["w0"] = Box("F16", (1000, 64), (1000, 64), (0, 0))
    with pytest.raises(ValueError, match="w0 is F16"):
        share_out(held)


def alone(root: Path, boxes: dict[str, Box], saver: ModuleType) -> Writer:
    policy = SavePolicy(retention=Retention(keep_last=2), min_free=0, timeout=10)
    return Writer(root, boxes, rank=0, world=1, meta=saver.meta(store.claim(root)), policy=policy)


def test_training_goes_on_and_never_has_two_copies_under_way(
    ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, buffers, real = threading.Semaphore(0), set(), writer.write_image

    def held_up(path: Path, image: Image) -> ShardRecord:
        buffers.add(np.frombuffer(image.buffer, np.uint8).__array_interface__["data"][0])
        gate.acquire()
        return real(path, image)

    monkeypatch.setattr(writer, "write_image", held_up)
    one = alone(ram, {"w": Box("F32", (1000,), (1000,), (0,))}, saver)
    live = np.zeros(1000, np.float32)
    one.save(1, lambda _: live)
    live += 1  # the next step changes the weights while they are being written
    assert one.busy and not one.poll() and not list_steps(ram), "nothing is acknowledged before it is durable"
    real_join, waiting = one._join, threading.Event()

    def join(timeout: float | None) -> bool:
        waiting.set()
        return real_join(timeout)

    monkeypatch.setattr(one, "_join", join)
    second = threading.Thread(target=one.save, args=(2, lambda _: live))
    second.start()
    waiting.wait()
    time.sleep(0.1)  # how long it waits is part of what it tells
    assert second.is_alive() and not list_steps(ram), "the second save waits for the first"
    gate.release()
    second.join()
    gate.release()
    first, last = sorted(one.wait(), key=lambda outcome: outcome.step)
    assert first.path and last.path and last.stall >= 0.1 and last.copy < last.stall
    assert [float(store.load(path)[0]["w"][0]) for path in (first.path, last.path)] == [0.0, 1.0]
    assert len(buffers) == 1, "the staging buffer is used again"


def test_a_failure_is_an_outcome_and_the_next_save_works(
    ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = alone(ram, {"w": Box("F32", (10,), (10,), (0,))}, saver)
    for error in (OSError(28, "No space left on device"), ZeroDivisionError("a bug")):

        def fail(*_: Any, why: BaseException = error) -> None:
            raise why

        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_image", fail)
            one.save(1, lambda _: np.zeros(10, np.float32))
            (outcome,) = one.wait()
        assert outcome.path is None and isinstance(outcome.error, CheckpointError) and outcome.error.remedy
        assert not list(ram.glob(".tmp-step*"))
    one.save(2, lambda _: np.ones(10, np.float32), {"eval_loss": 2.5})
    (outcome,) = one.wait()
    assert outcome.path is not None and store.load(outcome.path)[1].meta.state["eval_loss"] == 2.5


def test_leaving_while_a_save_is_written(
    ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release, real = threading.Event(), writer.write_image

    def stuck(path: Path, image: Image) -> ShardRecord:
        release.wait()
        return real(path, image)

    monkeypatch.setattr(writer, "write_image", stuck)
    one = alone(ram, {"w": Box("F32", (10,), (10,), (0,))}, saver)
    one.save(1, lambda _: np.zeros(10, np.float32))
    one.close(timeout=0.2)  # returns although the save is stuck
    assert "given up" in caplog.text
    assert not list_steps(ram)
    release.set()
    assert one.wait()[0].path is not None


def test_a_writer_of_an_earlier_run_cannot_publish(ram: Path, saver: ModuleType) -> None:
    boxes = {"w": Box("F32", (10,), (10,), (0,))}
    first, second = alone(ram, boxes, saver), alone(ram, boxes, saver)
    first.save(7, lambda _: np.zeros(10, np.float32))
    second.save(3, lambda _: np.ones(10, np.float32))
    (failed,), (saved,) = first.wait(), second.wait()
    assert saved.path is not None and failed.error is not None and "claimed by writer" in failed.error.message
    assert [path.name for path in list_steps(ram)] == ["step-00000003"]
