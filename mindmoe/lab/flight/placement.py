"""Where experts live: packed by load with replicas, swapped for less traffic, with predictions of both (dry).

The packing is that of EPLB (github.com/deepseek-ai/EPLB): a spare slot goes to the expert whose replicas carry most,
and slots go in order of load to the lightest rank that has room. It looks at loads alone; pair swaps then bring experts
that tokens choose together onto one rank, where a token is sent once for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindmoe.host.errors import UserError


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """Slots of equal number on every rank: `experts` (ranks, slots a rank) holds the expert of each."""

    experts: np.ndarray

    @property
    def num_ranks(self) -> int:
        """Ranks that share the experts."""
        return len(self.experts)

    def replicas(self, num_experts: int) -> np.ndarray:
        """Slots of each expert (E)."""
        return np.bincount(self.experts.reshape(-1), minlength=num_experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a placement is predicted to cost.

    Attributes:
        imbalance: load of the busiest rank over the mean.
        bytes_per_token: sent to other ranks, one direction [bytes].
        ranks_per_token: distinct ranks that a token is sent to, its own included.
    """

    imbalance: float
    bytes_per_token: float
    ranks_per_token: float


def contiguous(num_experts: int, num_ranks: int) -> ExpertPlacement:
    """Experts in order, as the mesh cuts them.

    Raises:
        UserError: they cannot be cut evenly.
    """
    if num_experts % num_ranks:
        raise UserError(f"{num_ranks} ranks must divide {num_experts} experts", "choose another number of ranks")
    return ExpertPlacement(np.arange(num_experts).reshape(num_ranks, -1))


def replicate(loads: np.ndarray, num_slots: int) -> np.ndarray:
    """The expert of each slot (num_slots): every expert once, spare slots to where a replica carries most.

    Raises:
        UserError: fewer slots than experts.
    """
    if num_slots < len(loads):
        raise UserError(f"{num_slots} slots must be at least the {len(loads)} experts", "raise slots per rank")
    counts = np.ones(len(loads))
    for _ in range(num_slots - len(loads)):
        counts[int(np.argmax(loads / counts))] += 1
    return np.repeat(np.arange(len(loads)), counts.astype(int))


def pack(loads: np.ndarray, num_ranks: int, slots_per_rank: int | None = None) -> ExpertPlacement:
    """Balances the load of ranks with equal numbers of slots.

    Args:
        loads: (E) of each expert, in any unit.
        num_ranks: ranks.
        slots_per_rank: more than E / num_ranks leaves room for replicas; by default none.

    Raises:
        UserError: the slots cannot be dealt evenly or do not hold every expert.
    """
    if slots_per_rank is None:
        slots_per_rank = len(contiguous(len(loads), num_ranks).experts[0])
    slots = replicate(np.asarray(loads, np.float64), num_ranks * slots_per_rank)
    share = (loads / np.bincount(slots, minlength=len(loads)))[slots]
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = np.zeros(num_ranks)
    for slot in np.argsort(-share, kind="stable"):
        room = [rank for rank in range(num_ranks) if len(ranks[rank]) < slots_per_rank]
        # A second replica on one rank would carry no load off it: such a rank is taken only when none else has room.
        rank = min(room, key=lambda rank: (slots[slot] in ranks[rank], totals[rank], rank))
        ranks[rank].append(int(slots[slot]))
        totals[rank] += share[slot]
    return ExpertPlacement(np.array([sorted(experts) for experts in ranks]))


def coactivation(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """How many tokens chose both of two experts, (E, E), zero on the diagonal.

    Args:
        ids: (T, K), num_experts where a slot was dropped.
    """
    chosen = np.zeros((len(ids), num_experts + 1), np.float32)
    np.put_along_axis(chosen, ids.astype(np.int64), 1.0, 1)
    pairs = chosen[:, :num_experts].T @ chosen[:, :num_experts]
    np.fill_diagonal(pairs, 0.0)
    return pairs.astype(np.float64)


def swap_pairs(
    placement: ExpertPlacement, loads: np.ndarray, together: np.ndarray, slack: float = 0.05, sweeps: int = 20
) -> ExpertPlacement:
    """Swaps experts between ranks while more co-chosen pairs meet and no rank grows beyond its limit.

    Args:
        placement: without replicas.
        loads: (E).
        together: (E, E) of `coactivation`.
        slack: how far the busiest rank may grow beyond the busier of its present load and the mean.
        sweeps: at most so many passes over all pairs.
    """
    if placement.replicas(len(loads)).max() > 1:
        raise ValueError("pair swaps are for placements without replicas")
    ranks = placement.num_ranks
    where = np.empty(len(loads), np.int64)
    where[placement.experts.reshape(-1)] = np.repeat(np.arange(ranks), placement.experts.shape[1])
    totals = np.bincount(where, weights=loads, minlength=ranks)
    limit = totals.max() * (1.0 + slack)
    pull = together @ np.eye(ranks)[where]  # (E, ranks): pairs that an expert has on each rank
    for _ in range(sweeps):
        moved = False
        for a in range(len(loads)):
            gains = pull[a, where] - pull[a, where[a]] + pull[:, where[a]] - pull[np.arange(len(loads)), where]
            gains -= 2.0 * together[a]
            heavier = loads - loads[a]  # what rank of a takes on
            fits = (totals[where[a]] + heavier <= limit) & (totals[where] - heavier <= limit) & (where != where[a])
            gains = np.where(fits, gains, -np.inf)
            b = int(np.argmax(gains))
            if gains[b] <= 0:
                continue
            from_a, from_b = where[a], where[b]
            totals[from_a] += loads[b] - loads[a]
            totals[from_b] += loads[a] - loads[b]
            where[a], where[b] = from_b, from_a
            change = together[:, a] - together[:, b]
            pull[:, from_b] += change
            pull[:, from_a] -= change
            moved = True
        if not moved:
            break
    return ExpertPlacement(np.array([np.flatnonzero(where == rank) for rank in range(ranks)]))


def predict(placement: ExpertPlacement, ids: np.ndarray, num_experts: int, bytes_per_row: float) -> Prediction:
    """Replays routing decisions on a placement; tokens are dealt to ranks in blocks, as data parallelism does.

    Args:
        placement: its replicas share an expert's tokens evenly.
        ids: (T, K), num_experts where a slot was dropped.
        num_experts: E.
        bytes_per_row: of one token's hidden state [bytes]; a token goes to a rank once, however many experts it has
            there.
    """
    ranks, tokens = placement.num_ranks, len(ids)
    source = np.arange(tokens) * ranks // tokens
    homes: list[list[int]] = [[] for _ in range(num_experts)]
    for rank, experts in enumerate(placement.experts):
        for expert in experts:
            homes[int(expert)].append(rank)
    counts = np.array([len(home) for home in homes])
    table = np.array([[home[n % len(home)] for n in range(max(counts))] for home in homes])
    kept = ids < num_experts
    expert = np.where(kept, ids, 0).astype(np.int64)
    copies = counts[expert]
    target = table[expert, (np.arange(tokens)[:, None] + np.zeros_like(expert)) % copies]
    load = np.bincount(target[kept], minlength=ranks)
    sent = np.zeros((tokens, ranks), bool)
    rows = np.broadcast_to(np.arange(tokens)[:, None], ids.shape)
    sent[rows[kept], target[kept]] = True
    remote = sent.copy()
    remote[np.arange(tokens), source] = False
    return Prediction(
        imbalance=float(load.max() / max(load.mean(), 1e-30)),
        bytes_per_token=float(remote.sum() / tokens * bytes_per_row),
        ranks_per_token=float(sent.sum() / tokens),
    )


def permutation(placement: ExpertPlacement) -> np.ndarray:
    """The new order of experts (E): place i holds former expert order[i], so that even slices are the placement.

    Raises:
        ValueError: the placement has replicas; one weight cannot be in two places of a checkpoint.
    """
    order = placement.experts.reshape(-1)
    if len(np.unique(order)) < len(order):
        raise ValueError("a placement with replicas is no permutation")
    return order


def expert_axis(name: str, shape: tuple[int, ...], num_experts: int) -> int | None:
    """The axis of a tensor of a checkpoint that counts experts; None if it has none.

    Args:
        name: of a parameter, or of a moment of one.
        shape: of the whole tensor.
        num_experts: E. A control vector ends in a figure for each expert, or has none.
    """
    if ".mlp.experts." in name or name.endswith((".router.weight", ".router.bias", ".router.selection_bias")):
        return 0
    if name.endswith(".router.domain"):
        return 1
    if name.endswith(".router.control") and shape[0] > num_experts:
        return 0
    return None


def renumbered(name: str, value: np.ndarray, orders: Sequence[np.ndarray]) -> np.ndarray:
    """A tensor of a checkpoint after the experts of each layer were renumbered; the model computes the same function.

    Router rows, biases, weights and their optimizer moments move together.

    Args:
        name: holds `layers.N.mlp.experts.` or `layers.N.mlp.router.` where there is something to move.
        value: the whole parameter, or a moment of it.
        orders: of each layer, see `permutation`.
    """
    axis = expert_axis(name, value.shape, len(orders[0]))
    if axis is None:
        return value
    order = orders[int(name.split(".layers.")[1].split(".")[0])]
    head = value.shape[axis] - len(order)  # what a control vector holds before its experts
    return np.take(value, np.concatenate([np.arange(head), head + order]), axis)
