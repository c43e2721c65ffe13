"""Surrogate, QUBO and Ising energies are one function, and a fit finds a planted quadratic."""

import numpy as np
import pytest

from mindmoe.lab.tune.qubo import MAX_BITS, Quadratic, all_bits, encoding, fit_quadratic, to_ising, to_qubo


@pytest.mark.parametrize("bits", [(3, 3, 2, 2), (1, 4), (6,)])
def test_qubo_and_ising_equal_the_surrogate_on_every_state(bits):
    rng = np.random.default_rng(sum(bits))
    m = len(bits)
    half = rng.normal(size=(m, m))
    surrogate = Quadratic(constant=rng.normal(), gradient=rng.normal(size=m), curvature=half + half.T)
    matrix = encoding(bits)
    qubo = to_qubo(surrogate, matrix)
    x = all_bits(sum(bits))
    want = surrogate(x @ matrix.T)
    np.testing.assert_allclose(qubo.energies(), want, atol=1e-9, rtol=0)
    ising, z = to_ising(qubo), 1.0 - 2.0 * x
    spins = ((z @ np.triu(ising.coupling, 1)) * z).sum(1) + z @ ising.field + ising.constant
    np.testing.assert_allclose(spins, want, atol=1e-9, rtol=0)
    assert not np.tril(qubo.quadratic).any()


def test_energies_equal_a_loop_over_bits():
    rng = np.random.default_rng(0)
    qubo = to_qubo(Quadratic(constant=0.5, gradient=rng.normal(size=2), curvature=np.eye(2)), encoding((2, 1)))
    for state, energy in enumerate(qubo.energies()):
        bits = [(state >> j) & 1 for j in range(3)]
        want = qubo.constant + sum(qubo.linear[i] * bits[i] for i in range(3))
        want += sum(qubo.quadratic[i, j] * bits[i] * bits[j] for i in range(3) for j in range(i + 1, 3))
        assert energy == pytest.approx(want, abs=1e-12)


def test_fit_recovers_a_planted_quadratic():
    rng = np.random.default_rng(3)
    half = rng.normal(size=(4, 4))
    planted = Quadratic(constant=1.5, gradient=rng.normal(size=4), curvature=half + half.T)
    u = rng.uniform(size=(200, 4))
    found = fit_quadratic(u, planted(u), ridge=1e-9)
    assert found.constant == pytest.approx(planted.constant, abs=1e-4)
    np.testing.assert_allclose(found.gradient, planted.gradient, atol=1e-4)
    np.testing.assert_allclose(found.curvature, planted.curvature, atol=1e-4)


def test_fit_of_fewer_points_than_coefficients_is_finite_and_passes_near_them():
    rng = np.random.default_rng(4)
    u, values = rng.uniform(size=(6, 4)), rng.normal(size=6)
    found = fit_quadratic(u, values)
    assert np.abs(found(u) - values).max() < 0.5 * values.std()


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="17 bits"):
        all_bits(MAX_BITS + 1)
