"""Bytes of one rank on a machine whose ranks share its cores, term by term as in `memory`.

The tensors are those that the CPU pack's ops keep for their backward pass, op by op, with what surrounds a split loss,
a split sequence and routed rows; sizes of MindSpore's own process are measured (`host`).
"""

import numpy as np
from numpy.typing import NDArray

from mindmoe.planner.architecture import Architecture, LayerShape
from mindmoe.planner.hardware import Hardware
from mindmoe.planner.layout import RECOMPUTES, ZEROS, Layout, Recompute
from mindmoe.planner.memory import stage_params, static_rows

Array = NDArray[np.float64]
_FP32 = 4.0
_BUCKET = 3 * 16 * 2.0**20  # a bucket of gradients before, in and after its collective
_INITIAL = 1.0  # copies of the weights that building the model leaves with the allocator
_ROUTED_COPIES, _GATHERED_COPIES, _SEQUENCE_COPIES = 5.0, 4.0, 3.0
"""Tensors that are kept: of rows on the way to experts (in order, moved, computed, moved back, and one gradient), of
tokens that all ranks have, and of a gathered sequence."""
_STAGES = np.array(ZEROS, dtype=float).reshape(-1, 1, 1)


def kept_bytes(
    architecture: Architecture, layer: LayerShape, layout: Layout, tokens: int, recompute: Recompute, kept: float
) -> float:
    """Bytes that one layer keeps of one micro-batch until its backward pass.

    Args:
        architecture: of the model.
        layer: of it.
        layout: its degrees and its dispatcher count.
        tokens: of one micro-batch on this rank before tensor parallelism.
        recompute: policy.
        kept: bytes of an element between ops of the pack.
    """
    dim, rows = architecture.hidden_size, tokens / layout.tp
    inputs = _FP32 * rows * dim
    if recompute == "full":
        return inputs
    width = 2 * layer.heads * layer.qk_dim / layout.tp + layer.local_kv_width(layout.tp)
    total = 2 * inputs + kept * rows * dim + kept * tokens * width + _FP32 * tokens * layer.heads / layout.tp
    if layout.tp > 1:
        total += _SEQUENCE_COPIES * _FP32 * tokens * dim
    if recompute in ("selective", "ffn"):
        return total + inputs
    total += inputs + kept * rows * dim + 3 * kept * tokens * layer.dense_ffn / layout.tp
    if layer.experts:
        arriving = rows * layout.etp * layer.held_slots(static_rows(layout))
        total += _FP32 * rows * 3 * layer.experts + kept * arriving * 2 * layer.expert_ffn / layout.etp
        if layout.ep * layout.etp > 1:
            routed = layout.dispatcher != "all_gather"
            seen = rows * layout.ep * layout.etp * dim
            total += _FP32 * (_ROUTED_COPIES * arriving * dim if routed else _GATHERED_COPIES * seen)
    return total


def scratch_bytes(architecture: Architecture, layout: Layout, tokens: int, kept: float) -> float:
    """What the pack holds between calls: the largest op's buffers, which are the experts' backward pass."""
    layer, dim = architecture.layers[-1], architecture.hidden_size
    rows = tokens / layout.tp * layout.etp * layer.held_slots(static_rows(layout))
    experts = kept * rows * (3 * dim + 3 * layer.expert_ffn / layout.etp)
    attention = 2 * _FP32 * tokens * layer.heads * layer.qk_dim / layout.tp
    return experts + attention + 32 * 2.0**20


def host_memory_terms(
    hardware: Hardware,
    architecture: Architecture,
    layout: Layout,
    *,
    counts: Array,
    held: Array,
    chunks: Array | None,
    tokens: int,
    kept: float,
    several: bool,
) -> dict[str, Array]:
    """The terms of `memory.Memory` over (variant, ZeRO stage, recomputation policy, pipeline stage) [bytes].

    Args:
        hardware: the machine.
        architecture: of the model.
        layout: its degrees and its dispatcher count.
        counts: layers over (variant, kind in the order of `architecture.kinds`, pipeline stage).
        held: micro-batches whose inputs a stage holds at once, counted over the whole stage.
        chunks: over (variant, 1) where there are several stages.
        tokens: of one micro-batch on this rank before tensor parallelism.
        kept: bytes of an element between ops of the pack.
        several: whether a step has several micro-batches.
    """
    assert hardware.host is not None
    dim, last = architecture.hidden_size, layout.pp - 1
    replicas, params = (layout.replicas, layout.expert_replicas), stage_params(architecture, layout, counts)
    weights, gradients, moments = (np.zeros((params.shape[1], len(ZEROS), 1, layout.pp)) for _ in range(3))
    copies = 2.0 if several or max(replicas) > 1 else 1.0
    for part, size in zip(params, replicas, strict=True):
        whole, cut = part[:, None, None], np.where(_STAGES == 3, 1.0 / size, 1.0)
        weights += (1 + _INITIAL) * _FP32 * whole * cut
        gradients += copies * _FP32 * whole * cut
        masters = np.where((_STAGES > 0) & (_STAGES < 3) & (size > 1), _FP32, 0.0)
        moments += (2 * _FP32 + masters) * whole * np.where(_STAGES > 0, 1.0 / size, 1.0)
    kinds = architecture.kinds
    by_policy = np.array(
        [[kept_bytes(architecture, kind, layout, tokens, policy, kept) for kind in kinds] for policy in RECOMPUTES]
    )
    activations = (by_policy @ counts) / (1.0 if chunks is None else chunks[:, None])
    if chunks is not None:
        activations = activations + (_FP32 * tokens / layout.tp * dim * held * chunks)[:, None]
    working = np.max(by_policy[0][:, None] * (counts > 0), axis=1)
    table = _FP32 * architecture.vocab_size / layout.tp
    working[:, last] += 2 * (table * dim + _FP32 * tokens * dim)
    whole = params.sum(axis=0)[:, None, None] * _FP32
    gathered = np.where(_STAGES == 3, 3 * whole, 0.0)
    scratch = scratch_bytes(architecture, layout, tokens, kept)
    buffers = scratch + (_BUCKET if max(replicas) > 1 else 0.0)
    working_all = working[:, None, None] + gathered
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": moments,
        "activations": activations[:, None],
        "working": working_all,
        "buffers": np.full((1, 1, 1, 1), buffers),
        "fragmentation": np.zeros((1, 1, 1, 1)),
        "reserved": np.full((1, 1, 1, 1), hardware.host.process_gib * 2.0**30),
    }
