"""The models that the benchmark trains; every contender reads the same numbers."""

from typing import Any

Size = dict[str, int]
TINY: Size = {
    "hidden": 256,
    "layers": 4,
    "experts": 32,
    "top_k": 4,
    "expert_width": 256,
    "heads": 8,
    "kv_heads": 2,
    "head_dim": 64,
    "vocab": 8192,
    "seq_length": 512,
    "batch": 4,
    "window": 128,
}
SIZES: dict[str, Size] = {
    "tiny": TINY,
    "mid": {**TINY, "hidden": 512, "layers": 8, "expert_width": 512},
    "many": {**TINY, "experts": 128},
    "long": {**TINY, "seq_length": 4096, "batch": 1},
}


def model_sections(size: Size) -> dict[str, Any]:
    """The sections `model` and `moe` of a run config."""
    return {
        "model": {
            "vocab_size": size["vocab"],
            "hidden_size": size["hidden"],
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_key_value_heads": size["kv_heads"],
            "head_dim": size["head_dim"],
            "intermediate_size": size["expert_width"],
            "sliding_window": size["window"],
        },
        "moe": {"num_experts": size["experts"], "num_experts_per_tok": size["top_k"], "balance": {}},
    }


def train_flops(size: Size) -> float:
    """FLOPs of one train step by the project's rule (mindmoe.models.gpt_oss.parameters.flops_per_token)."""
    from mindmoe.models.gpt_oss.config import ModelConfig
    from mindmoe.models.gpt_oss.parameters import flops_per_token
    from mindmoe.moe.config import MoeConfig

    sections = model_sections(size)
    model, moe = ModelConfig.model_validate(sections["model"]), MoeConfig.model_validate(sections["moe"])
    return flops_per_token(model, moe, size["seq_length"]) * size["batch"] * size["seq_length"]
