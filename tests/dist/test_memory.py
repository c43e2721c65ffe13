"""What the state of a rank takes falls with every axis that cuts it, as the closed form says."""

import json
from math import prod

import pytest

from mindmoe.config.load import load_config
from mindmoe.models.gpt_oss.parameters import param_specs

CONFIG = """
name: memory
model: {{vocab_size: 8192, hidden_size: 256, num_hidden_layers: 8, num_attention_heads: 8, num_key_value_heads: 4,
        head_dim: 32, intermediate_size: 256, sliding_window: 8, max_position_embeddings: 256, rope_scaling: null}}
moe: {{num_experts: 16, num_experts_per_tok: 2}}
train: {{steps: 2, seq_length: 16, global_batch_size: 2, micro_batch_size: 1, mode: pynative}}
optim: {{type: adamw, warmup_steps: 1}}
data: {{sources: {data}}}
launch: {{threads: 1}}
"""
LAYOUTS = ["parallel.dp=2", "parallel.ep=2", "parallel.tp=2", "parallel.pp=2", "parallel.zero=1", "parallel.zero=3"]
WORD = 4  # [bytes] fp32
CUT_BY_TP = {"vocab", "heads", "kv_heads", "ffn", "expert_ffn"}


def closed_form(layout: str, config) -> float:
    """Bytes of weights, two moments and, where the optimizer is cut, the masters of the own part."""
    specs = [spec for spec in param_specs(config.model, config.moe).values() if spec.trainable]
    whole = sum(prod(spec.shape) for spec in specs)
    if layout == "parallel.zero=1":
        return WORD * (whole + 3 * whole / 2)
    if layout in ("parallel.zero=3", "parallel.pp=2"):  # embedding and head, of equal size, lie on different stages
        return WORD * 3 * whole / 2
    axes = {"parallel.dp=2": set(), "parallel.ep=2": {"expert"}, "parallel.tp=2": CUT_BY_TP}[layout]
    cut = sum(prod(spec.shape) for spec in specs if axes & set(spec.axes))
    return WORD * 3 * (whole - cut / 2)


def test_memory_of_the_state_is_that_of_the_closed_form(start_ranks, tmp_path, corpus, monkeypatch):
    config = tmp_path / "memory.yaml"
    config.write_text(CONFIG.format(data=corpus))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back at once, so growth is what is held
    start_ranks("memory.py", 2, str(tmp_path), str(config), *LAYOUTS)
    run = load_config(config)
    wanted = {layout: closed_form(layout, run) for layout in LAYOUTS}
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found == pytest.approx(wanted, rel=0.1)
