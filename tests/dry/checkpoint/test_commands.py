"""`mindmoe ckpt` on real folders, through the command line."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xxhash

from mindmoe.checkpoint import store
from mindmoe.checkpoint.chunks import Chunk
from mindmoe.checkpoint.folder import list_steps
from mindmoe.checkpoint.retention import Retention
from mindmoe.cli.main import main

Save = Callable[..., Path]


@pytest.fixture
def run(ram: Path, save: Save) -> Path:
    """A run folder with steps 1, 2, 3."""
    for step in (1, 2, 3):
        save(ram / "run" / "checkpoints", step)
    return ram / "run"


def flip(step: Path) -> None:
    file = step / "shard-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def ckpt(*words: object) -> int:
    return main(["ckpt", *map(str, words)])


def test_ls_and_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "checkpoints" / "step-00000002")
    (run / "checkpoints" / "step-00000001" / "MANIFEST.json").unlink()
    (run / "checkpoints" / "quarantine-step-00000009").mkdir()
    assert ckpt("pin", run) == 0 and ckpt("ls", run) == 0
    out = capsys.readouterr().out
    assert "complete, pinned" in out and "incomplete" in out and "quarantine-step-00000009" in out and "free on" in out
    assert ckpt("show", run, "--step", 3, "--all") == 0
    out = capsys.readouterr().out
    assert "w.0" in out and "64x96" in out and "content digest" in out and "dp=1" in out
    assert ckpt("unpin", run) == 0 and ckpt("ls", run) == 0 and "pinned" not in capsys.readouterr().out.split("free")[1]


def test_verify_names_the_bytes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ckpt("verify", run, "--all") == 0 and capsys.readouterr().out.count("whole") == 3
    flip(run / "checkpoints" / "step-00000002")
    assert ckpt("verify", run) == 0 and ckpt("verify", run, "--all") == 1
    out = capsys.readouterr().out
    assert "step-00000002: DAMAGED" in out and "tensor mask does not match its digest in bytes" in out
    assert ckpt("verify", run, "--step", 9) == 2 and "it holds: 3, 2, 1" in capsys.readouterr().err
    assert ckpt("verify", run / "nowhere") == 2 and "holds no checkpoints" in capsys.readouterr().err


def test_diff_and_reshard(run: Path, ram: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (run / "checkpoints" / f"step-0000000{n}" for n in (1, 2))
    assert ckpt("diff", one, two) == 1
    out = capsys.readouterr().out
    assert "w.0" in out and "content" in out and "empty" not in out
    for shards in (3, 1, 4):
        assert ckpt("reshard", one, "--out", ram / f"cut{shards}", "--shards", shards) == 0
        published = list_steps(ram / f"cut{shards}")[0]
        assert len(list(published.glob("shard-*"))) == shards
        assert ckpt("diff", one, published) == 0 and ckpt("verify", published) == 0
        assert "equal: 10 tensors" in capsys.readouterr().out


def test_the_figures_of_diff(ram: Path, saver: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    changed = base.copy()
    base[0, 1] = changed[0, 1] = np.nan  # equal bits
    changed[0, 0] = -0.0
    changed[1, 2] += 0.5
    changed[2, 0] -= 2
    for name, array in (("a", base), ("b", changed)):
        store.save(ram / name, 1, {"w": Chunk(array)}, saver.meta(store.claim(ram / name)), Retention(), 0)
    assert ckpt("diff", ram / "a", ram / "b") == 1
    out = capsys.readouterr().out
    assert "3 of 12" in out and " 2 " in out


def test_prune_keeps_what_a_rule_wants(ram: Path, saver: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0, 50: None, 60: 5.0}
    meta = saver.meta(store.claim(ram))
    for step, loss in losses.items():
        state = {} if loss is None else {"eval_loss": loss}
        own = type(meta)(model={}, topology={}, config_digest="", generation=meta.generation, state=state)
        store.save(ram, step, saver.state(step), own, Retention(keep_last=9), 0)
    assert ckpt("pin", ram, "--step", 10) == 0
    rules = ("keep_last=1", "keep_every=40", "keep_best=2")
    assert ckpt("prune", ram, *rules, "--dry-run") == 0 and len(list_steps(ram)) == 6
    assert "1 steps would be deleted, 5 stay" in capsys.readouterr().out
    assert ckpt("prune", ram, *rules) == 0
    assert [int(path.name[-2:]) for path in list_steps(ram)] == [60, 40, 30, 20, 10]
    (list_steps(ram)[0] / "shard-00000.safetensors").unlink()
    assert ckpt("prune", ram, "keep_last=1") == 0
    assert [int(path.name[-2:]) for path in list_steps(ram)] == [60, 40, 10], "an incomplete step is not what is kept"


def test_repair(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run / "checkpoints"
    flip(root / "step-00000003")
    os.rename(root / "step-00000002", root / "quarantine-step-00000002")  # as if the disk had been unreadable
    abandoned, live = root / ".tmp-step-00000004-x", root / ".tmp-step-00000005-y"
    messages = root / ".tmp-ranks-z"  # of a run that goes on and has not saved for an hour
    for folder in (abandoned, live, messages):
        folder.mkdir()
    for folder in (abandoned, messages):
        os.utime(folder, (time.time() - 9000,) * 2)
    assert ckpt("repair", run) == 0
    out = capsys.readouterr().out
    assert "set aside step-00000003" in out and "brought back step-00000002" in out and "newest valid step is 2" in out
    assert not abandoned.exists() and live.exists() and messages.exists()
    assert [path.name for path in list_steps(root)] == ["step-00000002", "step-00000001"]
    assert ckpt("repair", run) == 0 and "0 repairs" in capsys.readouterr().out


def state_of(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[int, str]:
    """What `ckpt ls` says of each step."""
    capsys.readouterr()
    assert ckpt("ls", run) == 0
    rows = [line.split("\u2502") for line in capsys.readouterr().out.splitlines() if "\u2502" in line]
    return {int(row[1]): row[-2].strip() for row in rows}


def test_ls_remembers_what_verify_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run / "checkpoints"
    before = {path: sorted(os.listdir(path)) for path in list_steps(root)}
    assert set(state_of(run, capsys).values()) == {"complete"}
    flip(root / "step-00000002")
    assert ckpt("verify", run, "--all") == 1
    states = state_of(run, capsys)
    assert "whole, verified" in states[1] and "DAMAGED" in states[2] and "whole, verified" in states[3]
    assert {path: sorted(os.listdir(path)) for path in list_steps(root)} == before, "nothing is put into a step"
    assert ckpt("pin", run, "--step", 3) == 0
    assert "whole, verified" in state_of(run, capsys)[3] and "pinned" in state_of(run, capsys)[3]


@pytest.mark.parametrize("file", ["MANIFEST.json", "shard-00000.safetensors"])
@pytest.mark.parametrize("same_time", [False, True])
def test_a_file_that_changed_is_no_longer_verified(
    run: Path, capsys: pytest.CaptureFixture[str], file: str, same_time: bool
) -> None:
    assert ckpt("verify", run) == 0 and "verified" in state_of(run, capsys)[3]
    path = run / "checkpoints" / "step-00000003" / file
    status, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw)
    if same_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert state_of(run, capsys)[3] == "complete"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"step-00000003": 1}', b"[" * 9999, b"\xff"])
def test_what_was_remembered_may_be_lost(run: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (run / "checkpoints" / "VERIFIED.json").write_bytes(content)
    assert state_of(run, capsys)[3] == "complete"
    assert ckpt("verify", run) == 0 and "verified" in state_of(run, capsys)[3]


def test_diff_names_what_it_compares(ram: Path, saver: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def put(name: str, step: int, value: float, moment: float) -> None:
        tensors = {"w": np.full(3, value, np.float32), "adam_m.w": np.full(3, moment, np.float32)}
        meta = saver.meta(store.claim(ram / name))
        store.save(ram / name, step, tensors, meta, Retention(keep_last=9), 0)

    for name in ("a", "b"):
        for step in (1, 2):
            put(name, step, step, 0.0 if name == "a" else step - 1.0)
    assert ckpt("diff", ram / "a", ram / "b", "--step", 1) == 0
    out = capsys.readouterr().out
    for name in ("a", "b"):
        assert f"{ram / name}/step-00000001, step 1: 1 tensors of weights, 1 of the optimizer" in out
    assert ckpt("diff", ram / "a", ram / "b") == 1
    out = capsys.readouterr().out
    assert out.count("step 2:") == 2 and "adam_m.w" in out and "optimizer" in out and " w " not in out
    assert ckpt("diff", ram / "a", ram / "a", "--step", 1, "--other-step", 2) == 1
    out = capsys.readouterr().out
    assert "first: " in out and "step 1:" in out and "step 2:" in out and "\u2502 weights" in out
    assert ckpt("diff", ram / "a", ram / "b", "--step", 7) == 2 and "it holds: 2, 1" in capsys.readouterr().err


def test_nothing_of_a_manifest_reaches_the_terminal_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;title\x07[/x][link=http://x]y"
    file = run / "checkpoints" / "step-00000003" / "MANIFEST.json"
    content = json.loads(file.read_bytes().rsplit(b"\n", 2)[0])
    content["meta"].update(config_digest=hostile, generation=hostile, topology={hostile: hostile})
    content["meta"].update(state={hostile: hostile, "x": [hostile]}, data={hostile: hostile}, versions={"v": hostile})
    content["shards"][0]["tensors"]["[/x]"] = content["shards"][0]["tensors"].pop("w.0")
    body = json.dumps(content).encode() + b"\n"
    file.write_bytes(body + f'"xxh3_128:{xxhash.xxh3_128_hexdigest(body)}"\n'.encode())
    for words, code in ((("show", run, "--all"), 0), (("ls", run), 0), (("verify", run), 1)):
        assert ckpt(*words) == code
        written = capsys.readouterr()
        assert (written.out + written.err).replace("\n", "").isprintable(), words
