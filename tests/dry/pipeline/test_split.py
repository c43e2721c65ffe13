"""Which stage holds which parameter."""

import pytest

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.parallel.config import ParallelConfig
from mindmoe.pipeline.split import build_pieces, holding_stages

MODEL = ModelConfig(
    vocab_size=64, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    intermediate_size=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tied", "stages"),
    [
        ("model.embed_tokens.weight", False, (0,)),
        ("model.embed_tokens.weight", True, (0, 2)),
        ("model.layers.0.self_attn.q_proj.weight", False, (0,)),
        ("model.layers.2.mlp.router.weight", False, (1,)),
        ("model.layers.3.mlp.router.weight", False, (2,)),
        ("model.norm.weight", False, (2,)),
        ("lm_head.weight", False, (2,)),
        # what routers share, whatever a package calls it
        ("model.token_table", False, (0, 1, 2)),
        ("model.temperature", False, (0, 1, 2)),
        ("model.norm", False, (0, 1, 2)),
    ],
)
def test_who_holds_a_parameter(name: str, tied: bool, stages: tuple[int, ...]) -> None:
    pieces = build_pieces(MODEL, ParallelConfig(pp=3))  # 2, 1 and 1 layers
    assert holding_stages(pieces, 3, name, tied) == stages
