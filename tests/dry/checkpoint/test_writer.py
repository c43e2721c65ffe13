"""A checkpoint is written in balanced shares and in the background; many ranks: tests/dist/test_writer_ranks.py."""

import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mindmoe.checkpoint import store, writer
from mindmoe.checkpoint.balance import share_out
from mindmoe.checkpoint.chunks import Image
from mindmoe.checkpoint.exchange import Exchange
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.manifest import ChunkRecord, ShardRecord
from mindmoe.checkpoint.retention import Retention
from mindmoe.checkpoint.writer import SavePolicy, Writer
from mindmoe.host.errors import CheckpointError
from mindmoe.parallel.box import Box


def test_shares_are_balanced_and_tile() -> None:
    shapes = [(1000, 64), (500, 64), (64, 64), (64,), (), (0, 3)]
    held = []
    for rank in range(4):  # experts are cut in two, and every box is on two ranks; the rest is on all
        boxes = {f"w{i}": ChunkRecord.of("F32", shape) for i, shape in enumerate(shapes)}
        half = Box((4 * (rank % 2), 0, 0), (4, 64, 64))
        boxes |= {f"e{i}": ChunkRecord.of("F32", (8, 64, 64), half) for i in range(8)}
        boxes["empty here"] = ChunkRecord.of("F32", (5,), Box((5 if rank else 0,), (0 if rank else 5,)))
        held.append(boxes)
    names = share_out(held)
    written = sorted((name, held[rank][name].offset) for rank, mine in enumerate(names) for name in mine)
    assert len(written) == len(set(written)) == len(shapes) + 16 + 1
    loads = [sum(held[rank][name].nbytes for name in mine) for rank, mine in enumerate(names)]
    assert max(loads) <= 4 / 3 * sum(loads) / 4
    held[1]["w0"] = ChunkRecord.of("F16", (1000, 64))
    with pytest.raises(ValueError, match="w0 is F16"):
        share_out(held)


def alone(root: Path, boxes: dict[str, ChunkRecord], saver: ModuleType) -> Writer:
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
    one = alone(ram, {"w": ChunkRecord.of("F32", (1000,))}, saver)
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


def test_a_message_that_cannot_be_removed_is_no_failure(ram: Path) -> None:
    """Rank 0 removes those of the save before once the step has been acknowledged."""
    exchange = Exchange(ram, "generation", 0, 2, 1.0)
    exchange.send("save-0", {})
    (exchange.folder / "save-0-1.json").mkdir()
    exchange.forget("save-0")
    assert [path.name for path in exchange.folder.iterdir()] == ["save-0-1.json"]


def test_a_failure_is_an_outcome_and_the_next_save_works(
    ram: Path, saver: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = alone(ram, {"w": ChunkRecord.of("F32", (10,))}, saver)
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
    one = alone(ram, {"w": ChunkRecord.of("F32", (10,))}, saver)
    one.save(1, lambda _: np.zeros(10, np.float32))
    one.close(timeout=0.2)  # returns although the save is stuck
    assert "given up" in caplog.text
    assert not list_steps(ram)
    release.set()
    assert one.wait()[0].path is not None


def test_a_writer_of_an_earlier_run_cannot_publish(ram: Path, saver: ModuleType) -> None:
    boxes = {"w": ChunkRecord.of("F32", (10,))}
    first, second = alone(ram, boxes, saver), alone(ram, boxes, saver)
    first.save(7, lambda _: np.zeros(10, np.float32))
    second.save(3, lambda _: np.ones(10, np.float32))
    (failed,), (saved,) = first.wait(), second.wait()
    assert saved.path is not None and failed.error is not None and "claimed by writer" in failed.error.message
    assert [path.name for path in list_steps(ram)] == ["step-00000003"]
