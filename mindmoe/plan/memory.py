"""Bytes that one rank holds, term by term: parameters and their states, activations, buffers, and a margin.

One formula for every program and device; what they hold differently is data (`Holds`). The terms come as arrays over
(variant, ZeRO stage, recomputation policy, pipeline stage), so that a search gets all of them at once; a variant is a
schedule with its split of the layers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mindmoe.pipeline.schedule import ScheduleName, build_schedule, peak_in_flight
from mindmoe.plan.architecture import Architecture, LayerShape
from mindmoe.plan.layout import RECOMPUTES, ZEROS, Layout, Recompute

Array = NDArray[np.float64]

_FP32 = 4.0
_STAGES = np.array(ZEROS, dtype=float).reshape(-1, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holds:
    """What a program holds on a device.

    Attributes:
        weight: bytes of a weight.
        mixed: whether fp32 masters stand beside the weights under every ZeRO stage, and gradients are added up in
            place. mindmoe has masters of its own parts under ZeRO 1 and 2, and holds the sum of gradients beside those
            of a micro-batch, which grow while the activations go.
        stream: bytes of an element of the hidden states between blocks; `op` of one between ops.
        inputs, norms: hidden states and outputs of norms that a layer keeps, besides those that can be made again.
        rows: tensors of the experts' rows that are kept: hidden and FFN wide, and of both those made again.
        carried: fp32 tensors that are kept of rows on their way to other ranks (in order, moved, computed, moved back,
            and one gradient), of tokens that all ranks have, and of a sequence gathered over tensor ranks.
        scores: fp32 matrices of the attention that are kept whole.
        fused_loss: whether the loss keeps its two gradients, not the logits.
        gathered: bytes a parameter of the largest unit in use under ZeRO 3: whole, with the next one or its slices,
            and its gradient. mindmoe gathers embedding and head too, and keeps the others for the backward pass unless
            it computes everything again.
        left: copies of the weights that building the model leaves with the allocator, for gathers to use.
        scratch: bytes that the ops hold between calls, and the largest op's buffers beside; None where they do not.
        bucket: bytes of a bucket of gradients before, in and after its collective.
        fragmentation: share of activations and buffers lost between the blocks of the allocator.
    """

    weight: float = _FP32
    mixed: bool = False
    stream: float = 2.0
    op: float = 2.0
    inputs: int = 2
    norms: int = 0
    rows: tuple[int, int, int, int] = (1, 2, 1, 1)
    carried: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scores: float = 0.0
    fused_loss: bool = False
    gathered: float = 12.0
    left: float = 0.0
    scratch: float | None = None
    bucket: float = 0.0
    fragmentation: float = 0.05


PUBLISHED = Holds(weight=2.0, mixed=True, gathered=8.0)
"""Megatron and its like: bf16 weights, fp32 gradients, 12 bytes of masters and moments. The margin is [M]."""
ACCELERATOR = Holds()
"""mindmoe on an accelerator."""


def on_cpu(precision: str, reference: bool = False) -> Holds:
    """mindmoe with the C++ pack, op by op; the counts of tensors were made with measured peaks at hand.

    Args:
        precision: of the products.
        reference: whether plain ops stand in for the pack, which keep more than fused ones.
    """
    return Holds(
        stream=_FP32,
        op=2.5 * _FP32 if reference else _FP32 if precision == "fp32" else 2.0,
        inputs=3,
        norms=1,
        rows=(0, 2, 0, 0),
        carried=(5.0, 4.0, 3.0),
        scores=5.0 if reference else 0.0,
        fused_loss=not reference,
        gathered=7 * _FP32,
        left=1.0,
        scratch=32 * 2.0**20,
        bucket=3 * 16 * 2.0**20,
        fragmentation=0.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on a rank of one pipeline stage.

    Attributes:
        gradients: their sum, and of a micro-batch's as much as is more than the activations that they replace.
        working: the largest layer's tensors while it runs or is recomputed, or the loss; under ZeRO 3 also the
            weights that are gathered for it, which mindmoe keeps for the backward pass unless it recomputes all.
        buffers: dispatch buffers, communicators, and what ops and allocator hold.
        reserved: driver, runtime and kernels, or the process.
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


def _share(sharded_from: int, replicas: int) -> Array:
    """What each rank has of a state that is sharded from a ZeRO stage on, by stage."""
    return np.where(sharded_from <= _STAGES, 1.0 / replicas, 1.0)


def state_bytes(params: Array, replicas: int, holds: Holds = PUBLISHED) -> tuple[Array, Array, Array]:
    """Weights, summed gradients and optimizer state of `params` local parameters by ZeRO stage.

    Args:
        params: over (variant, pipeline stage).
        replicas: ranks that hold the same.
        holds: bytes of each.

    Returns:
        Three arrays over (variant, ZeRO stage, 1, pipeline stage) [bytes].
    """
    whole = params[:, None, None]
    masters = holds.mixed | ((_STAGES > 0) & (_STAGES < 3) & (replicas > 1))
    optimizer = whole * (2 * _FP32 + np.where(masters, _FP32, 0.0)) * _share(1, replicas)
    return holds.weight * whole * _share(3, replicas), _FP32 * whole * _share(2, replicas), optimizer


def layer_params(layer: LayerShape, layout: Layout) -> tuple[float, float]:
    """Dense and expert parameters of one layer on one rank."""
    return layer.local_params(layout.tp), layer.params_expert / (layout.ep * layout.etp)


def activation_bytes(
    architecture: Architecture,
    layer: LayerShape,
    layout: Layout,
    recompute: Recompute,
    tokens: int,
    imbalance: float,
    holds: Holds = PUBLISHED,
    seq_length: int = 0,
) -> float:
    """Bytes that one layer keeps of one micro-batch until its backward pass, by recomputation policy.

    Args:
        tokens: of one micro-batch on this rank before tensor parallelism.
        imbalance: rows of the busiest expert rank over the mean.
        holds: what is kept.
        seq_length: where scores of the attention are kept.
    """
    hidden, tp = architecture.hidden_size, layout.tp
    rows = tokens / tp
    if recompute == "full":
        return holds.stream * rows * hidden
    qkv = layer.heads * layer.qk_dim / tp + layer.local_kv_width(tp)
    if recompute in ("selective", "ffn") and layer.latent_width:
        qkv = layer.latent_width  # whole on every tensor rank
    kept = rows * hidden * (holds.inputs * holds.stream + holds.norms * holds.op)
    kept += holds.op * tokens * (qkv + layer.heads * layer.v_dim / tp)
    kept += _FP32 * rows * layer.heads * (1.0 + holds.scores * seq_length)  # log-sum-exp of the attention rows
    routed, everywhere, sequence = holds.carried
    kept += sequence * _FP32 * tokens * hidden if tp > 1 else 0.0
    if recompute == "ffn":
        return kept
    kept += holds.op * tokens * 2 * layer.dense_ffn / tp
    again = holds.op * (rows * (2 - holds.norms) * hidden + tokens * layer.dense_ffn / tp)
    if layer.experts:
        each = rows * layer.held_slots(static_rows(layout)) * layout.etp * imbalance
        wide, ffn, wide_again, ffn_again = holds.rows
        kept += _FP32 * rows * 3 * layer.experts
        kept += each * holds.op * (wide * hidden + ffn * layer.expert_ffn / layout.etp)
        again += each * holds.op * (wide_again * hidden + ffn_again * layer.expert_ffn / layout.etp)
        if layout.ep * layout.etp > 1 and layout.dispatcher == "all_gather":
            kept += everywhere * _FP32 * rows * layout.ep * layout.etp * hidden
        elif layout.ep * layout.etp > 1:
            kept += routed * _FP32 * each * hidden
    return kept if recompute == "selective" else kept + again


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


def scratch_bytes(architecture: Architecture, layout: Layout, tokens: int, holds: Holds) -> float:
    """What the ops hold between calls: the buffers of the largest one, the experts' backward pass."""
    if holds.scratch is None:
        return 0.0
    layer, dim = architecture.layers[-1], architecture.hidden_size
    rows = tokens / layout.tp * layout.etp * layer.held_slots(static_rows(layout))
    experts = holds.op * rows * (3 * dim + 3 * layer.expert_ffn / layout.etp)
    return experts + 2 * _FP32 * tokens * layer.heads * layer.qk_dim / layout.tp + holds.scratch


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


def working_bytes(
    holds: Holds,
    architecture: Architecture,
    layout: Layout,
    counts: Array,
    kept: Array,
    tokens: int,
    chunks: Array | None,
) -> Array:
    """What is at work: a layer or the loss, and under ZeRO 3 gathered weights; shape and arguments of `memory_terms`.

    Args:
        kept: bytes of a layer of each kind without recomputation.
    """
    present, table = counts > 0, architecture.embedding_params / layout.tp
    layer = np.max(kept[:, None] * present, axis=1)
    logits = tokens * architecture.vocab_size / layout.tp * (2.0 + 4.0)
    loss = 2 * _FP32 * tokens * architecture.hidden_size if holds.fused_loss else logits
    of_table = 2 * _FP32 * table if holds.fused_loss else 0.0  # under ZeRO 3 it is a gathered unit's gradient

    def at_work(loss: float) -> Array:
        at_last = np.maximum(layer, loss * (np.arange(layout.pp) == layout.pp - 1))
        return at_last[:, None, None]

    of_layers = np.array([sum(layer_params(layer, layout)) for layer in architecture.kinds])
    largest = np.max(of_layers[:, None] * present, axis=1)
    gathered = np.zeros((len(counts), len(RECOMPUTES), layout.pp))
    if not holds.mixed:
        largest[:, [0, -1]] = np.maximum(largest[:, [0, -1]], table)
        # The backward pass needs gathered weights, and only a layer that is computed again gathers them again.
        whole = holds.weight * (of_layers @ counts) / (1.0 if chunks is None else chunks)
        gathered[:, [RECOMPUTES.index(how) for how in RECOMPUTES if how != "full"]] += whole[:, None]
    gathered += holds.gathered * largest[:, None]
    return np.where(_STAGES == 3, at_work(loss) + gathered[:, None], at_work(loss + of_table))


def memory_terms(
    holds: Holds,
    architecture: Architecture,
    layout: Layout,
    *,
    counts: Array,
    held: Array,
    chunks: Array | None,
    tokens: int,
    imbalance: float,
    seq_length: int,
    several: bool,
    communicator: float,
    reserved: float,
) -> dict[str, Array]:
    """The terms of `Memory` over (variant, ZeRO stage, recomputation policy, pipeline stage) [bytes].

    Args:
        holds: what the program holds on the device.
        layout: its degrees and its dispatcher count; its schedule, ZeRO stage and recomputation do not.
        counts: layers over (variant, kind in the order of `architecture.kinds`, pipeline stage).
        held: micro-batches whose activations a stage holds at once, counted over the whole stage; over (variant,
            pipeline stage).
        chunks: over (variant, 1), where stages keep the inputs of micro-batches only and compute one piece again.
        tokens: of one micro-batch on this rank before tensor parallelism.
        imbalance: rows of the busiest expert rank over the mean.
        seq_length: of the run.
        several: whether a step has several micro-batches.
        communicator: bytes of one process group.
        reserved: of driver, runtime and kernels, or of the process.
    """
    kinds = architecture.kinds
    params, replicas = stage_params(architecture, layout, counts), (layout.replicas, layout.expert_replicas)
    states = [state_bytes(part, size, holds) for part, size in zip(params, replicas, strict=True)]
    weights, gradients, optimizer = (dense + expert for dense, expert in zip(*states, strict=True))

    shared = tokens, imbalance, holds, seq_length
    kept = np.array(
        [[activation_bytes(architecture, kind, layout, how, *shared) for kind in kinds] for how in RECOMPUTES]
    )
    per_stage = kept @ counts
    if chunks is None:
        activations = per_stage * held[:, None]
    else:
        inputs = _FP32 * tokens / layout.tp * architecture.hidden_size * (held * chunks)  # as they travel
        activations = per_stage / chunks[:, None] + inputs[:, None]
    working = working_bytes(holds, architecture, layout, counts, kept[0], tokens, chunks)
    if not holds.mixed and (several or max(replicas) > 1):
        parts = zip(params, replicas, strict=True)
        fresh = sum(_FP32 * part[:, None, None] * _share(3, size) for part, size in parts)
        gradients = gradients + np.maximum(0.0, fresh - activations[:, None] - working)

    groups = 2 + sum(degree > 1 for degree in (layout.tp, layout.pp, layout.ep, layout.cp, layout.expert_replicas))
    dispatch = 0.0 if any(holds.carried) else dispatch_buffers(architecture, layout, tokens, imbalance)
    buffers = dispatch + groups * communicator + scratch_bytes(architecture, layout, tokens, holds)
    buffers += holds.bucket if max(replicas) > 1 else 0.0
    left = holds.left * holds.weight * params.sum(axis=0)[:, None, None] * (_STAGES < 3)
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations[:, None],
        "working": working,
        "buffers": buffers + left,
        "fragmentation": holds.fragmentation * (activations[:, None] + working + dispatch),
        "reserved": np.full((1, 1, 1, 1), reserved),
    }


def pick(terms: dict[str, Array], zero: int, recompute: Recompute, stage: int) -> Memory:
    """The memory of one pipeline stage under one policy, out of the arrays of `memory_terms` for one variant."""
    index = (0, ZEROS.index(zero), RECOMPUTES.index(recompute), stage)
    shape = (1, len(ZEROS), len(RECOMPUTES), terms["weights"].shape[-1])
    return Memory(**{name: float(np.broadcast_to(array, shape)[index]) for name, array in terms.items()})
