"""What the cost model needs to know of a network: per layer its matrix products, attention and parameter counts.

A run's network comes from the table of parameters (`mindmoe.models.gpt_oss.parameters`). Published networks that this
project does not train (DeepSeek-V3, Qwen3, Mixtral) come from `architectures.yaml`: they hold the model to published
speeds.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import as_file, files
from typing import Any, Literal

from mindmoe.config import strict_yaml
from mindmoe.host.errors import UserError
from mindmoe.host.files import shown
from mindmoe.models.gpt_oss.config import ModelConfig
from mindmoe.models.gpt_oss.parameters import ParamSpec, layer_specs
from mindmoe.moe.config import MoeConfig
from mindmoe.parallel.sharding import MESH_AXIS


@dataclass(frozen=True, slots=True)
class Gemm:
    """A product (tokens, k) x (k, n) outside the routed experts.

    Attributes:
        block: the half of the layer it belongs to; a router is part of the FFN.
        split: which dimension tensor parallelism splits: `column` n, `row` k, `none` neither.
        heads: most parts of the split, where ranks share key-value heads; 0 for as many as there are ranks.
    """

    name: str
    k: int
    n: int
    split: Literal["column", "row", "none"]
    block: Literal["attention", "ffn"] = "attention"
    heads: int = 0

    def parts(self, tp: int) -> int:
        """Into how many parts tensor parallelism splits it."""
        return 1 if self.split == "none" else min(tp, self.heads or tp)

    def local(self, tp: int) -> tuple[float, float]:
        """k and n on one of `tp` ranks."""
        parts = self.parts(tp)
        return (self.k / parts, self.n) if self.split == "row" else (self.k, self.n / parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """One decoder layer; counts are global, before any parallelism.

    Attributes:
        gemms: products that every token passes, attention and dense or shared FFN.
        heads, qk_dim, v_dim: query heads and their widths.
        latent_width: elements of one token from which q, k and v can be remade (MLA), 0 if they have no such source.
        kv_width: elements of K and V of one token, in `kv_heads` heads.
        window: attention window [tokens], 0 for full causal attention.
        dense_ffn: width of the FFN that every token passes (dense layer or shared experts), 0 if none.
        experts, top_k, expert_ffn: routed experts, 0 for a dense layer; `top_k` is the mean of a token's experts.
        slots, mean_slots: most experts of a token, and most of them on average over a micro-batch, where a router
            chooses their number; 0 where it is `top_k`.
        expert_biases: gpt-oss experts: biases and a clamped activation, which cost vector work.
        group_share: share of the expert groups that one token may use (group-limited routing).
        params_split: parameters that tensor parallelism splits.
        params_whole: parameters that every rank of the stage holds (norms, router).
        params_expert: parameters of all routed experts.
    """

    gemms: tuple[Gemm, ...]
    heads: int
    qk_dim: int
    v_dim: int
    kv_width: int
    kv_heads: int
    latent_width: int = 0
    window: int = 0
    dense_ffn: int = 0
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    slots: int = 0
    mean_slots: float = 0.0
    expert_biases: bool = False
    group_share: float = 1.0
    params_split: int
    params_whole: int
    params_expert: int = 0

    def held_slots(self, static: bool) -> float:
        """Rows of a token that buffers hold, over all experts: `static` ones have room for every slot."""
        return (self.slots if static else self.mean_slots) or self.top_k

    def local_kv_width(self, tp: int) -> float:
        """Elements of K and V of one token on one of `tp` ranks; with fewer heads than ranks, neighbours share one."""
        return self.kv_width / min(tp, self.kv_heads)

    def local_params(self, tp: int) -> float:
        """Parameters outside the experts on one of `tp` ranks."""
        shared = sum(gemm.k * gemm.n * (1 / gemm.parts(tp) - 1 / tp) for gemm in self.gemms if gemm.heads)
        return self.params_split / tp + shared + self.params_whole

    def context(self, seq_length: int) -> float:
        """Mean number of keys a query sees: S/2 when causal, min(window, S) in a window layer (an upper bound)."""
        return min(self.window, seq_length) if self.window else seq_length / 2

    def attention_flops(self, seq_length: int) -> float:
        """Forward FLOPs of QK^T and PV for one token."""
        return 2.0 * self.heads * (self.qk_dim + self.v_dim) * self.context(seq_length)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder: its layers in order, between an embedding and a head of `vocab_size` x `hidden_size` each."""

    name: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...] = field(repr=False)
    tied_embeddings: bool = False

    @cached_property
    def kinds(self) -> tuple[LayerShape, ...]:
        """The different layers, in the order of their first place."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_numbers(self) -> tuple[int, ...]:
        """For each layer, its place in `kinds`."""
        return tuple(self.kinds.index(layer) for layer in self.layers)

    @cached_property
    def experts(self) -> int:
        """Routed experts of an MoE layer, 0 for a dense model."""
        return max(layer.experts for layer in self.kinds)

    @cached_property
    def top_k(self) -> int:
        """Experts of one token, 0 for a dense model."""
        return max(layer.top_k for layer in self.kinds)

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding, and as many of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """Trainable parameters."""
        layers = sum(layer.params_split + layer.params_whole + layer.params_expert for layer in self.layers)
        return layers + self.hidden_size + self.embedding_params * (1 if self.tied_embeddings else 2)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: LM head counted, input embedding not."""
        idle = sum(
            layer.params_expert * (layer.experts - layer.top_k) // layer.experts
            for layer in self.layers
            if layer.experts
        )
        return self.total_params - idle - (0 if self.tied_embeddings else self.embedding_params)

    def flops_per_token(self, seq_length: int) -> float:
        """Training FLOPs of one token, forward and backward, without recomputation.

        3 x (2 x active matmul parameters with LM head, without input embedding + attention); the rule that published
        model-FLOPs figures follow (see `mindmoe.models.gpt_oss.parameters.flops_per_token`, equal on our own networks).
        """
        total = 2.0 * self.embedding_params
        for layer in self.layers:
            total += 2.0 * sum(gemm.k * gemm.n for gemm in layer.gemms) + layer.attention_flops(seq_length)
            total += 2.0 * layer.top_k * 3 * self.hidden_size * layer.expert_ffn
        return 3.0 * total


def from_config(name: str, model: ModelConfig, moe: MoeConfig | None) -> Architecture:
    """The architecture of a run, read from its table of parameters."""
    kinds: dict[int, LayerShape] = {}
    layers = []
    for number in range(model.num_hidden_layers):
        window = model.window(number)
        if window not in kinds:
            kinds[window] = _layer_from_specs(model, moe, list(layer_specs(model, moe, number)), window)
        layers.append(kinds[window])
    return Architecture(
        name=name,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        layers=tuple(layers),
        tied_embeddings=model.tie_word_embeddings,
    )


def _layer_from_specs(model: ModelConfig, moe: MoeConfig | None, specs: list[ParamSpec], window: int) -> LayerShape:
    gemms = []
    split = whole = expert = 0
    for spec in specs:
        if not spec.trainable:
            continue
        axes = [MESH_AXIS[axis] for axis in spec.axes if axis]
        if "ep" in axes:
            expert += spec.size
            continue
        if "tp" in axes:
            split += spec.size
        else:
            whole += spec.size
        if spec.decay and len(spec.shape) == 2:
            n, k = spec.shape
            side: Literal["column", "row", "none"] = "none" if "tp" not in axes else "column" if spec.axes[0] else "row"
            name = spec.name.split(".", 3)[-1].removesuffix(".weight")
            shared = spec.heads if spec.axes[0] == "kv_heads" else 0
            gemms.append(Gemm(name, k, n, side, "attention" if name.startswith("self_attn") else "ffn", shared))
    slots, mean_slots = (moe.router.slots(moe), moe.router.mean_slots(moe)) if moe else (0, 0.0)
    dynamic = moe is not None and slots != moe.num_experts_per_tok
    shared = moe.num_shared_experts * model.intermediate_size if moe else model.intermediate_size
    return LayerShape(
        gemms=tuple(gemms),
        heads=model.num_attention_heads,
        qk_dim=model.head_dim,
        v_dim=model.head_dim,
        kv_width=2 * model.num_key_value_heads * model.head_dim,
        kv_heads=model.num_key_value_heads,
        window=window,
        dense_ffn=shared,
        experts=moe.num_experts if moe else 0,
        top_k=moe.num_experts_per_tok if moe else 0,
        slots=slots if dynamic else 0,
        mean_slots=mean_slots if dynamic else 0.0,
        expert_ffn=model.intermediate_size if moe else 0,
        expert_biases=True,
        group_share=moe.router.group_share if moe else 1.0,
        params_split=split,
        params_whole=whole,
        params_expert=expert,
    )


@cache
def _reference_table() -> dict[str, Any]:
    with as_file(files("mindmoe.plan").joinpath("architectures.yaml")) as path:
        return strict_yaml.load(path)


def reference_names() -> list[str]:
    """The published networks that are on file."""
    return sorted(_reference_table())


@cache
def reference(name: str) -> Architecture:
    """A published network by name.

    Raises:
        UserError: none of that name is on file.
    """
    if name not in _reference_table():
        raise UserError(f"architecture '{shown(name)}' is not on file", f"use one of {', '.join(reference_names())}")
    entry = _reference_table()[name]
    dense = _reference_layer(entry, moe=False, window=0)
    windows = entry.get("windows", [0])
    kinds = [_reference_layer(entry, moe=True, window=window) for window in windows]
    layers = [
        dense if number < entry.get("first_dense", 0) else kinds[number % len(kinds)]
        for number in range(entry["layers"])
    ]
    return Architecture(
        name=name,
        hidden_size=entry["hidden"],
        vocab_size=entry["vocab"],
        layers=tuple(layers),
    )


def _reference_layer(entry: dict[str, Any], moe: bool, window: int) -> LayerShape:
    hidden, heads = entry["hidden"], entry["heads"]
    gemms, qk_dim, v_dim, kv_width = _reference_attention(entry)
    mla = entry.get("mla")
    latent = mla["q_rank"] + mla["kv_rank"] + mla["rope_dim"] if mla else 0
    dense = entry.get("shared_experts", 0) * entry["expert_ffn"] if moe else entry.get("dense_ffn", 0)
    if dense:
        gemms += [
            Gemm("ffn.gate_up", hidden, 2 * dense, "column", "ffn"),
            Gemm("ffn.down", dense, hidden, "row", "ffn"),
        ]
    experts = entry["experts"] if moe else 0
    if experts:
        gemms.append(Gemm("router", hidden, experts, "none", "ffn"))
    biases = entry.get("biases", False)
    expert = experts * 3 * hidden * entry["expert_ffn"] if moe else 0
    if biases and moe:
        expert += experts * (2 * entry["expert_ffn"] + hidden)
    split = sum(gemm.k * gemm.n + (gemm.n if biases else 0) for gemm in gemms if gemm.split != "none")
    split += heads if entry.get("sinks") else 0  # one learned scalar a head
    whole = 2 * hidden + sum(gemm.k * gemm.n + (gemm.n if biases else 0) for gemm in gemms if gemm.split == "none")
    return LayerShape(
        gemms=tuple(gemms),
        heads=heads,
        qk_dim=qk_dim,
        v_dim=v_dim,
        kv_width=kv_width,
        kv_heads=heads if mla else entry["kv_heads"],
        latent_width=latent,
        window=window,
        dense_ffn=dense,
        experts=experts,
        top_k=entry["top_k"] if moe else 0,
        expert_ffn=entry["expert_ffn"] if moe else 0,
        expert_biases=biases,
        group_share=entry.get("group_share", 1.0),
        params_split=split,
        params_whole=whole,
        params_expert=expert,
    )


def _reference_attention(entry: dict[str, Any]) -> tuple[list[Gemm], int, int, int]:
    """The projections, and the widths of a query head, a value head and of K and V together."""
    hidden, heads = entry["hidden"], entry["heads"]
    if "mla" in entry:
        mla = entry["mla"]
        qk_dim, v_dim = mla["nope_dim"] + mla["rope_dim"], mla["v_dim"]
        gemms = [
            Gemm("q_down", hidden, mla["q_rank"], "none"),
            Gemm("q_up", mla["q_rank"], heads * qk_dim, "column"),
            Gemm("kv_down", hidden, mla["kv_rank"] + mla["rope_dim"], "none"),
            Gemm("kv_up", mla["kv_rank"], heads * (mla["nope_dim"] + v_dim), "column"),
            Gemm("out", heads * v_dim, hidden, "row"),
        ]
        return gemms, qk_dim, v_dim, heads * (qk_dim + v_dim)
    dim, kv_heads = entry["head_dim"], entry["kv_heads"]
    gemms = [Gemm("qkv", hidden, (heads + 2 * kv_heads) * dim, "column"), Gemm("out", heads * dim, hidden, "row")]
    return gemms, dim, dim, 2 * kv_heads * dim
