"""What a whole training run costs at a planned speed: compute, days, energy, checkpoints, and time lost to faults."""

from dataclasses import dataclass
from math import sqrt

from mindmoe.plan.architecture import Architecture
from mindmoe.plan.hardware import Hardware

STATE_BYTES_PER_PARAM = 14.0  # a checkpoint holds bf16 weights, fp32 master weights and two Adam moments
NODE_DAYS_PER_FAULT = 264.0  # [D] Llama 3 405B: 419 unexpected interruptions of 2,048 nodes in 54 days
RESTART_S = 600.0  # detection, restart and loading [S] vendor's figure for recovery of a job
ASYNC_STALL_S = 1.0  # stall of an asynchronous save, the project's goal
COOLING = 1.3  # energy of the hall over energy of the machines [M]


def optimal_interval(stall_s: float, mtbf_s: float) -> float:
    """Checkpoint interval [s] that loses least: sqrt(2 * stall * MTBF) (Young 1974)."""
    return sqrt(2.0 * stall_s * mtbf_s)


def effective_share(stall_s: float, restart_s: float, mtbf_s: float) -> float:
    """Effective training time ratio at the optimal interval T: 1 - stall/T - (T/2 + restart)/MTBF, at least 0."""
    interval = optimal_interval(stall_s, mtbf_s)
    return max(0.0, 1.0 - stall_s / interval - (interval / 2.0 + restart_s) / mtbf_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The cost of training on `tokens` tokens.

    Attributes:
        flops: model FLOPs by the rule of `Architecture.flops_per_token`.
        flops_active, flops_total: 6 x parameters x tokens, by active and by all parameters.
        days: of pure computation; `days_real` with faults and asynchronous checkpoints.
        energy_mwh: cards, hosts and cooling.
        checkpoint_bytes, checkpoint_s: size of a checkpoint, time to write it with all nodes.
        mtbf_s: mean time between faults of the whole cluster.
        effective_async, effective_sync: effective training time ratio, saving in the background or in the way.
        interval_s: checkpoint interval that loses least when saving in the background.
    """

    tokens: float
    flops: float
    flops_active: float
    flops_total: float
    days: float
    days_real: float
    energy_mwh: float
    checkpoint_bytes: float
    checkpoint_s: float
    mtbf_s: float
    effective_async: float
    effective_sync: float
    interval_s: float


def budget(
    architecture: Architecture,
    hardware: Hardware,
    *,
    cards: int,
    seq_length: int,
    tokens: float,
    tokens_per_s: float,
    node_days_per_fault: float = NODE_DAYS_PER_FAULT,
) -> Budget:
    """The budget of a run at a speed.

    Args:
        tokens: to train on.
        tokens_per_s: of the whole cluster.
        node_days_per_fault: reliability of one node.
    """
    nodes = max(1.0, cards / min(8, hardware.cards_per_node))
    mtbf_s = node_days_per_fault / nodes * 86400.0
    size = STATE_BYTES_PER_PARAM * architecture.total_params
    write_s = size / (nodes * hardware.storage_gb_s * 1e9)
    days = tokens / tokens_per_s / 86400.0
    effective = effective_share(ASYNC_STALL_S, RESTART_S, mtbf_s)
    return Budget(
        tokens=tokens,
        flops=tokens * architecture.flops_per_token(seq_length),
        flops_active=6.0 * architecture.active_params * tokens,
        flops_total=6.0 * architecture.total_params * tokens,
        days=days,
        days_real=days / effective,
        energy_mwh=cards * hardware.power_w * COOLING * days * 24 / 1e6,
        checkpoint_bytes=size,
        checkpoint_s=write_s,
        mtbf_s=mtbf_s,
        effective_async=effective,
        effective_sync=effective_share(write_s, RESTART_S, mtbf_s),
        interval_s=optimal_interval(ASYNC_STALL_S, mtbf_s),
    )
