"""Dispatchers whose experts, ranks or whole nodes get no token compute what one rank with all experts computes."""

import json

CONFIG = """
name: dispatch
model: {{vocab_size: 384, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
        head_dim: 8, intermediate_size: 8, max_position_embeddings: 256, rope_scaling: null}}
moe: {{num_experts: 8, num_experts_per_tok: 2}}
train: {{steps: 2, seq_length: 12, global_batch_size: 4, micro_batch_size: 1, mode: pynative, precision: fp32}}
optim: {{warmup_steps: 1}}
data: {{sources: {data}}}
"""


def test_nobody_has_to_get_a_token(start_ranks, tmp_path, corpus):
    config = tmp_path / "dispatch.yaml"
    config.write_text(CONFIG.format(data=corpus))
    start_ranks("dispatch.py", 4, str(tmp_path), str(config))
    for rank in range(4):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert len(found) == 3 * 5
        assert not {case: apart for case, apart in found.items() if apart > 1e-5}
