"""What every router promises, for every preset: a new one is tested by adding its file to configs/router/."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindmoe.moe.config import DmrConfig, ExpertChoiceConfig, MoeConfig, TopPConfig
from mindmoe.moe.control import DYNAMIC, NUM_CONTROLS, Signals, num_controls, updated_control
from mindmoe.moe.router.build import build_router

T, E, K = 256, 16, 4
PRESETS = sorted((Path(__file__).resolve().parents[3] / "configs" / "router").glob("*.yaml"))
VARIANTS = ["null", "expert_threshold"]


def section(path: Path, **router) -> MoeConfig:
    raw = yaml.safe_load(path.read_text())["moe"]
    raw["router"] |= router
    return MoeConfig.model_validate({"num_experts": E, "num_experts_per_tok": K} | raw)


CONFIGS = {path.stem: section(path) for path in PRESETS}
OFF = {"alpha": 0.0, "difficulty_head": False}
CONFIGS |= {f"dmr-{variant}": section(PRESETS[0].parent / "dmr.yaml", variant=variant) for variant in VARIANTS}
CONFIGS["dmr-random_k"] = section(PRESETS[0].parent / "dmr.yaml", variant="random_k", features=OFF)
CONFIGS["dmr-groups"] = section(
    PRESETS[0].parent / "dmr.yaml", groups={"num_groups": 4, "easy": 2, "hard": 4, "target": 3.0}
)


def inputs(moe: MoeConfig, tokens: int = T, seed: int = 0) -> tuple:
    """Logits, bias, a control vector whose thresholds have been found on other tokens, and difficulty."""
    rng = np.random.default_rng(seed)
    logits = Tensor(1.5 * rng.standard_normal((tokens, E)), ms.float32)
    bias = Tensor(0.02 * rng.standard_normal(E), ms.float32)
    difficulty = Tensor(hardness(moe, rng, tokens), ms.float32)
    control = settled(moe, build_router(moe), seed=99) if num_controls(moe) else None
    return logits, bias, control, difficulty


def hardness(moe: MoeConfig, rng: np.random.Generator, tokens: int) -> np.ndarray:
    """What a router gets for difficulty: deviations from the mean, the placebo a uniform draw."""
    placebo = isinstance(moe.router, DmrConfig) and moe.router.variant == "random_k"
    return rng.random(tokens) if placebo else rng.standard_normal(tokens)


def settled(moe: MoeConfig, route, seed: int, steps: int = 12) -> Tensor:
    """The control vector after some steps on random tokens."""
    control, rng = np.zeros(num_controls(moe), np.float32), np.random.default_rng(seed)
    control[DYNAMIC] = 1.0
    for step in range(steps):
        logits, difficulty = 1.5 * rng.standard_normal((4 * T, E)), hardness(moe, rng, 4 * T)
        margins, hard, _, scores = (
            part.asnumpy()
            for part in route(Tensor(logits, ms.float32), None, Tensor(control), Tensor(difficulty, ms.float32))[4]
        )
        signals = Signals(margins=margins, difficulty=hard, kept=4.0 * T * K, scores=scores)
        control = updated_control(control, signals, moe, 4.0 * T, step + 1)
        control[DYNAMIC] = 1.0
    return Tensor(control)


@pytest.fixture(params=CONFIGS)
def moe(request: pytest.FixtureRequest) -> MoeConfig:
    return CONFIGS[request.param]


def test_ids_gates_and_probabilities(moe):
    gates, ids, probs, *_ = (part.asnumpy() for part in build_router(moe)(*inputs(moe))[:3])
    assert ids.shape == gates.shape == (T, moe.router.slots(moe)) and ids.dtype == np.int32
    used = ids < E
    assert (ids >= 0).all() and (ids <= E).all() and np.isfinite(gates).all()
    assert (gates[~used] == 0).all() and (gates[used] > 0).all()
    for row, taken in zip(ids, used, strict=True):
        assert len(set(row[taken])) == taken.sum(), "an expert is chosen twice"
    np.testing.assert_allclose(probs.sum(1), 1.0, atol=1e-5)
    if moe.router.norm_topk:
        np.testing.assert_allclose(gates.sum(1), moe.router.route_scale, atol=1e-5)
    if moe.router.causal:
        assert used.any(1).all(), "a token without experts"


def test_the_budget_of_slots(moe):
    gates, ids, *_ = build_router(moe)(*inputs(moe, 4 * T, seed=3))
    mean = float((ids.asnumpy() < E).sum(1).mean())
    if isinstance(moe.router, TopPConfig):
        assert 1.0 <= mean <= moe.router.k_max
    elif isinstance(moe.router, DmrConfig):  # 1024 tokens with a threshold from others: about 2% of sampling error
        assert mean == pytest.approx(K, rel=0.05)
    elif isinstance(moe.router, ExpertChoiceConfig):
        assert K * 0.8 < mean <= K  # a token keeps at most k_max
    else:
        assert mean == K


def test_gradient_reaches_the_logits_and_is_finite(moe):
    route, scene = build_router(moe), inputs(moe)
    weight = Tensor(np.random.default_rng(1).standard_normal((T, moe.router.slots(moe))), ms.float32)
    grad = ms.grad(lambda x: (route(x, *scene[1:])[0] * weight).sum())(scene[0]).asnumpy()
    assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-4


def test_routing_depends_on_earlier_tokens_alone_where_it_says_so(moe):
    route, scene = build_router(moe), inputs(moe)
    cut = T // 2
    changed = scene[0].asnumpy().copy()
    changed[cut:] = np.random.default_rng(7).standard_normal(changed[cut:].shape)
    before, after = (
        [part.asnumpy()[:cut] for part in route(logits, *scene[1:])[:2]] for logits in (scene[0], Tensor(changed))
    )
    equal = all((a == b).all() for a, b in zip(before, after, strict=True))
    assert equal is moe.router.causal


def test_two_halves_route_as_the_whole(moe):
    """What data parallelism does to a batch; expert choice competes within a rank's tokens and may differ."""
    if not moe.router.causal:
        pytest.skip("tokens of a rank compete with each other by design")
    route, (logits, bias, control, difficulty) = build_router(moe), inputs(moe)
    whole = [part.asnumpy() for part in route(logits, bias, control, difficulty)[:2]]
    halves = [
        [part.asnumpy() for part in route(logits[at], bias, control, difficulty[at])[:2]]
        for at in (slice(0, T // 2), slice(T // 2, T))
    ]
    for part in range(2):
        np.testing.assert_array_equal(np.concatenate([half[part] for half in halves]), whole[part])


def test_graph_equals_pynative(moe):
    route, scene = build_router(moe), inputs(moe)

    def function(logits, bias, control, difficulty):
        return route(logits, bias, control, difficulty)[:3]

    plain, compiled = function(*scene), ms.jit(function)(*scene)
    np.testing.assert_array_equal(plain[1].asnumpy(), compiled[1].asnumpy())
    np.testing.assert_allclose(plain[0].asnumpy(), compiled[0].asnumpy(), atol=1e-6)


def test_every_router_has_a_preset():
    used = {type(moe.router).__name__ for moe in CONFIGS.values()}
    assert used == {"RouterConfig", "MogeConfig", "TopPConfig", "ExpertChoiceConfig", "DmrConfig"}
    assert NUM_CONTROLS == 5
