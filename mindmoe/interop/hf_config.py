"""Hugging Face's config.json of GptOss: to our sections and back."""

import json
from pathlib import Path
from typing import Any

from mindmoe.errors import UserError
from mindmoe.model.config import ModelConfig, YarnConfig
from mindmoe.moe.config import MoeConfig, RouterConfig

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)
_YARN = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_ALPHA = 1.702  # GptOss has no key for it


def _yarn(rope: dict[str, Any]) -> YarnConfig | None:
    """The YaRN section of a rope dictionary; None for plain RoPE."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"rope_type={kind!r} in config.json is not supported", "use yarn or default")
    given = {key: rope[key] for key in _YARN if rope.get(key) is not None}
    return YarnConfig(**given, truncate=rope.get("truncate", True))


def read_config(folder: Path) -> tuple[ModelConfig, MoeConfig]:
    """The model and moe sections of a Hugging Face GptOss config.json.

    Raises:
        UserError: the file is missing, or of another architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} not found", "give the folder that save_pretrained wrote")
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("model_type") != "gpt_oss":
        raise UserError(f"{path}: model_type={raw.get('model_type')!r} is not gpt_oss", "give a GptOss folder")
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    model = ModelConfig(
        **{key: raw[key] for key in _SAME_NAME if raw.get(key) is not None},
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 150000.0))),
        rope_scaling=_yarn(rope),
        swiglu_limit=raw.get("swiglu_limit", 7.0),
    )
    moe = MoeConfig(num_experts=raw["num_local_experts"], num_experts_per_tok=raw["num_experts_per_tok"])
    return model, moe


def layer_types(model: ModelConfig) -> list[str]:
    """The attention of every layer in Hugging Face's words."""
    return ["sliding_attention" if model.window(n) else "full_attention" for n in range(model.num_hidden_layers)]


def check_representable(model: ModelConfig, moe: MoeConfig | None) -> MoeConfig:
    """Refuses a model that GptOss cannot express; returns its experts.

    Raises:
        UserError: names everything that GptOss lacks.
    """
    if moe is None:
        raise UserError("a dense model is no GptOss, which has experts in every layer", "export a model with moe")
    router, plain = moe.router, RouterConfig()
    wrong = [
        f"moe.router.{key}={getattr(router, key)}"
        for key in sorted(set(type(router).model_fields) & set(RouterConfig.model_fields))
        if getattr(router, key) != getattr(plain, key) and key != "norm_topk"
    ]
    wrong += [f"moe.num_shared_experts={moe.num_shared_experts}"] if moe.num_shared_experts else []
    wrong += ["model.attention_sinks=false"] if not model.attention_sinks else []
    wrong += [f"model.swiglu_alpha={model.swiglu_alpha}"] if model.swiglu_alpha != _ALPHA else []
    if wrong:
        raise UserError(
            f"GptOss of Hugging Face cannot express {', '.join(wrong)}", "train with its defaults to export"
        )
    return moe


def config_json(model: ModelConfig, moe: MoeConfig, mxfp4: bool) -> dict[str, Any]:
    """The content of config.json, in the form in which gpt-oss was released.

    Special tokens are left open: they are the tokenizer's business, and the defaults of GptOss are of its own.
    """
    config: dict[str, Any] = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "dtype": "bfloat16"}
    config |= {key: getattr(model, key) for key in _SAME_NAME}
    config |= {
        "layer_types": layer_types(model),
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "router_aux_loss_coef": moe.balance.aux_coef,
        "swiglu_limit": model.swiglu_limit,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_theta": model.rope_theta,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    yarn = model.rope_scaling
    config["rope_scaling"] = {"rope_type": "default"} if yarn is None else {"rope_type": "yarn"} | yarn.model_dump()
    if mxfp4:
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    return config
