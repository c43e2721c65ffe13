"""What every router promises, held against what it says of itself: its preset brings it in here.

Presets are those of configs/router/, and those of the folder MINDMOE_ROUTER_PRESETS.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.router.base import Named, RouterStep
from mindmoe.moe.router.types import RouterTypes, router_class, router_types

T, E, K = 256, 16, 4
HIDDEN, VOCAB, SETTLING = 8, 64, 12
OURS = Path(__file__).resolve().parents[3] / "configs" / "router"
FOLDERS = [OURS, *map(Path, filter(None, [os.environ.get("MINDMOE_ROUTER_PRESETS")]))]
PRESETS = [path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))]


def section(path: Path, **router: object) -> MoeConfig:
    raw = yaml.safe_load(path.read_text())["moe"]
    raw["router"] |= router
    return MoeConfig.model_validate({"num_experts": E, "num_experts_per_tok": K} | raw)


def loadable(path: Path) -> bool:
    """Whether its router is there: the lab may be hidden (tests/house/test_imports.py)."""
    tag = yaml.safe_load(path.read_text())["moe"]["router"].get("type", "static")
    return any(tag == known.model_fields["type"].annotation.__args__[0] for known in RouterTypes().sections())


CONFIGS = {path.stem: section(path) for path in PRESETS if loadable(path)}
OFF = {"alpha": 0.0, "difficulty_head": False}
DMR = OURS / "dmr.yaml"
if "dmr" in CONFIGS:
    CONFIGS |= {f"dmr-{variant}": section(DMR, variant=variant) for variant in ("null", "expert_threshold")}
    CONFIGS["dmr-random_k"] = section(DMR, variant="random_k", features=OFF)
    CONFIGS["dmr-groups"] = section(DMR, groups={"num_groups": 4, "easy": 2, "hard": 4, "target": 3.0})
    CONFIGS["dmr-domain"] = section(DMR, features={"bigram": True, "buckets": 128, "domain": True})


class Scene:
    """A router with weights of its own and a state that has settled on other tokens.

    `place` counts tokens of a row: what is read of a token is the same wherever its row lies in a batch.
    """

    def __init__(self, moe: MoeConfig):
        self.moe, self.router, self.routing = moe, moe.router, moe.router.build(moe)
        self.specs = self.router.specs(moe, HIDDEN, VOCAB)
        rng = np.random.default_rng(5)
        self.state: dict[str, dict[str, np.ndarray]] = {"layer": {}, "shared": {}}
        self.weights: Named = {"selection_bias": Tensor(0.02 * rng.standard_normal(E), ms.float32)}
        for weight in self.specs.layer:
            if weight.trainable:
                self.weights[weight.name] = Tensor(0.3 * rng.standard_normal(weight.shape), ms.float32)
            else:
                self.state["layer"][weight.name] = np.zeros(weight.shape, np.float32)
        for weight in self.specs.shared:
            assert not weight.trainable, "no gradient reaches what all layers share"
            self.state["shared"][weight.name] = np.zeros(weight.shape, np.float32)
        for done in range(1, (SETTLING if any(self.state.values()) else 0) + 1):
            self.settle(1000 * done, done)

    def settle(self, seed: int, done: int) -> None:
        """A step on tokens of its own: the first of a run, then later ones than any warm-up lasts."""
        done = 1 if done == 1 else 9999 + done
        found = self(*self.tokens(4 * T, seed))
        signals = {name: found[name].asnumpy().astype(np.float64) for name in self.specs.signals}
        assert {name: value.size for name, value in signals.items()} == dict(self.specs.signals)
        rng = np.random.default_rng(seed)
        counted = {name: rng.integers(0, 3, (1, *shape[1:])) for name, shape in self.specs.sums.items()}
        sums = {
            name: np.concatenate([times, times * rng.standard_normal(times.shape)]) for name, times in counted.items()
        }
        counts = np.bincount(found["ids"].asnumpy().ravel(), minlength=E + 1)[:E].astype(np.float64)
        for scope, step in (
            ("layer", RouterStep(counts=counts, signals=signals, sums=sums, done=done)),
            ("shared", RouterStep(counts=np.zeros(0), signals={}, sums=sums, done=done)),
        ):
            moved = self.router.after_step(self.moe, self.state[scope], step)
            assert moved.keys() <= self.state[scope].keys()
            for name, value in moved.items():
                assert value.shape == self.state[scope][name].shape and value.dtype == np.float32
            self.state[scope] |= moved

    def tokens(self, count: int = T, seed: int = 0) -> tuple[Tensor, dict[str, np.ndarray]]:
        """Logits (T, E) and what may be read of T tokens: one row of them."""
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, VOCAB, count).astype(np.int32)
        known = {
            "hidden": rng.standard_normal((count, HIDDEN)).astype(np.float32),
            "token_id": ids,
            "position": np.arange(count, dtype=np.int32),
            "previous": np.concatenate([[-1], ids[:-1]]).astype(np.int32),
            "domain": np.full(count, 1 + seed % 2, np.int32),
        }
        return Tensor(1.5 * rng.standard_normal((count, E)), ms.float32), known

    def arguments(self, known: Mapping[str, np.ndarray]) -> tuple[Named, Named]:
        """The weights, and what the router reads of tokens: nothing but what it asked for."""
        read = {name: Tensor(known[name]) for name in self.router.reads()}
        hidden = read.pop("hidden", None)
        if self.routing.prepare is not None:
            read = {name: value.reshape((1, -1)) for name, value in read.items()}
            shared = {name: Tensor(value) for name, value in self.state["shared"].items()}
            read = self.routing.prepare(read, shared)
            assert set(read) == set(self.routing.features)
        if hidden is not None:
            read["hidden"] = hidden
        return self.weights | {name: Tensor(value) for name, value in self.state["layer"].items()}, read

    def __call__(self, logits: Tensor, known: Mapping[str, np.ndarray]) -> Named:
        return self.routing.route(logits, *self.arguments(known))


@pytest.fixture(params=CONFIGS, scope="module")
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(CONFIGS[request.param])


def test_it_is_what_its_type_says(scene):
    assert type(scene.router) is router_class(scene.router.tag)
    assert scene.moe == MoeConfig.model_validate(scene.moe.model_dump())


def test_ids_gates_and_probabilities(scene):
    found = scene(*scene.tokens())
    gates, ids, probs = (found[name].asnumpy() for name in ("gates", "ids", "probs"))
    assert ids.shape == gates.shape == (T, scene.router.slots(scene.moe)) and ids.dtype == np.int32
    used = ids < E
    assert (ids >= 0).all() and (ids <= E).all() and np.isfinite(gates).all()
    assert (gates[~used] == 0).all() and (gates[used] > 0).all()
    for row, taken in zip(ids, used, strict=True):
        assert len(set(row[taken])) == taken.sum(), "an expert is chosen twice"
    np.testing.assert_allclose(probs.sum(1), 1.0, atol=1e-5)
    if scene.router.norm_topk:
        np.testing.assert_allclose(gates.sum(1), scene.router.route_scale, atol=1e-5)
    if scene.router.causal:
        assert used.any(1).all(), "a token without experts"
    if "kept" in found:
        kept = found["kept"].asnumpy()
        assert ((kept == ids) | (kept == E)).all()
    own = {*scene.specs.signals, *scene.routing.figures}
    assert own | {"gates", "ids", "probs"} <= set(found) <= own | {"gates", "ids", "probs", "kept", "logits"}


def test_places_go_from_the_best_expert_down_where_it_says_so(scene):
    found = scene(*scene.tokens())
    gates, used = found["gates"].asnumpy(), found["ids"].asnumpy() < E
    pairs = used[:, 1:] & used[:, :-1]
    if scene.router.ranked:  # a selection bias of 0.02 may turn neighbours
        assert (gates[:, 1:] > gates[:, :-1])[pairs].mean() < 0.25
    else:
        assert (gates[:, 1:] > gates[:, :-1])[pairs].mean() > 0.25


def test_the_budget_of_slots(scene):
    mean = float((scene(*scene.tokens(4 * T, seed=3))["ids"].asnumpy() < E).sum(1).mean())
    low, high = scene.router.mean_range(scene.moe)
    off = 0.05 if any(scene.state.values()) else 0.0  # a state found on 1024 other tokens: about 2% of sampling error
    assert low * (1 - off) <= mean <= high * (1 + off) and mean <= scene.router.slots(scene.moe)


def test_gradient_reaches_the_logits_and_is_finite(scene):
    logits, known = scene.tokens()
    given = scene.arguments(known)
    weight = Tensor(np.random.default_rng(1).standard_normal((T, scene.router.slots(scene.moe))), ms.float32)
    grad = ms.grad(lambda x: (scene.routing.route(x, *given)["gates"] * weight).sum())(logits).asnumpy()
    assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-4


def test_routing_depends_on_earlier_tokens_alone_where_it_says_so(scene):
    """Of the later tokens everything changes that can be read of them."""
    logits, known = scene.tokens()
    others, other = scene.tokens(seed=7)
    cut = T // 2
    changed = np.concatenate([logits.asnumpy()[:cut], others.asnumpy()[cut:]])
    mixed = {name: np.concatenate([value[:cut], other[name][cut:]]) for name, value in known.items()}
    before, after = scene(logits, known), scene(Tensor(changed), mixed)
    equal = all((before[name].asnumpy()[:cut] == after[name].asnumpy()[:cut]).all() for name in ("gates", "ids"))
    assert equal is scene.router.causal


def test_two_halves_route_as_the_whole(scene):
    """What data parallelism does to a batch; a router that is not causal competes within a rank's tokens."""
    if not scene.router.causal:
        pytest.skip("tokens of a rank compete with each other by design")
    logits, known = scene.tokens()
    whole = scene(logits, known)
    halves = [
        scene(logits[at], {name: value[at] for name, value in known.items()})
        for at in (slice(0, T // 2), slice(T // 2, T))
    ]
    for name in ("gates", "ids"):
        np.testing.assert_array_equal(np.concatenate([half[name].asnumpy() for half in halves]), whole[name].asnumpy())
    for name in scene.specs.signals:  # sums over tokens
        parts = sum(half[name].asnumpy().astype(np.float64) for half in halves)
        np.testing.assert_allclose(parts, whole[name].asnumpy(), rtol=1e-5, atol=1e-5)


def test_graph_equals_pynative(scene):
    logits, known = scene.tokens()
    weights, read = scene.arguments(known)
    names, wanted, route = tuple(weights), tuple(read), scene.routing.route

    def function(logits, *flat):
        own, told = {}, {}
        for place in range(len(names)):
            own[names[place]] = flat[place]
        for place in range(len(wanted)):
            told[wanted[place]] = flat[len(names) + place]
        found = route(logits, own, told)
        return found["gates"], found["ids"], found["probs"]

    flat = (*weights.values(), *read.values())
    plain, compiled = function(logits, *flat), ms.jit(function)(logits, *flat)
    np.testing.assert_array_equal(plain[1].asnumpy(), compiled[1].asnumpy())
    np.testing.assert_allclose(plain[0].asnumpy(), compiled[0].asnumpy(), atol=1e-6)


def test_every_router_that_is_there_has_a_preset():
    presets = {moe.router.tag for moe in CONFIGS.values()}
    assert {known for known in router_types() if known in presets} == presets
    ours = {type(moe.router) for moe in CONFIGS.values()}
    assert {known for known in RouterTypes().sections() if known.__module__.startswith("mindmoe.")} <= ours
