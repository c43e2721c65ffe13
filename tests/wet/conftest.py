"""What all wet tests share: one MindSpore process, on the CPU unless MINDMOE_TEST_DEVICE names another device; and a
tiny run on synthetic tokens."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.run import RunConfig, resolve
from mindmoe.data.loader import Batch

VOCAB, SEQ = 96, 16


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Selects the device; without launch_blocking the error of one op surfaces at a later op."""
    import mindspore as ms

    ms.set_device(os.environ.get("MINDMOE_TEST_DEVICE", "CPU"))
    ms.runtime.launch_blocking()


@pytest.fixture
def tiny_run(tmp_path: Path) -> Callable[..., RunConfig]:
    """Builds a resolved tiny config; keyword arguments replace whole sections' entries."""

    def build(cards: int = 1, **changes: dict) -> RunConfig:
        raw = {
            "name": "tiny",
            "output_dir": str(tmp_path / "runs"),
            "model": {
                "vocab_size": VOCAB,
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 16,
                "sliding_window": 5,
                "max_position_embeddings": 64,
                "rope_scaling": None,
            },
            "moe": {
                "num_experts": 6,
                "num_experts_per_tok": 2,
                "balance": {"aux_coef": 0.02, "z_coef": 1e-3, "bias_rate": 1e-3},
            },
            "train": {
                "steps": 6,
                "seq_length": SEQ,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "kernels": "reference",
                "mode": "pynative",
            },
            "optim": {"lr": 1e-2, "warmup_steps": 2},
            "data": {"sources": "unused"},
        }
        for section, values in changes.items():
            raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
        return resolve(RunConfig.model_validate(raw), cards)

    return build


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Builds rows of random tokens."""

    def build(rows: int, seed: int = 0, masked: float = 0.0) -> Batch:
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, VOCAB, (rows, SEQ + 1)).astype(np.int32)
        domains = np.zeros(rows, np.int32)
        mask = (rng.random((rows, SEQ)) >= masked).astype(np.float32)
        return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), mask, np.zeros((rows, SEQ), np.int32), domains)

    return build
