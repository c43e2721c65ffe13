"""QAOA on a state vector, in NumPy (dry). MindQuantum's simulator gives the same numbers (mindquantum_qaoa.py).

A simulator of n qubits first tabulates all 2^n energies, after which the smallest is known: at these sizes QAOA is an
object of study and a sampler, never a faster search (arXiv 1411.4028 for the algorithm). Whoever calls it also reports
the gap to the exhaustive optimum.
"""

import math
from typing import Protocol

import numpy as np

from mindmoe.lab.tune.qubo import Qubo

MAX_ITERATIONS = 60


class Ansatz(Protocol):
    """prod_l exp(-i beta_l sum X) exp(-i gamma_l C) |+>, with C the energies scaled to variance 1.

    Angles are (gamma_0 .. gamma_{p-1}, beta_0 .. beta_{p-1}) [rad].
    """

    def energy_and_gradient(self, angles: np.ndarray) -> tuple[float, np.ndarray]:
        """Expectation of C and its gradient (2p)."""
        ...

    def probabilities(self, angles: np.ndarray) -> np.ndarray:
        """Probability of every state (2^n)."""
        ...


class NumpyQaoa:
    """The ansatz by a diagonal phase and one-qubit rotations; the gradient by the adjoint method.

    Args:
        energies: (2^n).
    """

    def __init__(self, energies: np.ndarray):
        self.num_qubits = int(math.log2(len(energies)))
        if 2**self.num_qubits != len(energies):
            raise ValueError(f"{len(energies)} energies are not a power of two")
        self.cost = (energies - energies.mean()) / (energies.std() + 1e-30)

    def energy_and_gradient(self, angles: np.ndarray) -> tuple[float, np.ndarray]:
        """Expectation of C and its gradient (2p)."""
        depth = len(angles) // 2
        state = self._state(angles)
        adjoint = self.cost * state
        energy = float(np.vdot(state, adjoint).real)
        gradient = np.zeros(2 * depth)
        for layer in reversed(range(depth)):
            gamma, beta = angles[layer], angles[depth + layer]
            gradient[depth + layer] = 2.0 * np.vdot(adjoint, self._sum_of_flips(state)).imag
            state, adjoint = self._mix(state, -beta), self._mix(adjoint, -beta)
            gradient[layer] = 2.0 * np.vdot(adjoint, self.cost * state).imag
            phase = np.exp(1j * gamma * self.cost)
            state, adjoint = state * phase, adjoint * phase
        return energy, gradient

    def probabilities(self, angles: np.ndarray) -> np.ndarray:
        """Probability of every state (2^n)."""
        return np.abs(self._state(angles)) ** 2

    def _state(self, angles: np.ndarray) -> np.ndarray:
        depth = len(angles) // 2
        state = np.full(len(self.cost), len(self.cost) ** -0.5, np.complex128)
        for layer in range(depth):
            state = self._mix(state * np.exp(-1j * angles[layer] * self.cost), angles[depth + layer])
        return state

    def _mix(self, state: np.ndarray, beta: float) -> np.ndarray:
        """exp(-i beta X) on every qubit."""
        stay, flip = math.cos(beta), -1j * math.sin(beta)
        for qubit in range(self.num_qubits):
            pairs = state.reshape(-1, 2, 2**qubit)
            state = (stay * pairs + flip * pairs[:, ::-1]).reshape(-1)
        return state

    def _sum_of_flips(self, state: np.ndarray) -> np.ndarray:
        """sum over qubits of X_j |state>."""
        total = np.zeros_like(state)
        for qubit in range(self.num_qubits):
            total += state.reshape(-1, 2, 2**qubit)[:, ::-1].reshape(-1)
        return total


def ramp(depth: int, size: float = 0.6) -> np.ndarray:
    """Start angles for a minimum: gamma grows, beta shrinks, of opposite sign.

    With equal signs the ansatz seeks the maximum, and a local optimiser stays above a random guess.
    """
    middle = (np.arange(depth) + 0.5) / depth
    return np.concatenate([size * middle, -size * (1.0 - middle)])


def optimise(ansatz: Ansatz, depth: int) -> np.ndarray:
    """Angles of a local minimum of the expected cost, by L-BFGS-B from the ramp."""
    from scipy.optimize import minimize

    found = minimize(
        ansatz.energy_and_gradient, ramp(depth), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    )
    return found.x


def sample(ansatz: Ansatz, depth: int, shots: int, seed: int) -> np.ndarray:
    """The distinct states (k) that `shots` measurements of the optimised ansatz give, ascending."""
    probabilities = ansatz.probabilities(optimise(ansatz, depth))
    rng = np.random.default_rng(seed)
    return np.unique(rng.choice(len(probabilities), shots, p=probabilities / probabilities.sum()))


def build(backend: str, qubo: Qubo) -> Ansatz:
    """The ansatz of a QUBO, `numpy` or `mindquantum`.

    Raises:
        ImportError: MindQuantum is not installed.
    """
    if backend == "numpy":
        return NumpyQaoa(qubo.energies())
    from mindmoe.lab.tune.mindquantum_qaoa import MindQuantumQaoa

    return MindQuantumQaoa(qubo)
