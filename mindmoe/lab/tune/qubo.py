"""Quadratic surrogates of an objective on a grid, as QUBO and Ising problems (dry, NumPy only).

m variables u in [0, 1] lie on grids of 2^b levels. A quadratic in u with u = A x is a quadratic in the bits x, exactly;
with x = (1 - z) / 2 it is an Ising energy of spins z. Bit j of a number is qubit j, the lowest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_BITS = 16
"""Bits up to which all 2^n energies are tabulated: 65,536 of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Qubo:
    """energy(x) = x' Q x + q' x + constant over x in {0, 1}^n.

    Attributes:
        quadratic: Q (n, n), strictly upper triangular.
        linear: q (n).
        constant: energy of x = 0.
    """

    quadratic: np.ndarray
    linear: np.ndarray
    constant: float = 0.0

    @property
    def num_bits(self) -> int:
        """n."""
        return len(self.linear)

    def energies(self) -> np.ndarray:
        """The energy of every state (2^n); index i holds the state whose bit j is (i >> j) & 1."""
        x = all_bits(self.num_bits)
        return ((x @ self.quadratic) * x).sum(1) + x @ self.linear + self.constant


@dataclass(frozen=True, kw_only=True, slots=True)
class Ising:
    """energy(z) = sum_i field_i z_i + sum_{i<j} coupling_ij z_i z_j + constant over z in {-1, 1}^n."""

    coupling: np.ndarray
    field: np.ndarray
    constant: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quadratic:
    """f(u) = constant + gradient' u + u' curvature u, curvature (m, m) symmetric."""

    constant: float
    gradient: np.ndarray
    curvature: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """f of points u (..., m)."""
        return self.constant + u @ self.gradient + ((u @ self.curvature) * u).sum(-1)


def all_bits(num_bits: int) -> np.ndarray:
    """Every state as bits, (2^n, n) of 0.0 and 1.0.

    Raises:
        ValueError: more than MAX_BITS.
    """
    if num_bits > MAX_BITS:
        raise ValueError(f"{num_bits} bits have 2^{num_bits} states, at most 2^{MAX_BITS} are tabulated")
    return ((np.arange(2**num_bits)[:, None] >> np.arange(num_bits)) & 1).astype(np.float64)


def encoding(bits: Sequence[int]) -> np.ndarray:
    """A (m, n) such that u = A x, where variable i is the binary number of its bits[i] bits over 2^b - 1."""
    matrix = np.zeros((len(bits), sum(bits)))
    start = 0
    for row, width in zip(matrix, bits, strict=True):
        row[start : start + width] = 2.0 ** np.arange(width) / (2.0**width - 1.0)
        start += width
    return matrix


def fit_quadratic(u: np.ndarray, values: np.ndarray, ridge: float = 1e-3) -> Quadratic:
    """Ridge fit of a full quadratic: 1 + m + m (m + 1) / 2 coefficients, the constant alone is not penalised.

    Args:
        u: measured points (k, m) in [0, 1].
        values: (k) what was measured there.
        ridge: penalty of a coefficient's square, in units of the variance of the values.
    """
    m = u.shape[1]
    rows, cols = np.triu_indices(m)
    design = np.concatenate([u, u[:, rows] * u[:, cols]], axis=1)
    centre, mean = design.mean(0), values.mean()
    x, y = design - centre, values - mean
    beta = np.linalg.solve(x.T @ x + ridge * len(u) * np.eye(x.shape[1]), x.T @ y)
    curvature = np.zeros((m, m))
    curvature[rows, cols] = beta[m:]
    return Quadratic(constant=float(mean - centre @ beta), gradient=beta[:m], curvature=0.5 * (curvature + curvature.T))


def to_qubo(surrogate: Quadratic, matrix: np.ndarray) -> Qubo:
    """The surrogate of u = A x as a QUBO in x; equal on every state, as x^2 = x."""
    product = matrix.T @ surrogate.curvature @ matrix
    return Qubo(
        quadratic=np.triu(product + product.T, 1),
        linear=matrix.T @ surrogate.gradient + np.diag(product),
        constant=surrogate.constant,
    )


def to_ising(qubo: Qubo) -> Ising:
    """The same energies with x = (1 - z) / 2."""
    both = qubo.quadratic.sum(0) + qubo.quadratic.sum(1)
    return Ising(
        coupling=qubo.quadratic / 4.0,
        field=-qubo.linear / 2.0 - both / 4.0,
        constant=float(qubo.constant + qubo.linear.sum() / 2.0 + qubo.quadratic.sum() / 4.0),
    )
