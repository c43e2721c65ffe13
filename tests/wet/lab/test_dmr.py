"""Dynamic routing: it reduces to static routing, holds its budget, and drops the least wanted slots first."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.lab.dmr.config import Dmr
from mindmoe.lab.dmr.control import DYNAMIC, GROUP_THRESHOLD, MARGIN_BINS, NUM_CONTROLS, THRESHOLD, threshold_of
from mindmoe.lab.dmr.difficulty import (
    bigram_rows,
    build_regression,
    build_table_rows,
    log_norm_of,
    moments,
    others_of,
    standardised,
    table_sums,
    token_features,
    told_by,
    uniform_draw,
)
from mindmoe.lab.dmr.slots import build_slot_limit, slot_rows
from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.topk import TopK
from mindmoe.moe.ties import undecided

T, E, K = 200, 12, 3
OFF = {"alpha": 0.0, "difficulty_head": False}


def dmr(score: str = "sigmoid", **settings) -> MoeConfig:
    budget = {"k_min": 1, "k_max": 6} | settings.pop("budget", {})
    router = {"type": "dmr", "score": score, "budget": budget, "features": {"alpha": 0.5}} | settings
    return MoeConfig(num_experts=E, num_experts_per_tok=K, router=Dmr.model_validate(router))


def build_route(moe: MoeConfig):
    """Returns route(logits, selection bias or None, control, difficulty or draw (T)) -> the assignment."""
    route = moe.router.build(moe).route

    def ask(x, bias, control, difficulty):
        weights = {"control": control}
        if bias is not None:
            weights["selection_bias"] = bias
        if moe.router.variant == "random_k":
            return route(x, weights, {"draw": difficulty})
        # A head that weighs hidden states of one dimension by 1 predicts them as they are.
        weights |= {"difficulty.weight": Tensor([1.0, 0.0, 0.0]), "difficulty.bias": Tensor([0.0])}
        return route(x, weights, {"hidden": difficulty.reshape((-1, 1))})

    return ask


def logits(seed: int = 0, tokens: int = T) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal((tokens, E)), ms.float32)


def control(theta: float = 0.0, dynamic: float = 1.0, group: float = 0.0) -> Tensor:
    values = np.zeros(NUM_CONTROLS, np.float32)
    values[[DYNAMIC, THRESHOLD, GROUP_THRESHOLD]] = dynamic, theta, group
    return Tensor(values)


@pytest.mark.parametrize("score", ["softmax_after_topk", "softmax", "sigmoid"])
@pytest.mark.parametrize("budget", [{"k_min": K, "k_max": K}, {"k_min": 1, "k_max": 6}])
def test_it_is_static_routing_to_the_bit_with_a_fixed_k_and_in_the_warm_up(score, budget):
    warm = budget["k_max"] != K
    route = build_route(dmr(score, budget=budget))
    plain = MoeConfig(num_experts=E, num_experts_per_tok=K, router=TopK(score=score))
    static = plain.router.build(plain).route
    bias = Tensor(0.05 * np.random.default_rng(1).standard_normal(E), ms.float32)
    weight = Tensor(np.random.default_rng(2).standard_normal((T, K)), ms.float32)
    difficulty = Tensor(np.random.default_rng(3).standard_normal(T), ms.float32)

    def both(which):
        def loss(x):
            return (which(x)["gates"][:, :K] * weight).sum()

        return loss

    def of_dmr(x):
        return route(x, bias, control(0.3, 0.0 if warm else 1.0), difficulty)

    def of_static(x):
        return static(x, {"selection_bias": bias}, {})

    ours, theirs = of_dmr(logits()), of_static(logits())
    for name in ("ids", "gates"):
        np.testing.assert_array_equal(ours[name].asnumpy()[:, :K], theirs[name].asnumpy())
    assert (ours["ids"].asnumpy()[:, K:] == E).all()
    np.testing.assert_array_equal(*(ms.grad(both(which))(logits()).asnumpy() for which in (of_dmr, of_static)))


@pytest.mark.parametrize("variant", ["threshold", "null"])
def test_kept_slots_equal_a_loop_over_tokens(variant):
    rng, theta = np.random.default_rng(4), -0.4
    difficulty = rng.standard_normal(T).astype(np.float32)
    found = build_route(dmr(variant=variant))(logits(), None, control(theta), Tensor(difficulty))
    gates, ids = found["gates"], found["ids"]
    scores = 1 / (1 + np.exp(-logits().asnumpy().astype(np.float64)))
    for t in range(T):
        best = np.argsort(-scores[t])[:6]
        wanted = np.log(scores[t, best]) + 0.5 * difficulty[t]
        wanted -= np.log(scores[t, best[0]]) if variant == "threshold" else 0.0
        kept = [expert for r, expert in enumerate(best) if r < 1 or wanted[r] > theta]
        if np.abs(wanted - theta).min() < 1e-5:
            continue
        row = ids.asnumpy()[t]
        assert list(row[row < E]) == kept
        np.testing.assert_allclose(gates.asnumpy()[t][row < E], scores[t, kept] / scores[t, kept].sum(), rtol=1e-5)


@pytest.mark.parametrize("variant", ["threshold", "null"])
def test_a_selection_bias_of_zero_mean_moves_the_mean_k_by_less_than_1_percent(variant):
    """A threshold that holds the budget without bias stays; the biases are what 20 steps of their update make."""
    route, tokens, difficulty = build_route(dmr(variant=variant)), logits(12, 8000), Tensor(np.zeros(8000), ms.float32)

    def routed(bias: np.ndarray, theta: float) -> tuple[float, np.ndarray]:
        found = route(tokens, Tensor(bias, ms.float32), control(theta), difficulty)
        return float((found["ids"].asnumpy() < E).sum(1).mean()), found["margins"].asnumpy()

    theta = threshold_of(routed(np.zeros(E), 0.0)[1], MARGIN_BINS, 8000 * (K - 1))
    plain = routed(np.zeros(E), theta)[0]
    assert plain == pytest.approx(K, abs=0.01)
    for seed in range(5):
        bias = 0.02 * np.random.default_rng(seed).choice([-1.0, 1.0], E)
        moved = routed(bias - bias.mean(), theta)[0]
        print(f"{variant}: mean k {plain:.3f} -> {moved:.3f}")
        assert moved == pytest.approx(plain, rel=0.01)


def test_harder_tokens_get_more_experts_and_more_groups():
    groups = {"num_groups": 4, "easy": 2, "hard": 4, "target": 3.0}
    difficulty = Tensor(np.linspace(-2, 2, T), ms.float32)
    ids = build_route(dmr(groups=groups))(logits(), None, control(-0.5), difficulty)["ids"].asnumpy()
    k = (ids < E).sum(1)
    assert k[T // 2 :].mean() > k[: T // 2].mean() + 1.0
    touched = np.array([len({expert // 3 for expert in row if expert < E}) for row in ids])
    assert touched[: T // 2].max() <= 2 and touched[T // 2 :].max() > 2


def test_random_k_follows_the_draw_alone():
    moe, draw = dmr(variant="random_k", features=OFF), np.random.default_rng(5).random(4000).astype(np.float32)
    k = (build_route(moe)(logits(5, 4000), None, control(), Tensor(draw))["ids"].asnumpy() < E).sum(1)
    np.testing.assert_array_equal(k, 1 + np.floor(draw * 5))


@pytest.mark.parametrize(
    ("k", "k_min", "k_max", "drawn"),
    [(3, 1, 12, (1, 5)), (3, 1, 4, (2, 4)), (4, 1, 6, (2, 6)), (6, 5, 12, (5, 7)), (10, 1, 12, (8, 12))],
)
def test_random_k_holds_its_mean_whatever_bounds_it(k, k_min, k_max, drawn):
    """Over all draws that there are, each number comes as often as any other, but for the rounding of 65536 draws."""
    router = {"type": "dmr", "variant": "random_k", "budget": {"k_min": k_min, "k_max": k_max}, "features": OFF}
    moe = MoeConfig(num_experts=E, num_experts_per_tok=k, router=Dmr.model_validate(router))
    draw = Tensor(np.arange(65536, dtype=np.float32) / 65536)
    used = (build_route(moe)(logits(5, 65536), None, control(), draw)["ids"].asnumpy() < E).sum(1)
    counts = np.bincount(used)
    assert (used.min(), used.max()) == drawn
    assert np.ptp(counts[drawn[0] :]) <= 1
    assert used.mean() == pytest.approx(k, abs=1e-3)


def test_random_k_holds_its_mean_in_groups_that_bound_it():
    """Two groups of three experts are chosen: no token can have more than six, whatever k_max is."""
    groups = {"num_groups": 4, "easy": 2, "hard": 2, "target": 2.0}
    router = {"type": "dmr", "variant": "random_k", "budget": {"k_min": 1, "k_max": 12}, "features": OFF}
    moe = MoeConfig(num_experts=E, num_experts_per_tok=4, router=Dmr.model_validate(router | {"groups": groups}))
    draw = Tensor(np.random.default_rng(8).random(20_000).astype(np.float32))
    used = (build_route(moe)(logits(5, 20_000), None, control(), draw)["ids"].asnumpy() < E).sum(1)
    assert (used.min(), used.max()) == (2, 6)
    assert used.mean() == pytest.approx(4, abs=5 * 2**0.5 / 20_000**0.5)  # five standard errors of numbers 2 to 6


def test_draws_of_the_placebo_are_uniform_over_real_ids_and_places():
    """The mean k is that of the budget although ids are far from uniform: places even them out."""
    rng = np.random.default_rng(11)
    ids = np.minimum(rng.zipf(1.3, (16, 256)), 200_000).astype(np.int32)
    places = np.broadcast_to(np.arange(256, dtype=np.int32) + 131_000, ids.shape).copy()
    draw = uniform_draw(Tensor(ids), Tensor(places)).asnumpy()
    np.testing.assert_array_equal(
        draw, ((ids.astype(np.int64) * 7919 + places * 24859) % 65536).reshape(-1).astype(np.float32) / 65536
    )
    counts = np.bincount((draw * 5).astype(int), minlength=5)
    assert counts.min() > 0.93 * ids.size / 5


def test_slots_beyond_the_bound_are_the_least_wanted():
    moe = dmr()
    rng = np.random.default_rng(6)
    tokens = 400
    ids = np.where(rng.random((tokens, 6)) < 0.9, rng.integers(0, E, (tokens, 6)), E).astype(np.int32)
    margins = rng.standard_normal((tokens, 6)).astype(np.float32)
    rows = slot_rows(moe, tokens, 0.1)
    assert rows == 1536  # 400 * 3 * 1.1 = 1320, rounded up to 512
    got = build_slot_limit(moe, 0.1)(Tensor(margins), Tensor(ids)).asnumpy()
    assert (got < E).sum() == rows
    kept, lost = margins[got < E], margins[(got == E) & (ids < E)]
    assert len(lost) == (ids < E).sum() - rows and lost.max() < kept.min()
    assert (got[got < E] == ids[got < E]).all()
    few = np.where(np.arange(6) < 2, ids, E).astype(np.int32)
    np.testing.assert_array_equal(build_slot_limit(moe, 0.1)(Tensor(margins), Tensor(few)).asnumpy(), few)


def log_gradient_norm(logits, labels):
    """ln ||p - y|| (T) of logits (T, V) that are all on one rank."""
    return log_norm_of(others_of(logits, labels).expand_dims(0))


def test_log_gradient_norm_equals_the_gradient_of_the_loss():
    rng, vocab = np.random.default_rng(7), 30
    z, labels = rng.standard_normal((9, vocab)), rng.integers(0, vocab, 9).astype(np.int32)
    got = log_gradient_norm(Tensor(z, ms.float32), Tensor(labels)).asnumpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(9), labels] -= 1.0
    np.testing.assert_allclose(got, np.log(np.linalg.norm(p, axis=1)), atol=1e-4)


def test_the_table_sums_and_reads_by_token_id():
    rng, vocab = np.random.default_rng(8), 11
    ids = rng.integers(0, vocab, (4, 6)).astype(np.int32)
    norms, mask = rng.standard_normal(24).astype(np.float32), (rng.random(24) < 0.7).astype(np.float32)
    counts, sums = table_sums(Tensor(norms), Tensor(ids), Tensor(mask), vocab).asnumpy()
    want = [norms[(ids.reshape(-1) == v) & (mask > 0)] for v in range(vocab)]
    np.testing.assert_allclose(counts, [len(part) for part in want])
    np.testing.assert_allclose(sums, [part.sum() for part in want], atol=1e-5)
    table = np.stack([rng.standard_normal(vocab), np.arange(vocab) % 3 > 0], 1).astype(np.float32)
    features = token_features(Tensor(table), Tensor(ids)).asnumpy()
    known = table[table[:, 1] > 0, 0]
    level = np.where(table[:, 1] > 0, (table[:, 0] - known.mean()) / known.std(), 0.0)
    np.testing.assert_allclose(features, np.stack([level, table[:, 1]], 1)[ids.reshape(-1)], atol=1e-4)


def test_pairs_of_tokens_fall_evenly_into_buckets_and_order_matters():
    rng, buckets = np.random.default_rng(13), 2**18
    ids, before = rng.integers(0, 201_088, (2, 3000)).astype(np.int32), rng.integers(-1, 201_088, (2, 3000))
    ids[0, 0], before[0, 0] = 2**20 - 1, 2**20 - 2  # the largest digits
    got = bigram_rows(Tensor(ids), Tensor(before, ms.int32), buckets).asnumpy()
    first, second = before.astype(object) + 1, ids.astype(object)
    factors = (382_187, 104_729, 275_207, 491_531)
    digits = (first % 1024, first // 1024, second % 1024, second // 1024)
    want = sum(digit * factor for digit, factor in zip(digits, factors, strict=True)) % (2**19 - 1) % buckets
    np.testing.assert_array_equal(got, want.astype(np.int64))
    expected = buckets * (1 - (1 - 1 / buckets) ** got.size)  # different buckets that 6,000 balls fall into
    assert len(np.unique(got)) > 0.995 * expected
    few = rng.integers(0, 512, (2, 20_000)).astype(np.int32)  # a small vocabulary: nearly all pairs
    pairs = np.unique(few, axis=1)
    rows = bigram_rows(Tensor(pairs[0]), Tensor(pairs[1]), buckets).asnumpy()
    assert len(np.unique(rows)) > 0.98 * buckets * (1 - (1 - 1 / buckets) ** len(rows))
    swapped = bigram_rows(Tensor(pairs[1]), Tensor(pairs[0]), buckets).asnumpy()
    assert (rows == swapped).mean() < 0.01


def test_two_tables_lie_one_behind_the_other_and_the_pair_speaks_before_the_token():
    features = {"alpha": 0.5, "grad_ema": True, "bigram": True, "buckets": 7}
    moe, rng = dmr(features=features), np.random.default_rng(14)
    tokens = rng.integers(0, 5, (2, 3, 4)).astype(np.int32)
    read = {"token_id": Tensor(tokens[..., 0]), "previous": Tensor(tokens[..., 3])}
    rows = build_table_rows(moe.router.features)(read, {"token_table": Tensor(np.zeros((5, 2), np.float32))})
    pairs = bigram_rows(Tensor(tokens[..., 0]), Tensor(tokens[..., 3]), 7).asnumpy()
    np.testing.assert_array_equal(rows.asnumpy(), np.concatenate([tokens[..., 0].ravel(), 5 + pairs.ravel()]))
    norms, mask = rng.standard_normal(6).astype(np.float32), np.array([1, 1, 0, 1, 1, 0], np.float32)
    counts, sums = table_sums(Tensor(norms), rows, Tensor(mask), 12).asnumpy()
    assert counts[:5].sum() == counts[5:].sum() == 4
    for row in range(7):
        np.testing.assert_allclose(sums[5 + row], norms[(pairs.ravel() == row) & (mask > 0)].sum(), atol=1e-6)
    said = np.array([[1.0, 1, 2, 1], [1, 1, 0, 0], [0, 0, 3, 1], [0, 0, 0, 0]], np.float32)
    level, seen = (part.asnumpy() for part in told_by(Tensor(said)))
    np.testing.assert_array_equal(level, [2, 1, 3, 0])
    np.testing.assert_array_equal(seen, [1, 1, 1, 0])


def test_regression_is_the_mean_huber_loss_of_each_layer_whatever_the_parts_of_a_batch():
    rng = np.random.default_rng(9)
    predictions, norms, mask = 2 * rng.standard_normal((3, 40)), rng.standard_normal(40), rng.random(40) < 0.8
    parts = [
        [Tensor(value[..., at], ms.float32) for value in (predictions, norms, mask.astype(np.float32))]
        for at in (slice(0, 13), slice(13, 40))
    ]
    whole = sum(moments(of_part, counted) for _, of_part, counted in parts)
    got = sum(
        float(build_regression(0.7)(predicted, standardised(of_part, whole), counted, whole[0]).asnumpy())
        for predicted, of_part, counted in parts
    )
    target = (norms - norms[mask].mean()) / norms[mask].std()
    error = np.abs(predictions - target)[:, mask]
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5)
    assert got == pytest.approx(0.7 * huber.mean(1).sum(), rel=1e-5)


def test_log_gradient_norm_of_a_sure_model_and_of_parts_of_a_vocabulary():
    z, labels = np.zeros((3, 8)), np.array([2, 2, 5], np.int32)
    z[0, 2], z[1, 3], z[2, 5] = 40.0, 40.0, 9.0  # right and very sure, wrong and very sure, right and sure
    got = log_gradient_norm(Tensor(z, ms.float32), Tensor(labels)).asnumpy()
    p = np.exp(z - z.max(1, keepdims=True)).astype(np.longdouble)
    p /= p.sum(1, keepdims=True)
    rest = p.copy()
    rest[np.arange(3), labels] = 0
    want = 0.5 * np.log(rest.sum(1) ** 2 + (rest**2).sum(1))
    np.testing.assert_allclose(got, want.astype(float), atol=1e-5)
    halves = [
        others_of(Tensor(z[:, at : at + 4], ms.float32), Tensor(labels - at, ms.int32)).asnumpy() for at in (0, 4)
    ]
    np.testing.assert_allclose(log_norm_of(Tensor(np.stack(halves))).asnumpy(), got, atol=1e-6)


def test_log_gradient_norms_of_a_fresh_model_differ_by_little_and_that_little_is_right():
    z = 0.05 * np.random.default_rng(10).standard_normal((6, 4096))
    labels = np.arange(6, dtype=np.int32)
    got = log_gradient_norm(Tensor(z, ms.float32), Tensor(labels)).asnumpy().astype(np.float64)
    p = np.exp(z.astype(np.float32).astype(np.float64))
    p /= p.sum(1, keepdims=True)
    p[np.arange(6), labels] -= 1.0
    want = np.log(np.linalg.norm(p, axis=1))
    assert np.abs(want).max() < 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-3)
    np.testing.assert_allclose(got - got.mean(), want - want.mean(), atol=2e-4 * want.std())


@pytest.mark.parametrize(("above", "want"), [(1e-7, {3}), (-1e-7, {3}), (1e-2, set())])
def test_rounding_decides_on_the_expert_at_the_threshold(above, want):
    falling = np.array([2.0, 1.5, 1.0, 0.5, -0.5, -1.0, -1.5, -2.0], np.float32)
    router = {"type": "dmr", "score": "softmax_after_topk", "budget": {"k_min": 1, "k_max": 6}, "features": OFF}
    moe = MoeConfig.model_validate({"num_experts": 8, "num_experts_per_tok": 3, "router": router})
    state = {"control": control(float(falling[3] - falling[0]) + above)}
    found = undecided(moe.router.build(moe).route, (Tensor(falling[None]), state, {}), 1e-5)
    assert set(np.flatnonzero(found[0])) == want
