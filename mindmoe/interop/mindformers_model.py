"""The model section of MindFormers, the same in both of its schemas: the network, its routing and its balance."""

import math
from typing import Any

from mindmoe.interop.mindformers_defaults import EXPERTS, FAMILIES, MODEL
from mindmoe.interop.mindformers_keys import LOST, MODEL_RENAMED
from mindmoe.interop.mindformers_rows import Import

_PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32"}
_SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", False: "softmax", True: "sigmoid"}


def fill_in_model(found: Import, prefix: str) -> None:
    """Fills in what the model section leaves out; what a Hugging Face folder says is not known here."""
    if found.get("pretrained_model_dir"):
        found.assume(prefix, {key: MODEL[key] for key in ("compute_dtype", "hidden_act")})
        return
    family: dict[str, Any] = FAMILIES.get(str(found.get(prefix + "model_type")), {})
    experts = found.get(prefix + "num_experts", default=family.get("num_experts"))
    found.assume(prefix, MODEL | (EXPERTS if experts else {}) | family)


def take_model(found: Import, prefix: str) -> None:
    """The network. What makes it another one than the file describes is told as lost."""
    for key, target in MODEL_RENAMED.items():
        found.take(prefix + key, target)
    model = found.config.setdefault("model", {})
    if prefix + "max_position_embeddings" in found.assumed:
        model["max_position_embeddings"] = max(model["max_position_embeddings"], found.config["train"]["seq_length"])
    heads, hidden = (found.whole(prefix + key) for key in ("num_attention_heads", "hidden_size"))
    if heads and heads > 0:
        model.setdefault("num_key_value_heads", heads)
        if hidden:
            model.setdefault("head_dim", hidden // heads)
    model |= {"attention_sinks": False, "layer_types": "full", "rope_scaling": None}
    found.take(prefix + "attention_bias", "model.attention_bias", found.flag(prefix + "attention_bias"))
    tied = not found.flag(prefix + "untie_embeddings_and_output_weights", default=True)
    found.take(prefix + "untie_embeddings_and_output_weights", "model.tie_word_embeddings", tied)
    found.choose(prefix + "compute_dtype", "train.precision", _PRECISIONS, "bf16")
    experts = found.whole(prefix + "num_experts", default=0)
    if experts > 1:
        _experts(found, prefix, experts)
    else:
        found.set("moe", None)
        found.tell(prefix + "num_experts", "dropped", "one expert is a dense model", "moe")
    note = "mindmoe's FFN is gpt-oss's clamped SwiGLU, (up + 1) * gate * sigmoid(1.702 gate)"
    found.tell(prefix + "hidden_act", "lost", note)
    if "hidden_size" not in model:
        note = "the network stands in config.json of that folder, its shape, RoPE and norms: add them under model"
        found.tell("pretrained_model_dir", "lost", note, "model")
    for key, (harmless, note) in LOST.items():
        value = found.get(prefix + key)
        if value is not None:
            same = any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless)
            found.tell(prefix + key, "dropped" if same else "lost", "the same here" if same else note)


def _experts(found: Import, prefix: str, experts: int) -> None:
    """Routing."""
    found.take(prefix + "num_experts", "moe.num_experts", experts)
    chosen = found.whole(prefix + "num_experts_per_tok", default=1)
    found.set("moe.num_experts_per_tok", chosen)
    found.take(prefix + "num_experts_per_tok", "moe.num_experts_per_tok", chosen)
    found.take(prefix + "n_shared_experts", "moe.num_shared_experts", found.whole(prefix + "n_shared_experts"))
    if found.get(prefix + "moe_intermediate_size") is not None:
        found.rows = [row for row in found.rows if row.key != found.name(prefix + "intermediate_size")]
        note = "of dense layers; each layer has experts here, of moe_intermediate_size"
        found.tell(prefix + "intermediate_size", "dropped", note)
        found.take(prefix + "moe_intermediate_size", "model.intermediate_size")
    found.choose(prefix + "moe_router_score_function", "moe.router.score", _SCORES, "softmax")
    found.set("moe.router.linear_bias", False)
    norm = found.flag(prefix + "norm_topk_prob", default=True)
    found.take(prefix + "norm_topk_prob", "moe.router.norm_topk", norm)
    scale = found.number(prefix + "routed_scaling_factor")
    found.take(prefix + "routed_scaling_factor", "moe.router.route_scale", scale)
    groups, best = (max(1, found.whole(prefix + key, default=1)) for key in ("n_group", "topk_group"))
    if groups > 1 and chosen // best != 2:
        note = f"a group is scored by its two best experts here, by its {chosen // best} best there"
        found.set("moe.router.num_groups", groups)
        found.tell(prefix + "n_group", "lost", note, "moe.router.num_groups")
    found.take(prefix + "n_group", "moe.router.num_groups", groups)
    found.take(prefix + "topk_group", "moe.router.topk_groups", best if groups > 1 else 1)
    _balance(found, prefix)
    capacity = found.number(prefix + "moe_expert_capacity_factor", default=0.0)
    found.set("moe.dispatch.kind", "capacity" if capacity > 0 else "dropless")
    if capacity > 0:
        found.take(prefix + "moe_expert_capacity_factor", "moe.dispatch.capacity_factor", capacity)
    else:
        found.tell(prefix + "moe_expert_capacity_factor", "dropped", "no capacity: no token is dropped")
        found.tell(prefix + "moe_token_drop_policy", "dropped", "without a capacity no token is dropped")


def _balance(found: Import, prefix: str) -> None:
    """The losses that balance the load, and the bias that does."""
    kind, coefficient = prefix + "moe_router_load_balancing_type", prefix + "moe_aux_loss_coeff"
    value, form = found.number(coefficient, default=0.0), found.get(kind)
    split = math.prod(found.config["parallel"].get(axis, 1) for axis in ("tp", "cp")) > 1
    over_sequences = form == "seq_aux_loss" or form == "sub_seq_aux_loss"
    ours = "moe.balance.seq_aux_coef" if over_sequences else "moe.balance.aux_coef"
    found.set("moe.balance.aux_coef", 0.0)
    found.set(ours, value)
    found.take(coefficient, ours, value)
    if not value:
        found.tell(kind, "dropped", "its coefficient is 0")
    elif form == "sub_seq_aux_loss" and split:
        found.tell(kind, "lost", "it is over each rank's part of a sequence there, over whole sequences here", ours)
    elif over_sequences:
        found.tell(kind, "renamed", "over each sequence", ours)
    elif form == "gbs_aux_loss":
        found.set("moe.balance.aux_over", "running")
        found.tell(kind, "renamed", "running: counts of all ranks, of the micro-batches of a step so far", ours)
    else:
        note = "no such loss; aux_coef is over each micro-batch of all ranks, averaged over micro-batches"
        found.tell(kind, "lost", note, ours)
    found.take(prefix + "moe_z_loss_coeff", "moe.balance.z_coef", found.number(prefix + "moe_z_loss_coeff"))
    enabled = prefix + "moe_router_enable_expert_bias"
    if found.flag(enabled):
        found.assume(prefix, {"moe_router_bias_update_rate": 0.001})
        rate = found.number(prefix + "moe_router_bias_update_rate")
        found.set("moe.balance.bias_rate", rate)
        found.take(enabled, "moe.balance.bias_rate", rate)
        found.take(prefix + "moe_router_bias_update_rate", "moe.balance.bias_rate", rate)
    for key in (enabled, prefix + "moe_router_bias_update_rate"):
        found.tell(key, "dropped", "the selection bias is off, as here by default")
