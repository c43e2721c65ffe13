"""A checkpoint of an earlier version, as two ranks of d5266f2 wrote it, holds for this one what it held for that."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mindmoe.checkpoint import store
from mindmoe.checkpoint.identity import check_identity, table_of
from mindmoe.checkpoint.reader import total_digest
from mindmoe.config.load import load_config

VALUES = "6b77b7050baefcfd035f1584ad4900cfcbb7d6e4760d862c1ad9f57c23926c69"  # SHA-256, computed by d5266f2
TENSORS = "49039250ab3ffe84"  # of names, shapes and digests


@pytest.fixture(scope="session")
def old_run(root: Path) -> Path:
    return root / "tests/assets/old-run"


def test_every_value_is_what_it_was(old_run: Path) -> None:
    tensors, manifest = store.load(old_run / "step-00000004")
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        found.update(tensors[name].tobytes())
    assert found.hexdigest() == VALUES
    assert total_digest(manifest.tensors()) == TENSORS
    assert list(store.damage(old_run / "step-00000004")) == []


def test_it_is_the_model_of_its_config_with_both_moments(old_run: Path) -> None:
    config = load_config(old_run / "config.yaml")
    with store.open_step(old_run / "step-00000004") as checkpoint:
        check_identity(checkpoint.path, checkpoint.manifest, config)
        names = set(table_of(config))
        trained = {name for name in names if not name.endswith("selection_bias")}
        assert set(checkpoint.tensors) == names | {f"adam_{m}.{name}" for m in "mv" for name in trained}
        assert len(checkpoint.manifest.shards) == 2


def test_an_expert_weight_was_cut_between_the_ranks(old_run: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    with store.open_step(old_run / "step-00000004") as checkpoint:
        boxes = [(chunk.offset, chunk.shape) for there, chunk in checkpoint.manifest.chunks() if there == name]
        whole = checkpoint.read_all()[name]
    assert sorted(boxes) == [((0, 0, 0), (2, 16, 24)), ((2, 0, 0), (2, 16, 24))]
    assert whole.shape == (4, 16, 24) and np.isfinite(whole).all()
