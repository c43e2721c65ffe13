"""What MindFormers takes for a key that is left out, and the names it knows a key by.

Source: MindFormers 1.9.0, parallel_core/transformer_config_utils.py (names), parallel_core/transformer_config.py, the
configuration_*.py of each model, tools/register/template.py, core/optim, wrapper; pynative/config/config.py of 1.9.0
and 2.1.0 for the second schema.
"""

from typing import Any

ALIASES = {
    "padded_vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_head": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "num_query_groups": "num_key_value_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "layernorm_epsilon": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "theta": "rope_theta",
    "rotary_base": "rope_theta",
    "original_max_position_embeddings": "max_position_embeddings",
    "init_method_std": "initializer_range",
    "qkv_has_bias": "attention_bias",
    "add_qkv_bias": "attention_bias",
    "use_qk_norm": "qk_layernorm",
    "mtp_depth": "num_nextn_predict_layers",
    "mtp_num_layers": "num_nextn_predict_layers",
    "mtp_loss_factor": "mtp_loss_scaling_factor",
    "extend_method": "position_embedding_type",
    "rotary_scaling_factor": "scaling_factor",
    "factor": "scaling_factor",
    "expert_num": "num_experts",
    "n_routed_experts": "num_experts",
    "num_moe_experts": "num_experts",
    "num_experts_chosen": "num_experts_per_tok",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "shared_expert_num": "n_shared_experts",
    "moe_router_num_groups": "n_group",
    "moe_router_group_topk": "topk_group",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "use_gating_sigmoid": "moe_router_score_function",
    "scoring_func": "moe_router_score_function",
    "balance_via_topk_bias": "moe_router_enable_expert_bias",
    "topk_bias_update_rate": "moe_router_bias_update_rate",
    "z_loss_factor": "moe_z_loss_coeff",
    "capacity_factor": "moe_expert_capacity_factor",
    "enable_sdrop": "moe_token_drop_policy",
}

TRAINING_1 = {
    "seed": 1,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.0,
    "context.mode": 0,
    "context.device_target": "Ascend",
}
TRAINING_2 = {
    "training.steps": 1000,
    "training.local_batch_size": 1,
    "training.global_batch_size": 1,
    "training.max_norm": 1.0,
    "training.seed": 42,
    "optimizer.betas": [0.9, 0.95],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "context.device_target": "Ascend",
}

MODEL: dict[str, Any] = {
    "compute_dtype": "bfloat16",
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "attention_bias": False,
    "max_position_embeddings": 4096,
}
EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_router_score_function": "softmax",
    "n_shared_experts": 0,
    "moe_aux_loss_coeff": 0.0,
    "moe_router_load_balancing_type": "sub_seq_aux_loss",
    "moe_router_enable_expert_bias": False,
}
_DEEPSEEK = {
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
    "num_experts_per_tok": 8,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "multi_latent_attention": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v3": _DEEPSEEK
    | {"vocab_size": 129280, "num_experts": 256, "moe_intermediate_size": 2048, "routed_scaling_factor": 2.5},
    "telechat3_moe": _DEEPSEEK
    | {"vocab_size": 131072, "num_experts": 192, "moe_intermediate_size": 1536, "routed_scaling_factor": 2.8},
    "qwen3_moe": {
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "qk_layernorm": True,
    },
    "glm4_moe": {
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "qwen3": {
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "qk_layernorm": True,
    },
}
"""What single models take otherwise than MODEL and EXPERTS, by `model_type`."""
