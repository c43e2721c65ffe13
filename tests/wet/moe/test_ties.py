"""Which decisions of a router rounding may turn, against gaps made up here."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindmoe.moe.config import MoeConfig
from mindmoe.moe.ties import undecided

OFF = 1e-5
FALLING = np.array([2.0, 1.5, 1.0, 0.5, -0.5, -1.0, -1.5, -2.0], np.float32)  # of two groups of four, rms 1.37


def asked(router: dict, logits: np.ndarray, k: int = 3) -> np.ndarray:
    moe = MoeConfig.model_validate({"num_experts": 8, "num_experts_per_tok": k, "router": router})
    return undecided(moe.router.build(moe).route, (Tensor(logits, ms.float32), {}, {}), OFF)


def close(first: int, second: int, gap: float) -> np.ndarray:
    """The falling logits with one moved to a gap, in units of their root mean square, above another."""
    logits = FALLING.copy()
    logits[first] = logits[second] + gap * np.sqrt(np.square(FALLING).mean())
    return logits


@pytest.mark.parametrize("score", ["softmax_after_topk", "softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("logits", "want"),
    [
        (FALLING, set()),
        (close(3, 2, -1e-6), {2, 3}),  # the last that is in and the first that is out
        (close(3, 2, 1e-6), {2, 3}),
        (close(3, 2, -1e-4), set()),  # further apart than rounding
        (close(1, 0, -1e-6), set()),  # both are in
        (close(5, 4, -1e-6), set()),  # both are out
    ],
)
def test_top_k(score, logits, want):
    found = asked({"score": score}, np.stack([FALLING, logits]))
    assert set(np.flatnonzero(found[1])) == want and not found[0].any()


def test_all_of_a_cluster_that_may_change_places():
    logits = FALLING.copy()
    logits[1:5] = 1.0 + np.array([3e-6, 2e-6, 1e-6, 0.0])
    assert set(np.flatnonzero(asked({}, logits[None])[0])) == {1, 2, 3, 4}


def test_groups_decide_on_their_own():
    router = {"type": "moge", "num_groups": 2}
    assert set(np.flatnonzero(asked(router, close(2, 1, -1e-6)[None], k=4)[0])) == {1, 2}
    assert not asked(router, close(4, 3, -1e-6)[None], k=4).any()  # two groups: they do not compete


def test_a_group_brings_its_experts_along():
    """Two groups of equal score: whichever is chosen, all four of the experts in question come or go."""
    logits = np.array([2.0, 0.5, -3, -3, 1.5, 1.0 + 1e-6, -3, -3], np.float32)
    router = {"num_groups": 2, "topk_groups": 1, "score": "softmax_after_topk"}
    assert {0, 1, 4, 5} <= set(np.flatnonzero(asked(router, logits[None], k=2)[0]))


def test_top_p_decides_on_the_last_expert():
    probs = np.exp(FALLING) / np.exp(FALLING).sum()
    router = {"type": "top_p", "p": float(probs[:2].sum()) * (1 + 1e-7), "k_max": 6}
    assert set(np.flatnonzero(asked(router, FALLING[None])[0])) == {2}
