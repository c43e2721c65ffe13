"""Surrogates that every test of the tuner shares."""

import numpy as np
import pytest

from mindmoe.lab.tune.qubo import Quadratic, Qubo, encoding, to_qubo

BITS = (3, 3, 2, 2)


def convex(seed: int) -> Quadratic:
    """A random convex quadratic of four variables whose minimum lies inside the unit cube."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 4))
    curvature = root @ root.T / 4.0
    return Quadratic(constant=0.0, gradient=-2.0 * curvature @ rng.uniform(size=4), curvature=curvature)


@pytest.fixture(scope="session")
def qubos() -> list[Qubo]:
    """Twenty 10-bit problems."""
    return [to_qubo(convex(seed), encoding(BITS)) for seed in range(20)]
