"""The same QAOA circuit built from gates and run by MindQuantum's simulator on the host CPU."""

import numpy as np

from mindmoe.lab.tune.qubo import Qubo, to_ising


class MindQuantumQaoa:
    """H on every qubit, then per layer RZ and RZZ of the Ising terms and RX of the mixer.

    Angles of a gate are twice those of the exponent. The depth is that of the angles of the first call.

    Args:
        qubo: its energies are scaled to variance 1.

    Raises:
        ImportError: MindQuantum is not installed.
    """

    def __init__(self, qubo: Qubo):
        import mindquantum  # noqa: F401  # said now that it is missing, not at the first call

        ising, scale = to_ising(qubo), float(qubo.energies().std()) + 1e-30
        self.num_qubits = qubo.num_bits
        self.field, self.coupling = ising.field / scale, ising.coupling / scale
        self.depth = 0

    def energy_and_gradient(self, angles: np.ndarray) -> tuple[float, np.ndarray]:
        """Expectation of C and its gradient (2p)."""
        self._prepare(len(angles) // 2)
        energy, gradient = self.expectation(np.asarray(angles)[self.order])
        ordered = np.zeros(len(angles))
        ordered[self.order] = gradient[0, 0].real
        return float(energy[0, 0].real), ordered

    def probabilities(self, angles: np.ndarray) -> np.ndarray:
        """Probability of every state (2^n)."""
        self._prepare(len(angles) // 2)
        values = dict(zip(self.circuit.params_name, np.asarray(angles)[self.order], strict=True))
        return np.abs(self.circuit.get_qs(pr=values)) ** 2

    def _prepare(self, depth: int) -> None:
        """Builds circuit and Hamiltonian of a depth once."""
        if depth == self.depth:
            return
        from mindquantum.core.circuit import UN, Circuit
        from mindquantum.core.gates import RX, RZ, H, Rzz
        from mindquantum.core.operators import Hamiltonian, QubitOperator
        from mindquantum.simulator import Simulator

        qubits = range(self.num_qubits)
        pairs = [(i, j) for i in qubits for j in qubits if i < j and self.coupling[i, j]]
        cost, circuit = QubitOperator(), Circuit()
        circuit += UN(H, self.num_qubits)
        for i in qubits:
            cost += QubitOperator(f"Z{i}", float(self.field[i]))
        for i, j in pairs:
            cost += QubitOperator(f"Z{i} Z{j}", float(self.coupling[i, j]))
        for layer in range(depth):
            for i in qubits:
                circuit += RZ({f"gamma{layer}": 2.0 * float(self.field[i])}).on(i)
            for i, j in pairs:
                circuit += Rzz({f"gamma{layer}": 2.0 * float(self.coupling[i, j])}).on([i, j])
            for i in qubits:
                circuit += RX({f"beta{layer}": 2.0}).on(i)
        names = [f"gamma{layer}" for layer in range(depth)] + [f"beta{layer}" for layer in range(depth)]
        self.order = [names.index(name) for name in circuit.params_name]
        self.circuit, self.depth = circuit, depth
        simulator = Simulator("mqvector", self.num_qubits)
        self.expectation = simulator.get_expectation_with_grad(Hamiltonian(cost), circuit)
