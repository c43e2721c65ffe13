"""Checkpoints in an object store, against a real server of the S3 protocol on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.folder import list_steps, step_of
from mindmoe.checkpoint.manifest import CorruptCheckpoint
from mindmoe.checkpoint.objects import ObjectStore
from mindmoe.checkpoint.retention import Retention
from mindmoe.host.errors import CheckpointError, UserError

boto3 = pytest.importorskip("boto3", reason="object stores need the extra s3")
server = pytest.importorskip("moto.server", reason="the server needs the extra dev")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with the bucket `safe`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    url = "http://{}:{}".format(*running.get_host_and_port())
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="safe")
    yield url
    running.stop()


def save(root: Path, saver: ModuleType, step: int) -> Path:
    return store.save(root, step, saver.state(step), saver.meta(store.claim(root)), Retention(keep_last=9), 0)


def bytes_of(client: Any, key: str) -> bytes:
    return client.get_object(Bucket="safe", Key=key)["Body"].read()


def test_put_and_bring(ram: Path, saver: ModuleType, endpoint: str) -> None:
    there = ObjectStore("s3://safe/team/run", endpoint, keep_last=2)
    assert there.steps() == [] and there.bring(ram / "new", store.claim(ram / "new")) is None
    for step in (1, 2, 3):
        assert there.put(save(ram / "near", saver, step)) == f"s3://safe/team/run/step-0000000{step}"
    assert there.steps() == [3, 2], "older ones are gone"
    there.put(list_steps(ram / "near")[0])  # once more
    shutil.rmtree(ram / "near" / "step-00000003")
    path = there.bring(ram / "near", store.claim(ram / "near"))
    assert path is not None and step_of(path) == 3
    assert there.bring(ram / "near", store.claim(ram / "near")) is None, "nothing newer is there"
    found = store.newest_valid(ram / "near")
    assert found is not None and saver.is_state(3, found.tensors)


def test_damage_there_is_found_before_it_is_published(ram: Path, saver: ModuleType, endpoint: str) -> None:
    there, client = ObjectStore("s3://safe/run", endpoint, keep_last=5), boto3.client("s3", endpoint_url=endpoint)
    for step in (1, 2, 3):
        there.put(save(ram / "near", saver, step))
    key = "run/step-00000003/shard-00000.safetensors"
    raw = bytearray(bytes_of(client, key))
    raw[-1] ^= 1
    client.put_object(Bucket="safe", Key=key, Body=bytes(raw))
    client.delete_object(Bucket="safe", Key="run/step-00000002/MANIFEST.json")  # an upload that was cut short
    path = there.bring(ram / "new", store.claim(ram / "new"))
    assert path is not None and step_of(path) == 1 and there.steps() == [3, 1]
    client.put_object(Bucket="safe", Key="run/step-00000001/MANIFEST.json", Body=b"{}\n")
    with pytest.raises(CorruptCheckpoint):
        there.bring(ram / "empty", store.claim(ram / "empty"))
    assert list_steps(ram / "empty") == [] and not list((ram / "empty").glob(".tmp-*"))


def test_errors_say_what_to_look_at(ram: Path, saver: ModuleType, endpoint: str) -> None:
    path = save(ram / "near", saver, 1)
    with pytest.raises(CheckpointError, match="check the bucket"):
        ObjectStore("s3://missing/run", endpoint, 1).put(path)
    with pytest.raises(UserError, match="names no bucket"):
        ObjectStore("s3://", endpoint, 1)
    file = path / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(CheckpointError, match="is not uploaded"):
        ObjectStore("s3://safe/other", endpoint, 1).put(path)
    assert ObjectStore("s3://safe/other", endpoint, 1).steps() == []
