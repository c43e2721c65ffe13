"""Placement against brute force, replays in loops, and a checkpoint that computes the same after renumbering."""

from itertools import combinations

import numpy as np
import pytest

from mindmoe.host.errors import UserError
from mindmoe.lab.flight import placement as p

E, RANKS = 12, 3


def trace(seed: int = 0, tokens: int = 600, k: int = 3, experts: int = E) -> np.ndarray:
    """Tokens of hidden themes: each theme prefers a few scattered experts."""
    rng = np.random.default_rng(seed)
    themes = rng.permutation(experts).reshape(3, -1)
    logits = rng.gumbel(size=(tokens, experts))
    theme = rng.integers(3, size=tokens)
    for n in range(tokens):
        logits[n, themes[theme[n]]] += 2.5
    logits += np.linspace(0, 1.5, experts)
    return np.argsort(-logits, 1)[:, :k]


@pytest.fixture
def ids() -> np.ndarray:
    return trace()


def loads_of(ids: np.ndarray) -> np.ndarray:
    return np.bincount(ids[ids < E].reshape(-1), minlength=E).astype(float)


def busiest(placement: p.ExpertPlacement, loads: np.ndarray) -> float:
    shares = loads / placement.replicas(len(loads))
    return max(shares[experts].sum() for experts in placement.experts) / (loads.sum() / placement.num_ranks)


def test_packing_holds_every_expert_once_and_is_near_the_best_of_all(ids):
    loads = loads_of(ids)[:8]
    placement = p.pack(loads, 2)
    assert sorted(placement.experts.reshape(-1)) == list(range(8))
    best = min(
        max(loads[list(half)].sum(), loads.sum() - loads[list(half)].sum()) for half in combinations(range(8), 4)
    )
    assert busiest(placement, loads) * loads.sum() / 2 <= 4 / 3 * best
    assert busiest(placement, loads) < busiest(p.contiguous(8, 2), loads)


def test_replicas_go_where_a_replica_carries_most():
    slots = p.replicate(np.array([10.0, 1.0, 4.0]), 6)
    assert np.bincount(slots).tolist() == [3, 1, 2]
    placement = p.pack(np.array([10.0, 1.0, 4.0]), 3, 2)
    assert placement.replicas(3).sum() == 6
    assert busiest(placement, np.array([10.0, 1.0, 4.0])) <= 1.5


def test_swaps_bring_chosen_pairs_together_within_the_limit(ids):
    loads, together = loads_of(ids), p.coactivation(ids, E)
    before = p.pack(loads, RANKS)
    after = p.swap_pairs(before, loads, together)
    assert sorted(after.experts.reshape(-1)) == list(range(E))
    assert busiest(after, loads) <= busiest(before, loads) * 1.05 + 1e-9

    def met(placement):
        return sum(together[a, b] for experts in placement.experts for a, b in combinations(experts, 2))

    assert met(after) > 1.1 * met(before)
    cheap, dear = (p.predict(placement, ids, E, 256.0).ranks_per_token for placement in (after, before))
    assert cheap < dear
    again = p.swap_pairs(after, loads, together, slack=0.0)
    np.testing.assert_array_equal(again.experts, after.experts)  # no allowed swap is left that would gain


def test_coactivation_equals_a_loop(ids):
    want = np.zeros((E, E))
    dropped = np.where(np.arange(3) == 2, E, ids)
    for row in dropped:
        for a, b in combinations([expert for expert in row if expert < E], 2):
            want[a, b] += 1
            want[b, a] += 1
    np.testing.assert_array_equal(p.coactivation(dropped, E), want)


@pytest.mark.parametrize("slots", [None, 5])
def test_prediction_equals_a_replay_token_by_token(ids, slots):
    ids = np.where((np.arange(len(ids)) % 7 == 0)[:, None] & (np.arange(3) == 2), E, ids)
    placement = p.pack(loads_of(ids), RANKS, slots)
    got = p.predict(placement, ids, E, 100.0)
    homes = {e: [r for r in range(RANKS) for slot in placement.experts[r] if slot == e] for e in range(E)}
    load, sent, total = np.zeros(RANKS), 0, 0
    for n, row in enumerate(ids):
        targets = [homes[e][n % len(homes[e])] for e in row if e < E]
        for target in targets:
            load[target] += 1
        total += len(set(targets))
        sent += len(set(targets) - {n * RANKS // len(ids)})
    assert got.imbalance == pytest.approx(load.max() / load.mean())
    assert got.bytes_per_token == pytest.approx(100.0 * sent / len(ids))
    assert got.ranks_per_token == pytest.approx(total / len(ids))


def test_uneven_cuts_and_too_few_slots_are_refused():
    with pytest.raises(UserError, match="5 ranks must divide 12"):
        p.contiguous(12, 5)
    with pytest.raises(UserError, match="8 slots must be at least"):
        p.pack(np.ones(12), 4, 2)


def test_renumbered_experts_compute_the_same():
    rng = np.random.default_rng(1)
    at = "model.layers.0.mlp"
    tensors = {
        f"{at}.router.weight": rng.normal(size=(E, 5)),
        f"{at}.router.selection_bias": rng.normal(size=E),
        f"{at}.experts.down_proj": rng.normal(size=(E, 5, 5)),
        f"adam_m.{at}.experts.down_proj": rng.normal(size=(E, 5, 5)),
        "model.norm.weight": rng.normal(size=E),
    }
    order = p.permutation(p.pack(rng.random(E), RANKS))
    moved = {name: p.renumbered(name, value, [order]) for name, value in tensors.items()}

    def forward(weights, x):
        scores = x @ weights[f"{at}.router.weight"].T + weights[f"{at}.router.selection_bias"]
        best = np.argsort(-scores)[:3]
        return sum(scores[e] * x @ weights[f"{at}.experts.down_proj"][e] for e in best)

    x = rng.normal(size=5)
    np.testing.assert_allclose(forward(moved, x), forward(tensors, x), rtol=1e-12)
    np.testing.assert_array_equal(
        moved[f"adam_m.{at}.experts.down_proj"], tensors[f"adam_m.{at}.experts.down_proj"][order]
    )
    np.testing.assert_array_equal(moved["model.norm.weight"], tensors["model.norm.weight"])
    with pytest.raises(ValueError, match="replicas"):
        p.permutation(p.pack(np.ones(2), 2, 2))
