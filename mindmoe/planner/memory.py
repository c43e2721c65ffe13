"""Bytes that one rank holds, term by term: parameters and their states, activations, buffers, and a margin.

Mixed precision: bf16 weights (2 bytes), fp32 gradients (4), and fp32 master weights with two Adam moments (12). mindmoe
itself has fp32 weights (4), fp32 gradients (4), two moments (8), and master copies of its parts (4) under ZeRO 1 and 2.
The terms come as arrays over (variant, ZeRO stage, recomputation policy, pipeline stage), so that a search gets all of
them at once; a variant is a schedule with its split of the layers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mindmoe.pipeline.schedule import ScheduleName, build_schedule, peak_in_flight
from mindmoe.planner.architecture import Architecture, LayerShape
from mindmoe.planner.hardware import Hardware
from mindmoe.planner.layout import RECOMPUTES, ZEROS, Layout, Recompute

Array = NDArray[np.float64]

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2.0, 4.0, 12.0
_MESSAGE_BYTES = 4.0  # of an element of the hidden states that travel between stages
FRAGMENTATION = 0.05  # share of activations and buffers lost between the blocks of the allocator [M]
_STAGES = np.array(ZEROS, dtype=float).reshape(-1, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on a rank of one pipeline stage.

    Attributes:
        working: the largest layer's tensors while it runs or is recomputed, or the logits; under ZeRO 3 also the
            weights that are gathered for it, which mindmoe keeps for the backward pass unless it recomputes all.
        buffers: dispatch buffers and communicators; reserved: driver, runtime and kernels.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    buffers: float
    fragmentation: float
    reserved: float

    @property
    def total(self) -> float:
        """All terms."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.working
            + self.buffers
            + self.fragmentation
            + self.reserved
        )


def state_bytes(params: Array, replicas: int, ours: bool = False) -> tuple[Array, Array, Array]:
    """Weights, gradients and optimizer state of `params` local parameters by ZeRO stage, over `replicas` ranks.

    Args:
        params: over (variant, pipeline stage).
        replicas: ranks that hold the same.
        ours: mindmoe's own states; a micro-batch's gradients are whole until ZeRO 2 has cut them.

    Returns:
        Three arrays over (variant, ZeRO stage, 1, pipeline stage) [bytes].
    """

    def share(sharded_from: int) -> Array:
        return params[:, None, None] * np.where(sharded_from <= _STAGES, 1.0 / replicas, 1.0)

    if ours:
        moments = np.where((_STAGES > 0) & (_STAGES < 3) & (replicas > 1), OPTIMIZER_BYTES, OPTIMIZER_BYTES - 4.0)
        summed = GRADIENT_BYTES * share(3) + np.where(_STAGES == 2, GRADIENT_BYTES * share(2), 0.0)
        return 2 * WEIGHT_BYTES * share(3), summed, moments * share(1)
    return WEIGHT_BYTES * share(3), GRADIENT_BYTES * share(2), OPTIMIZER_BYTES * share(1)


def layer_params(layer: LayerShape, layout: Layout) -> tuple[float, float]:
    """Dense and expert parameters of one layer on one rank."""
    return layer.local_params(layout.tp), layer.params_expert / (layout.ep * layout.etp)


def activation_bytes(
    architecture: Architecture, layer: LayerShape, layout: Layout, tokens: int, recompute: Recompute, imbalance: float
) -> float:
    """Bytes that one layer keeps of one micro-batch until its backward pass, by recomputation policy.

    Args:
        tokens: of one micro-batch on this rank before tensor parallelism.
        imbalance: rows of the busiest expert rank over the mean.
    """
    hidden, tp = architecture.hidden_size, layout.tp
    rows = tokens / tp
    if recompute == "full":
        return 2.0 * rows * hidden
    qkv = layer.heads * layer.qk_dim + layer.local_kv_width(tp) * tp
    if recompute in ("selective", "ffn") and layer.latent_width:
        qkv = layer.latent_width * tp  # whole on every tensor rank
    kept = rows * 2.0 * (2 * hidden + qkv + layer.heads * layer.v_dim)  # residuals, q, k, v, attention output
    kept += rows * 4.0 * layer.heads  # log-sum-exp of the attention rows
    if recompute == "ffn":
        return kept
    kept += tokens * 2.0 * 2 * layer.dense_ffn / tp
    norms = rows * 2.0 * 2 * hidden
    activation = tokens * 2.0 * layer.dense_ffn / tp
    if layer.experts:
        each = rows * layer.held_slots(static_rows(layout)) * layout.etp * imbalance
        kept += rows * 4.0 * 3 * layer.experts
        kept += each * 2.0 * (hidden + 2 * layer.expert_ffn / layout.etp)  # permuted input, gate and up
        activation += each * 2.0 * (hidden + layer.expert_ffn / layout.etp)  # experts' output, activation
    return kept if recompute == "selective" else kept + norms + activation


@lru_cache(maxsize=4096)
def in_flight(schedule: ScheduleName, stages: int, microbatches: int, chunks: int) -> tuple[int, ...]:
    """The most chunk activations that each stage holds at once, read from the schedule's lists."""
    if schedule == "gpipe":
        return (microbatches,) * stages
    count = min(microbatches, 4 * stages)
    return tuple(peak_in_flight(actions) for actions in build_schedule(schedule, stages, count, chunks))


def static_rows(layout: Layout) -> bool:
    """Whether the experts' rows have a place for every slot: those that are exchanged are the ones in use."""
    return layout.ep * layout.etp == 1 or layout.dispatcher == "all_gather"


def dispatch_buffers(architecture: Architecture, layout: Layout, tokens: int, imbalance: float) -> float:
    """Bytes of send and receive buffers of one dispatch; an all-gather receives every token of the group.

    What comes back of a token has a place for each of its slots.
    """
    if not architecture.experts or layout.ep == 1:
        return 0.0
    rows, width = tokens / layout.tp, 2.0 * architecture.hidden_size
    layers = [layer for layer in architecture.kinds if layer.experts]
    back, sent = (max(layer.held_slots(static) for layer in layers) for static in (True, False))
    received = rows * layout.ep if layout.dispatcher == "all_gather" else rows * sent * imbalance
    return width * (rows * back + received * layout.etp)


def stage_params(architecture: Architecture, layout: Layout, counts: Array) -> Array:
    """Dense and expert parameters of a rank over (2, variant, pipeline stage).

    Args:
        architecture: of the model.
        layout: its degrees count.
        counts: layers over (variant, kind in the order of `architecture.kinds`, pipeline stage).
    """
    per_layer = np.array([layer_params(layer, layout) for layer in architecture.kinds])
    params = (per_layer.T @ counts).transpose(1, 0, 2)
    table = architecture.embedding_params / layout.tp
    params[0][:, 0] += table
    params[0][:, layout.pp - 1] += 0.0 if architecture.tied_embeddings and layout.pp == 1 else table
    return params


def memory_terms(
    hardware: Hardware,
    architecture: Architecture,
    layout: Layout,
    *,
    counts: Array,
    held: Array,
    chunks: Array | None,
    ours: bool,
    tokens: int,
    imbalance: float,
) -> dict[str, Array]:
    """The terms of `Memory` over (variant, ZeRO stage, recomputation policy, pipeline stage) [bytes].

    Args:
        layout: its degrees count; its schedule, ZeRO stage and recomputation do not.
        counts: layers over (variant, kind in the order of `architecture.kinds`, pipeline stage).
        held: micro-batches whose activations a stage holds at once, counted over the whole stage; over (variant,
            pipeline stage).
        chunks: over (variant, 1), where stages keep the inputs of micro-batches only and compute one piece again.
        ours: mindmoe's own states.
        tokens: of one micro-batch on this rank before tensor parallelism.
        imbalance: rows of the busiest expert rank over the mean.
    """
    kinds, last = architecture.kinds, layout.pp - 1
    params = np.array([layer_params(layer, layout) for layer in kinds])
    dense, expert = stage_params(architecture, layout, counts)
    of_dense, of_expert = (
        state_bytes(params, replicas, ours)
        for params, replicas in ((dense, layout.replicas), (expert, layout.expert_replicas))
    )
    states = zip(of_dense, of_expert, strict=True)
    weights, gradients, optimizer = (dense_part + expert_part for dense_part, expert_part in states)

    kept = np.array(
        [
            [activation_bytes(architecture, layer, layout, tokens, recompute, imbalance) for layer in kinds]
            for recompute in RECOMPUTES
        ]
    )
    per_stage = kept @ counts
    if chunks is None:
        activations = (per_stage * held[:, None])[:, None]
    else:
        inputs = _MESSAGE_BYTES * tokens / layout.tp * architecture.hidden_size * (held * chunks)
        activations = (per_stage / chunks[:, None] + inputs[:, None])[:, None]
    present = counts > 0
    working = np.max(kept[0][:, None] * present, axis=1)
    logits = tokens * architecture.vocab_size / layout.tp * (2.0 + 4.0)
    working[:, last] = np.maximum(working[:, last], logits)
    # Under ZeRO 3 the layer in use and the next one are whole, and so is one gradient.
    largest = np.max(params.sum(axis=1)[:, None] * present, axis=1)
    gathered = np.repeat(((4 if ours else 2) * WEIGHT_BYTES + GRADIENT_BYTES) * largest[:, None], len(RECOMPUTES), 1)
    if ours:  # the backward pass needs gathered weights, and only a layer that is computed again gathers them again
        whole = 2 * WEIGHT_BYTES * (params.sum(axis=1) @ counts) / (1.0 if chunks is None else chunks)
        gathered[:, [RECOMPUTES.index(kind) for kind in RECOMPUTES if kind != "full"]] += whole[:, None]
    working_all = working[:, None, None] + np.where(_STAGES == 3, gathered[:, None], 0.0)
    groups = 2 + sum(degree > 1 for degree in (layout.tp, layout.pp, layout.ep, layout.cp, layout.expert_replicas))
    dispatch = dispatch_buffers(architecture, layout, tokens, imbalance)
    communicators = groups * hardware.communicator_mib * 2.0**20
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "working": working_all,
        "buffers": np.full((1, 1, 1, 1), dispatch + communicators),
        "fragmentation": FRAGMENTATION * (activations + working_all + dispatch),
        "reserved": np.full((1, 1, 1, 1), hardware.reserved_gib * 2.0**30),
    }


def pick(terms: dict[str, Array], zero: int, recompute: Recompute, stage: int) -> Memory:
    """The memory of one pipeline stage under one policy, out of the arrays of `memory_terms` for one variant."""
    index = (0, ZEROS.index(zero), RECOMPUTES.index(recompute), stage)
    shape = (1, len(ZEROS), len(RECOMPUTES), terms["weights"].shape[-1])
    return Memory(**{name: float(np.broadcast_to(array, shape)[index]) for name, array in terms.items()})
