"""The table of parameters: every name, global shape, logical axes and initialisation, without building a model.

This is the one place that decides what a parameter is. Cells create their weights from it, and sharding,
initialisation, weight decay, gradient reduction, checkpoints, export and the planner read the same records.
Names and layouts are Hugging Face's (`GptOssForCausalLM`), so export is near identity.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.base import RouterSpecs, Weight
from mindmoe.parallel.config import ParallelConfig
from mindmoe.pipeline.split import build_pieces

Axis = Literal["vocab", "heads", "kv_heads", "ffn", "expert", "expert_ffn"] | None
Init = Literal["normal", "zeros", "ones"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSpec:
    """One parameter as the whole model has it.

    Attributes:
        name: dotted name, unique in the model.
        shape: global shape.
        axes: logical axis of each dimension, None where it is never split.
        init: distribution of the initial value.
        decay: whether weight decay applies (matrices do; norms, biases, sinks and embeddings do not).
        trainable: False for state that rules other than the optimizer update.
        heads: number of heads in a dimension of axis `heads` or `kv_heads`; cuts never go through one.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    init: Init = "normal"
    decay: bool = False
    trainable: bool = True
    heads: int = 0

    @property
    def size(self) -> int:
        """Number of elements of the whole parameter."""
        return prod(self.shape)


def _linear(
    name: str, out_dim: int, in_dim: int, axes: tuple[Axis, Axis], bias: bool, heads: int = 0
) -> Iterator[ParamSpec]:
    """A weight (out, in) and, if wanted, its bias (out)."""
    yield ParamSpec(name=f"{name}.weight", shape=(out_dim, in_dim), axes=axes, decay=True, heads=heads)
    if bias:
        # A bias lies along the output: it is cut where the weight's rows are, and whole where its columns are.
        yield ParamSpec(name=f"{name}.bias", shape=(out_dim,), axes=axes[:1], init="zeros", heads=heads)


def _norm(name: str, dim: int) -> ParamSpec:
    return ParamSpec(name=f"{name}.weight", shape=(dim,), axes=(None,), init="ones")


def _attention(prefix: str, model: ModelConfig) -> Iterator[ParamSpec]:
    hidden, bias = model.hidden_size, model.attention_bias
    q_dim = model.num_attention_heads * model.head_dim
    kv_dim = model.num_key_value_heads * model.head_dim
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    yield from _linear(f"{prefix}.q_proj", q_dim, hidden, ("heads", None), bias, heads)
    yield from _linear(f"{prefix}.k_proj", kv_dim, hidden, ("kv_heads", None), bias, kv_heads)
    yield from _linear(f"{prefix}.v_proj", kv_dim, hidden, ("kv_heads", None), bias, kv_heads)
    yield from _linear(f"{prefix}.o_proj", hidden, q_dim, (None, "heads"), bias, heads)
    if model.attention_sinks:
        # Drawn as matrices are, never decayed
        yield ParamSpec(name=f"{prefix}.sinks", shape=(heads,), axes=("heads",), heads=heads)


def _dense_ffn(prefix: str, hidden: int, ffn: int) -> Iterator[ParamSpec]:
    """gate_up rows interleave gate and up, as the experts' columns do."""
    yield from _linear(f"{prefix}.gate_up_proj", 2 * ffn, hidden, ("ffn", None), True)
    yield from _linear(f"{prefix}.down_proj", hidden, ffn, (None, "ffn"), True)


def _moe_ffn(prefix: str, model: ModelConfig, moe: MoeConfig) -> Iterator[ParamSpec]:
    experts, hidden, ffn = moe.num_experts, model.hidden_size, model.intermediate_size
    # The router is whole on every rank: each routes its own tokens among all experts.
    yield from _linear(f"{prefix}.router", experts, hidden, (None, None), moe.router.linear_bias)
    if moe.balance.bias_rate:
        # Moved by the counts of a step instead of a gradient (moe/balance.py), so it belongs to no optimizer.
        yield ParamSpec(
            name=f"{prefix}.router.selection_bias", shape=(experts,), axes=(None,), init="zeros", trainable=False
        )
    for weight in router_specs(model, moe).layer:
        yield _of_router(weight, f"{prefix}.router.")
    at = f"{prefix}.experts"
    # Experts lie as (E, in, out), the transpose of `_linear`, as Hugging Face stores them.
    yield ParamSpec(
        name=f"{at}.gate_up_proj", shape=(experts, hidden, 2 * ffn), axes=("expert", None, "expert_ffn"), decay=True
    )
    yield ParamSpec(
        name=f"{at}.gate_up_proj_bias", shape=(experts, 2 * ffn), axes=("expert", "expert_ffn"), init="zeros"
    )
    yield ParamSpec(
        name=f"{at}.down_proj", shape=(experts, ffn, hidden), axes=("expert", "expert_ffn", None), decay=True
    )
    yield ParamSpec(name=f"{at}.down_proj_bias", shape=(experts, hidden), axes=("expert", None), init="zeros")
    if moe.num_shared_experts:
        # n shared experts are one dense FFN of n times the width: the sum of their outputs is the same product.
        yield from _dense_ffn(f"{prefix}.shared_experts", hidden, moe.num_shared_experts * ffn)


def router_specs(model: ModelConfig, moe: MoeConfig | None) -> RouterSpecs:
    """What the router adds to the model; nothing where there is none."""
    if moe is None:
        return RouterSpecs()
    return moe.router.specs(moe, model.hidden_size, model.vocab_size)


def _of_router(weight: Weight, prefix: str) -> ParamSpec:
    axes: tuple[Axis, ...] = (None,) * len(weight.shape)
    return ParamSpec(
        name=prefix + weight.name, shape=weight.shape, axes=axes, init=weight.init, trainable=weight.trainable
    )


def layer_specs(model: ModelConfig, moe: MoeConfig | None, layer: int) -> Iterator[ParamSpec]:
    """The parameters of one decoder layer."""
    prefix = f"model.layers.{layer}"
    yield _norm(f"{prefix}.input_layernorm", model.hidden_size)
    yield from _attention(f"{prefix}.self_attn", model)
    yield _norm(f"{prefix}.post_attention_layernorm", model.hidden_size)
    if moe is None:
        yield from _dense_ffn(f"{prefix}.mlp", model.hidden_size, model.intermediate_size)
    else:
        yield from _moe_ffn(f"{prefix}.mlp", model, moe)


def param_specs(model: ModelConfig, moe: MoeConfig | None) -> dict[str, ParamSpec]:
    """Every parameter of the model by name, in the order of the forward pass."""
    vocab_shape = (model.vocab_size, model.hidden_size)
    specs = [ParamSpec(name="model.embed_tokens.weight", shape=vocab_shape, axes=("vocab", None))]
    # Behind the embedding, as the forward pass needs them before the first layer.
    specs.extend(_of_router(weight, "model.") for weight in router_specs(model, moe).shared)
    for layer in range(model.num_hidden_layers):
        specs.extend(layer_specs(model, moe, layer))
    specs.append(_norm("model.norm", model.hidden_size))
    # Where they are tied the embedding's table stands for both, and does not decay.
    if not model.tie_word_embeddings:
        specs.append(ParamSpec(name="lm_head.weight", shape=vocab_shape, axes=("vocab", None), decay=True))
    return {spec.name: spec for spec in specs}


def layer_flops(model: ModelConfig, moe: MoeConfig | None, seq_length: int, layer: int) -> tuple[float, float]:
    """Forward FLOPs of one token in the attention half and in the FFN half of a layer [FLOP].

    2 * active matmul parameters, and 4 * heads * head_dim * mean context; the causal mean context is S/2, in a layer
    with window w it is min(w, S) (an upper bound that published figures use).
    """
    attention = ffn = 0.0
    # `decay` marks the matrices of products; whatever else a layer has is not counted.
    for spec in layer_specs(model, moe, layer):
        if spec.decay and ".mlp." in spec.name:
            # A token passes through K of E experts.
            share = moe.num_experts_per_tok / moe.num_experts if moe and spec.axes[0] == "expert" else 1.0
            ffn += 2.0 * spec.size * share
        elif spec.decay:
            attention += 2.0 * spec.size
    window = model.window(layer)
    context = min(window, seq_length) if window else seq_length / 2
    # Scores and the mix of values: two products of 2 * heads * head_dim * context each.
    return attention + 4 * model.num_attention_heads * model.head_dim * context, ffn


def forward_flops(model: ModelConfig, moe: MoeConfig | None, seq_length: int) -> float:
    """Forward FLOPs of one token through all layers and the LM head [FLOP]."""
    layers = sum(sum(layer_flops(model, moe, seq_length, layer)) for layer in range(model.num_hidden_layers))
    # The LM head by its shape, for a tied one has no row; the embedding is a look-up.
    return layers + 2.0 * model.vocab_size * model.hidden_size


def flops_per_token(model: ModelConfig, moe: MoeConfig | None, seq_length: int) -> float:
    """Training FLOPs of one token [FLOP], forward and backward, without what is computed again: 3 * forward."""
    # Each forward product has two in the backward pass: gradients of its input and of its weight
    return 3.0 * forward_flops(model, moe, seq_length)


def recomputed_flops(model: ModelConfig, moe: MoeConfig | None, seq_length: int, parallel: ParallelConfig) -> float:
    """FLOPs of one token that a layout computes again in the backward pass [FLOP]; ops count none of their own.

    `recompute` does so in the first `recompute_layers` of each piece of the network, and a piece whose output others
    wait for with all of it (mindmoe/pipeline/executor.py).
    """
    pieces, split = build_pieces(model, parallel), parallel.pp > 1 and parallel.schedule == "zb_h1"
    counts_first = moe is not None and moe.balance.aux_coef > 0 and moe.balance.aux_over == "exact"
    again = 0.0
    for piece in pieces:
        halves = [layer_flops(model, moe, seq_length, layer) for layer in piece.layers]
        forward = sum(map(sum, halves)) + (2.0 * model.vocab_size * model.hidden_size if piece.last else 0.0)
        # A piece keeps its input only. The last one runs forward and backward at once, unless counts come first.
        times = int(not piece.last or counts_first)
        if split:
            # Either half of a backward pass begins with the forward pass, and the one for weights also goes through the
            # gradients of activations again, as much as a forward pass. The first piece has that half alone.
            times = 1 if piece.first else 2 if piece.last else 3
        again += times * forward
        for attention, ffn in halves[: piece.recomputed(parallel)]:
            again += ffn if parallel.recompute == "selective" else attention + ffn
    return again


def utilization(flops_of_token: float, tokens_per_s: float, peak: float) -> float:
    """FLOPs per second over a peak [FLOP/s]: MFU with `flops_per_token`, HFU with what is computed again added."""
    return flops_of_token * tokens_per_s / peak
