"""What recorded routing decisions would cost under another capacity, k or placement of the experts (dry).

It replays decisions; a model that had been trained under other rules would have decided otherwise, so figures for a
capacity or a k are those of a switch at that moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindmoe.host.errors import UserError
from mindmoe.lab.flight.placement import (
    ExpertPlacement,
    Prediction,
    coactivation,
    contiguous,
    pack,
    predict,
    swap_pairs,
)
from mindmoe.lab.flight.trace import Trace

FACTORS = (1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """Load of the experts, mean over layers: load CV, worst max / mean - 1, and experts of a token."""

    k: int
    mean_k: float
    cv: float
    max_vio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Share of the assignments beyond `factor` times the mean load of an expert in a sequence, of each layer (L)."""

    factor: float
    share: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A way to place experts on ranks, and what it is predicted to cost in each layer."""

    name: str
    placements: list[ExpertPlacement]
    predictions: list[Prediction]

    def mean(self, figure: str) -> float:
        """Mean over layers of a figure of the predictions."""
        return float(np.mean([getattr(prediction, figure) for prediction in self.predictions]))

    @property
    def moved(self) -> int:
        """Layers whose experts are not in order."""
        return sum(bool((np.diff(placement.experts.reshape(-1)) < 0).any()) for placement in self.placements)


def loads(trace: Trace, k: int | None = None) -> np.ndarray:
    """Assignments of each expert (L, E), from the best k places of each token, by default all."""
    experts = trace.num_experts
    ids = trace.ids[..., :k].reshape(len(trace.ids), -1)
    return np.stack([np.bincount(row, minlength=experts + 1)[:experts] for row in ids]).astype(np.float64)


def balance(traces: Sequence[Trace], k: int) -> Balance:
    """Balance with the best k places alone."""
    load = np.sum([loads(trace, k) for trace in traces], 0)
    tokens = sum(trace.ids[0, ..., 0].size for trace in traces)
    mean = np.maximum(load.mean(1), 1e-30)
    return Balance(
        k=k,
        mean_k=float(load.sum(1).mean() / tokens),
        cv=float((load.std(1) / mean).mean()),
        max_vio=float((load.max(1) / mean - 1.0).max()),
    )


def dropped(traces: Sequence[Trace], factor: float, per_token: float) -> Dropped:
    """What a capacity of ceil(factor * S * per_token / E) rows an expert and sequence would drop.

    Args:
        traces: decisions.
        factor: of the capacity.
        per_token: experts of a token that the capacity is reckoned from.
    """
    lost, total = 0.0, 0.0
    for trace in traces:
        experts, (layers, batch, length, _) = trace.num_experts, trace.ids.shape
        room = int(np.ceil(factor * length * per_token / experts))
        rows = trace.ids.reshape(layers * batch, -1)
        counts = np.stack([np.bincount(row, minlength=experts + 1)[:experts] for row in rows])
        counts = counts.reshape(layers, batch, experts)
        lost = lost + np.maximum(counts - room, 0).sum((1, 2))
        total = total + counts.sum((1, 2))
    return Dropped(factor=factor, share=lost / np.maximum(total, 1.0))


def placed(traces: Sequence[Trace], num_ranks: int, bytes_per_row: float) -> list[Placed]:
    """Experts in order, packed by load, packed with pair swaps, and last what is proposed; each layer on its own.

    Placements are made from the older half of the traces and judged on the newer one, where there are two. Proposed is
    the better of the two that were made, or the experts in order where neither is better than that.

    Args:
        traces: decisions, oldest first.
        num_ranks: ranks that share the experts.
        bytes_per_row: of a token's hidden state [bytes].

    Raises:
        UserError: the ranks cannot share the experts evenly.
    """
    experts = traces[0].num_experts
    in_order = contiguous(experts, num_ranks)
    half = len(traces) // 2
    seen, unseen = (traces[:half], traces[half:]) if half else (traces, traces)
    names = ("in order", "packed by load", "packed and swapped", "proposed")
    ways = [Placed(name=name, placements=[], predictions=[]) for name in names]
    for layer in range(len(traces[0].ids)):
        older, newer = (np.concatenate([_rows(trace, layer) for trace in part]) for part in (seen, unseen))
        load = np.bincount(older.reshape(-1), minlength=experts + 1)[:experts].astype(np.float64)
        by_load = pack(load, num_ranks)
        made = [in_order, by_load, swap_pairs(by_load, load, coactivation(older, experts))]
        judged = [predict(placement, newer, experts, bytes_per_row) for placement in made]
        whole = np.concatenate([older, newer])
        over_all = [predict(placement, whole, experts, bytes_per_row) for placement in made]
        noise = noise_of(int((newer < experts).sum()), num_ranks)
        costs = [max(_cost(judged[n], judged[0], noise), _cost(over_all[n], over_all[0], noise)) for n in range(3)]
        best = int(np.argmin(costs))
        chosen = best if costs[best] < 1.0 - noise else 0
        for way, number in zip(ways, (0, 1, 2, chosen), strict=True):
            way.placements.append(made[number])
            way.predictions.append(judged[number])
    return ways


def noise_of(assignments: int, num_ranks: int) -> float:
    """How far another batch of as many assignments moves the load of a rank, as a share of it; from 1% to 5%."""
    return float(np.clip(np.sqrt(num_ranks / max(assignments, 1)), 0.01, 0.05))


def _cost(new: Prediction, old: Prediction, noise: float) -> float:
    """What is left of the load of the busiest rank times the bytes sent; infinite where either grows beyond noise."""
    pairs = ((new.imbalance, old.imbalance), (new.bytes_per_token, old.bytes_per_token))
    left = [now / was if was else 1.0 if not now else np.inf for now, was in pairs]
    return float(np.prod(left)) if max(left) <= 1.0 + noise else np.inf


def check_same(traces: Sequence[Trace]) -> None:
    """Traces of one shape of model.

    Raises:
        UserError: the run changed between them.
    """
    shapes = {(trace.num_experts, len(trace.ids), trace.ids.shape[-1]) for trace in traces}
    if len(shapes) > 1:
        raise UserError(f"recorded routing has the shapes {sorted(shapes)}", "delete the records of the older model")


def _rows(trace: Trace, layer: int) -> np.ndarray:
    """(T, K) decisions of a layer."""
    return trace.ids[layer].reshape(-1, trace.ids.shape[-1])
