"""A small GptOss whose every weight is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindmoe.config.run import RunConfig
from mindmoe.interop.export import weight_shapes

CONFIG = {
    "name": "small",
    "model": {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "sliding_window": 8,
        "max_position_embeddings": 512,
        "rope_scaling": {"original_max_position_embeddings": 16},
    },
    "moe": {"num_experts": 8, "num_experts_per_tok": 4},
    "train": {"steps": 4, "seq_length": 16, "global_batch_size": 2, "micro_batch_size": 1},
    "optim": {"warmup_steps": 0},
    "data": {"sources": "data"},
}


class Known:
    """A source made of arrays."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = tensors
        self.shapes = {name: array.shape for name, array in tensors.items()}

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of an array."""
        return self.tensors[name][start:stop]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """The config of the small model."""
    return RunConfig.model_validate({**CONFIG, "output_dir": str(tmp_path / "runs")})


@pytest.fixture
def known(run: RunConfig) -> Known:
    """Random weights for it."""
    rng = np.random.default_rng(0)
    shapes = weight_shapes(run.model, run.moe)
    return Known({name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every file of a folder."""
    return lambda folder: {file.name: file.read_bytes() for file in folder.iterdir()}
