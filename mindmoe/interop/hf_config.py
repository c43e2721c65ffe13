"""Hugging Face's config.json of GptOss: to our sections and back.

A key that is absent means what it means to transformers: its own default, not ours. A key that changes the computation
is carried over or refused by name; one that neither the model nor this page knows is refused too, since nobody can say
what it does.
"""

import math
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from mindmoe.config.schema import FP32_MAX, Coefficient, PositiveFp32, PositiveInt32
from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileMissing, shown
from mindmoe.models.gpt_oss.config import LayerType, ModelConfig, YarnConfig
from mindmoe.moe.config import BalanceConfig, MoeConfig
from mindmoe.moe.router.topk import TopK

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
    "swiglu_alpha",
    "swiglu_limit",
    "tie_word_embeddings",
    "initializer_range",
)
_PLAIN_ROPE = {"rope_type": "default"}
_DEFAULT_ROPE = {  # of GptOssConfig, where the file has neither spelling
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class _Form(BaseModel):
    """Part of a file that may hold more than we know."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="allow")

    @property
    def others(self) -> set[str]:
        """The names of keys beyond the fields that are not null."""
        return {key for key, value in (self.model_extra or {}).items() if value is not None}


class _Rope(_Form):
    """`rope_scaling`, or `rope_parameters` as transformers 5 spells it."""

    rope_type: str | None = None
    type: str | None = None  # the name before rope_type
    rope_theta: Annotated[float, Field(gt=1, le=FP32_MAX)] | None = None
    partial_rotary_factor: float | None = None
    factor: PositiveFp32 | None = None
    original_max_position_embeddings: PositiveInt32 | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class _GptOss(_Form):
    """The keys that a computation depends on, with the defaults of transformers' GptOssConfig."""

    model_type: str
    vocab_size: PositiveInt32 = 201088
    hidden_size: PositiveInt32 = 2880
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)] = 36
    num_attention_heads: PositiveInt32 = 64
    num_key_value_heads: PositiveInt32 | None = 8
    head_dim: PositiveInt32 | None = 64
    intermediate_size: PositiveInt32 = 2880
    max_position_embeddings: PositiveInt32 = 131072
    rope_theta: Annotated[float, Field(gt=1, le=FP32_MAX)] | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: PositiveInt32 | None = None
    initial_context_length: PositiveInt32 | None = None
    sliding_window: PositiveInt32 | None = 128
    layer_types: list[LayerType] | None = None
    attention_bias: bool = True
    attention_dropout: float = 0.0
    rms_norm_eps: PositiveFp32 = 1e-5
    hidden_act: str = "silu"
    swiglu_alpha: PositiveFp32 = 1.702
    swiglu_limit: PositiveFp32 = 7.0
    tie_word_embeddings: bool = False
    initializer_range: PositiveFp32 = 0.02
    num_local_experts: PositiveInt32 | None = None
    num_experts: PositiveInt32 | None = None
    num_experts_per_tok: PositiveInt32 = 4
    experts_per_token: PositiveInt32 | None = None
    router_aux_loss_coef: Coefficient = 0.001
    quantization_config: dict[str, Any] | None = None
    is_encoder_decoder: bool = False


_REASONS = {
    "what the file is, and who wrote it": "_name_or_path architectures auto_map dtype torch_dtype transformers_version "
    "unsloth_fixed unsloth_version",
    "special tokens are the tokenizer's business": "bos_token_id eos_token_id pad_token_id sep_token_id "
    "decoder_start_token_id tokenizer_class prefix",
    "what a call returns, and how it is computed": "output_router_logits output_attentions output_hidden_states "
    "return_dict use_cache torchscript chunk_size_feed_forward attn_implementation _attn_implementation "
    "experts_implementation use_bfloat16",
    "of classifiers and of fine-tuning": "id2label label2id num_labels problem_type finetuning_task "
    "task_specific_params",
    "of other architectures": "is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder "
    "pruned_heads",
    "of sampling, before generation_config.json existed": "max_length min_length do_sample early_stopping num_beams "
    "num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
}
IRRELEVANT = frozenset(" ".join(_REASONS.values()).split())
"""Keys of config.json that change no logit."""


def read_config(folder: Path) -> tuple[ModelConfig, MoeConfig]:
    """The model and moe sections of a Hugging Face GptOss config.json.

    Raises:
        UserError: the file is missing, is no JSON, or says something that cannot be computed here; names the key.
    """
    path = folder / "config.json"
    try:
        raw = strict_json.read(path)
    except FileMissing:
        raise UserError(f"{shown(str(path), 300)} not found", "give the folder that save_pretrained wrote") from None
    name = str(path)
    if isinstance(raw, dict) and raw.get("model_type") != "gpt_oss":
        _refuse(name, f"model_type={shown(repr(raw.get('model_type')))} is not gpt_oss", "give a GptOss folder")
    there = strict_json.checked(_GptOss, raw, name)
    _check_known(there, name)
    experts = there.num_local_experts or there.num_experts or 128
    heads = there.num_attention_heads
    theta, yarn = _rope(there, name)
    model = {key: getattr(there, key) for key in _SAME_NAME} | {
        "num_key_value_heads": there.num_key_value_heads or heads,
        "head_dim": there.head_dim or max(1, there.hidden_size // heads),
        "layer_types": there.layer_types or "alternating",
        "rope_theta": theta,
        "rope_scaling": None if yarn is None else yarn.model_dump(),
    }
    if there.sliding_window is None:
        del model["sliding_window"]  # without a sliding layer any will do
    moe = {
        "num_experts": experts,
        "num_experts_per_tok": there.num_experts_per_tok,
        "balance": BalanceConfig(aux_coef=there.router_aux_loss_coef).model_dump(),
    }
    return strict_json.checked(ModelConfig, model, name), strict_json.checked(MoeConfig, moe, name)


def _refuse(name: str, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{shown(name, 300)}: {what}", remedy)


def _check_known(there: _GptOss, name: str) -> None:
    """Refuses what GptOss computes and mindmoe does not, two names that disagree, and keys that nobody knows."""
    if unknown := sorted(there.others - IRRELEVANT):
        what = f"{', '.join(map(shown, unknown[:9]))}: no key of GptOss, so what it changes is not known"
        _refuse(name, what, "remove it if the model does not depend on it")
    plain = "mindmoe computes without it"
    for key, same in (("hidden_act", "silu"), ("attention_dropout", 0.0), ("is_encoder_decoder", False)):
        if (value := getattr(there, key)) != same:
            _refuse(name, f"{key}={shown(str(value))} is not supported: {plain}", f"use a model with {key}={same}")
    method = (there.quantization_config or {"quant_method": "mxfp4"}).get("quant_method")
    if method != "mxfp4":
        what = f"quantization_config.quant_method={shown(repr(method))} is not supported"
        _refuse(name, what, "save the model as bf16 or MXFP4")
    if there.num_experts and there.num_local_experts and there.num_experts != there.num_local_experts:
        what = f"num_experts={there.num_experts} but num_local_experts={there.num_local_experts}"
        _refuse(name, what, "keep num_local_experts")
    if there.experts_per_token not in (None, there.num_experts_per_tok):
        what = (
            f"experts_per_token={there.experts_per_token}, which transformers does not read, but "
            f"num_experts_per_tok={there.num_experts_per_tok}, by default or as written"
        )
        _refuse(name, what, "say it by num_experts_per_tok")
    sliding = there.layer_types is None or "sliding_attention" in there.layer_types
    if there.sliding_window is None and sliding:
        _refuse(name, "sliding_window is null but layers slide", "give its size, or make layer_types full_attention")


def _rope(there: _GptOss, name: str) -> tuple[float, YarnConfig | None]:
    """rope_theta, and the YaRN section or None for plain RoPE.

    Source: transformers 5.23, modeling_rope_utils.py: an empty rope_scaling gives way to rope_parameters, what stands
    inside of either comes before the same key beside it, and a file with neither means the YaRN of gpt-oss.
    """
    given = {
        key: rope
        for key in ("rope_scaling", "rope_parameters")
        if (rope := getattr(there, key)) is not None and (rope.model_fields_set or key == "rope_parameters")
    }
    if not given:
        given = {"rope_parameters": _Rope.model_validate(_DEFAULT_ROPE)}
    found = [_rope_of(rope, key, there, name) for key, rope in given.items()]
    if found[0] != found[-1]:
        _refuse(name, "rope_scaling and rope_parameters disagree", "keep one of them")
    yarn = found[0][1]
    if yarn is not None and there.initial_context_length not in (None, yarn.original_max_position_embeddings):
        what = f"initial_context_length={there.initial_context_length}"
        what += f" but original_max_position_embeddings={yarn.original_max_position_embeddings} of YaRN"
        _refuse(name, what, "make them equal")
    return found[0]


def _rope_of(rope: _Rope, key: str, there: _GptOss, name: str) -> tuple[float, YarnConfig | None]:
    if nested := sorted(rope.others & {"full_attention", "sliding_attention"}):
        _refuse(name, f"{key}.{nested[0]}: each kind of layer has its own RoPE", "use a model with one for all")
    if unknown := sorted(rope.others - {"finetuned"}):
        _refuse(name, f"{key}.{shown(unknown[0])} is not supported", "use plain RoPE or YaRN")
    partial = there.partial_rotary_factor if rope.partial_rotary_factor is None else rope.partial_rotary_factor
    if partial not in (None, 1.0):
        _refuse(name, f"partial_rotary_factor={partial} is not supported", "use a model that rotates whole heads")
    theta = rope.rope_theta or there.rope_theta or 150000.0
    kind = rope.rope_type or rope.type or "default"
    if kind == "default":
        return theta, None
    if kind != "yarn":
        _refuse(name, f"{key}.rope_type={shown(repr(kind))} is not supported", "use yarn or default")
    length = there.original_max_position_embeddings or rope.original_max_position_embeddings
    length = length or there.max_position_embeddings
    if "factor" not in rope.model_fields_set:
        _refuse(name, f"{key}.factor is missing", "YaRN needs it")
    factor = rope.factor or there.max_position_embeddings / length
    _check_attention_factor(rope, factor, f"{shown(name, 300)}: {key}")
    section = {
        "factor": factor,
        "original_max_position_embeddings": length,
        "beta_fast": rope.beta_fast or 32.0,
        "beta_slow": rope.beta_slow or 1.0,
        "truncate": rope.truncate,
    }
    return theta, strict_json.checked(YarnConfig, section, f"{name}: {key}")


def _check_attention_factor(rope: _Rope, factor: float, where: str) -> None:
    """Refuses a factor of the attention other than YaRN's 0.1 ln(factor) + 1, however the file spells it."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    ours = meant = scale(1.0)
    keys = ["attention_factor"]
    if rope.attention_factor is not None:
        meant = rope.attention_factor
    elif rope.mscale and rope.mscale_all_dim:
        keys, below = ["mscale", "mscale_all_dim"], scale(rope.mscale_all_dim)
        meant = scale(rope.mscale) / below if below else math.inf
    if not math.isclose(meant, ours, rel_tol=1e-9):
        said = ", ".join(f"{key}={getattr(rope, key)}" for key in keys)
        raise UserError(
            f"{where}: {said} makes the attention factor {meant:.6g}; here it is 0.1 ln(factor) + 1 = {ours:.6g}",
            "use a model that leaves it to YaRN",
        )


def layer_types(model: ModelConfig) -> list[str]:
    """The attention of every layer in Hugging Face's words."""
    return ["sliding_attention" if model.window(n) else "full_attention" for n in range(model.num_hidden_layers)]


def routing_differences(moe: MoeConfig) -> list[str]:
    """The settings of the router that GptOss does not have: it is a softmax over the logits of the chosen experts."""
    router, plain = moe.router, TopK()
    return [
        f"moe.router.{key}={getattr(router, key)}"
        for key in sorted(set(type(router).model_fields) & set(TopK.model_fields))
        if getattr(router, key) != getattr(plain, key) and key != "norm_topk"
    ]


def check_representable(model: ModelConfig, moe: MoeConfig | None) -> MoeConfig:
    """Refuses a model that GptOss cannot express; returns its experts.

    Raises:
        UserError: names everything that GptOss lacks.
    """
    if moe is None:
        raise UserError("a dense model is no GptOss, which has experts in every layer", "export a model with moe")
    wrong = routing_differences(moe)
    wrong += [f"moe.num_shared_experts={moe.num_shared_experts}"] if moe.num_shared_experts else []
    wrong += ["model.attention_sinks=false"] if not model.attention_sinks else []
    if wrong:
        raise UserError(
            f"GptOss of Hugging Face cannot express {', '.join(wrong)}", "train with its defaults to export"
        )
    return moe


def config_json(model: ModelConfig, moe: MoeConfig, mxfp4: bool, tokens: dict[str, int | None]) -> dict[str, Any]:
    """The content of config.json, in the form in which gpt-oss was released.

    Args:
        model, moe: of the weights.
        mxfp4: whether the expert matrices are blocks.
        tokens: bos_token_id, eos_token_id and pad_token_id.
    """
    config: dict[str, Any] = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "dtype": "bfloat16"}
    config |= {key: getattr(model, key) for key in _SAME_NAME}
    config |= {
        "layer_types": layer_types(model),
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "router_aux_loss_coef": moe.balance.aux_coef,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_theta": model.rope_theta,
        **tokens,
    }
    yarn = model.rope_scaling
    config["rope_scaling"] = _PLAIN_ROPE if yarn is None else {"rope_type": "yarn"} | yarn.model_dump()
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
