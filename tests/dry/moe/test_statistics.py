"""Routing statistics against hand-computed cases."""

import numpy as np

from mindmoe.moe.statistics import routing_statistics


def test_balanced_and_collapsed_layers():
    counts = np.array([[4.0, 4.0, 4.0, 4.0], [16.0, 0.0, 0.0, 0.0]])
    stats = routing_statistics(counts, entropy_sum=np.array([8.0, 0.0]), dropped=np.array([0.0, 4.0]), num_tokens=8)
    np.testing.assert_allclose(stats.load, [[0.25] * 4, [1, 0, 0, 0]])
    np.testing.assert_allclose(stats.cv, [0.0, np.sqrt(3.0)])
    np.testing.assert_allclose(stats.max_vio, [0.0, 3.0])
    np.testing.assert_allclose(stats.entropy, [1.0, 0.0])
    np.testing.assert_allclose(stats.dropped, [0.0, 0.25])


def test_no_tokens_gives_numbers():
    stats = routing_statistics(np.zeros((1, 4)), np.zeros(1), np.zeros(1), num_tokens=1)
    assert np.isfinite(np.concatenate([stats.load.ravel(), stats.cv, stats.max_vio, stats.dropped])).all()
