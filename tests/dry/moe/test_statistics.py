"""Routing statistics against hand-computed cases."""

import numpy as np
import pytest

from mindmoe.moe.statistics import RoutingStatistics, RoutingSums, Saturation, routing_statistics


def test_balanced_and_collapsed_layers():
    counts = np.array([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0]])
    stats = routing_statistics(RoutingSums(counts, np.array([8.0, 0.0]), np.array([0.0, 4.0])), num_tokens=8)
    np.testing.assert_allclose(stats.load, [[0.25] * 4, [1, 0, 0, 0]])
    np.testing.assert_allclose(stats.cv, [0.0, np.sqrt(3.0)])
    np.testing.assert_allclose(stats.max_vio, [0.0, 3.0])
    np.testing.assert_allclose(stats.entropy, [1.0, 0.0])
    np.testing.assert_allclose(stats.dropped, [0.0, 0.25])


def test_no_tokens_gives_numbers():
    stats = routing_statistics(RoutingSums(np.zeros((1, 4)), np.zeros(1), np.zeros(1)), num_tokens=1)
    assert np.isfinite(np.concatenate([stats.load.ravel(), stats.cv, stats.max_vio, stats.dropped])).all()


def _statistics(counts: list[list[float]], tokens: float) -> RoutingStatistics:
    table = np.array(counts)
    return routing_statistics(RoutingSums(table, np.zeros(len(table)), np.zeros(len(table))), tokens)


def test_a_router_that_has_collapsed_is_told_once() -> None:
    sound, full = [3.0, 2.0, 2.0, 1.0], [4.0, 4.0, 0.0, 0.0]  # 4 tokens, 2 experts each
    saturation = Saturation()
    seen = [saturation.after(_statistics([sound, layer], 4.0)) for layer in (full, full, sound, full, full, full, full)]
    assert [text is not None for text in seen] == [False] * 5 + [True, False]
    told = seen[5]
    assert (
        told is not None and "layer 1" in told and "max_vio 1.00 of at most 1.00" in told and "2 of 4 experts" in told
    )
    assert "moe.balance.aux_coef" in told


@pytest.mark.parametrize("counts", [[2.0, 2.0], [4.0, 4.0]])
def test_a_router_that_takes_every_expert_cannot_collapse(counts: list[float]) -> None:
    saturation = Saturation()
    assert all(saturation.after(_statistics([counts], counts[0])) is None for _ in range(5))
