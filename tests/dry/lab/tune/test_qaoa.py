"""QAOA: gradients, the second simulator, and whether it finds what enumeration knows."""

import time

import numpy as np
import pytest

from mindmoe.lab.tune import qaoa
from mindmoe.lab.tune.qubo import Qubo

DEPTH, SHOTS = 3, 256


def gates(qubo: Qubo, angles: np.ndarray) -> np.ndarray:
    """The state by full matrices, an independent and slow oracle."""
    energies, n, depth = qubo.energies(), qubo.num_bits, len(angles) // 2
    cost = (energies - energies.mean()) / energies.std()
    flip = np.array([[0, 1], [1, 0]])
    state = np.full(2**n, 2 ** (-n / 2), complex)
    for layer in range(depth):
        state = np.exp(-1j * angles[layer] * cost) * state
        one = np.cos(angles[depth + layer]) * np.eye(2) - 1j * np.sin(angles[depth + layer]) * flip
        whole = np.eye(1)
        for _ in range(n):
            whole = np.kron(one, whole)
        state = whole @ state
    return np.abs(state) ** 2


@pytest.fixture
def small() -> Qubo:
    rng = np.random.default_rng(7)
    return Qubo(quadratic=np.triu(rng.normal(size=(6, 6)), 1), linear=rng.normal(size=6))


def test_probabilities_equal_full_matrices(small):
    angles = np.random.default_rng(1).normal(size=2 * DEPTH)
    ansatz = qaoa.NumpyQaoa(small.energies())
    np.testing.assert_allclose(ansatz.probabilities(angles), gates(small, angles), atol=1e-12)


def test_adjoint_gradient_equals_finite_differences(small):
    ansatz, angles, step = qaoa.NumpyQaoa(small.energies()), np.random.default_rng(2).normal(size=2 * DEPTH), 1e-6
    _, gradient = ansatz.energy_and_gradient(angles)
    for i, unit in enumerate(np.eye(2 * DEPTH)):
        up, down = (ansatz.energy_and_gradient(angles + sign * step * unit)[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((up - down) / (2 * step), abs=1e-6)


def test_numpy_equals_mindquantum(qubos, small):
    pytest.importorskip("mindquantum", reason="MindQuantum is not installed")
    for qubo in (small, *qubos[:3]):
        angles = np.random.default_rng(qubo.num_bits).normal(size=2 * DEPTH)
        ours, theirs = qaoa.build("numpy", qubo), qaoa.build("mindquantum", qubo)
        (energy, gradient), (energy_mq, gradient_mq) = (ansatz.energy_and_gradient(angles) for ansatz in (ours, theirs))
        assert energy == pytest.approx(energy_mq, abs=1e-8)
        np.testing.assert_allclose(gradient, gradient_mq, atol=1e-8)
        np.testing.assert_allclose(ours.probabilities(angles), theirs.probabilities(angles), atol=1e-8)


def test_the_ramp_starts_below_a_random_guess_and_its_mirror_image_above(qubos):
    """A sign error of either angle passes every test of values and fails this one."""
    for qubo in qubos:
        ansatz, start = qaoa.NumpyQaoa(qubo.energies()), qaoa.ramp(DEPTH)
        mirrored = start * np.repeat([1.0, -1.0], DEPTH)
        assert ansatz.energy_and_gradient(start)[0] < -0.3  # the mean over states is 0, their deviation 1
        assert ansatz.energy_and_gradient(mirrored)[0] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "mindquantum"])
def test_it_finds_the_optimum_more_often_than_uniform_shots(qubos, backend):
    """The exact optimum in at least 80% of problems, at least 95% of the range in all, and more than 256 guesses."""
    if backend == "mindquantum":
        pytest.importorskip("mindquantum", reason="MindQuantum is not installed")
    solved, guessed, started = 0, 0, time.process_time()
    for seed, qubo in enumerate(qubos):
        energies = qubo.energies()
        best = energies[qaoa.sample(qaoa.build(backend, qubo), DEPTH, SHOTS, seed)].min()
        uniform = energies[np.random.default_rng(seed).integers(len(energies), size=SHOTS)].min()
        assert (energies.max() - best) / np.ptp(energies) >= 0.95
        solved += best == energies.min()
        guessed += uniform == energies.min()
    print(
        f"{backend}: {solved} of {len(qubos)} solved, {guessed} by guessing, "
        f"{1000 * (time.process_time() - started) / len(qubos):.0f} ms CPU each"
    )
    assert solved >= 0.8 * len(qubos) and solved > guessed


def test_energies_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="12 energies"):
        qaoa.NumpyQaoa(np.arange(12.0))
