"""The side process that runs QAOA: JSON lines in, JSON lines out (dry).

`python -m mindmoe.lab.tune.solver_process BACKEND` says `{"ready": BACKEND}` once its imports are done, then answers
each request with `{"id": .., "states": [..], "backend": ..}` or `{"id": .., "error": ..}`. It ends with its standard
input.
"""

import json
import sys
from typing import Any, TextIO

import numpy as np

from mindmoe.lab.tune import qaoa
from mindmoe.lab.tune.qubo import Qubo


def encode_request(number: int, qubo: Qubo, depth: int, shots: int, seed: int) -> str:
    """A request as one line."""
    return json.dumps(
        {
            "id": number,
            "quadratic": qubo.quadratic.tolist(),
            "linear": qubo.linear.tolist(),
            "constant": qubo.constant,
            "depth": depth,
            "shots": shots,
            "seed": seed,
        }
    )


def choose_backend(wanted: str) -> str:
    """`auto` as what is installed here.

    Raises:
        ImportError: MindQuantum was asked for by name and is missing.
    """
    if wanted == "numpy":
        return wanted
    try:
        import mindquantum  # noqa: F401
    except ImportError:
        if wanted == "mindquantum":
            raise
        return "numpy"
    return "mindquantum"


def answer(request: dict[str, Any], backend: str) -> dict[str, Any]:
    """The sampled states of a request."""
    qubo = Qubo(
        quadratic=np.array(request["quadratic"]), linear=np.array(request["linear"]), constant=request["constant"]
    )
    ansatz = qaoa.build(backend, qubo)
    states = qaoa.sample(ansatz, request["depth"], request["shots"], request["seed"])
    return {"id": request["id"], "states": states.tolist(), "backend": backend}


def serve(wanted: str, requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        backend = choose_backend(wanted)
    except ImportError as error:
        say({"dead": str(error)})
        return
    from scipy.optimize import minimize  # noqa: F401  # slow to import: not while somebody waits

    say({"ready": backend})
    for line in requests:
        number = None
        try:
            request = json.loads(line)
            number = request["id"]
            say(answer(request, backend))
        except Exception as error:  # whatever a simulator raises, the caller needs an answer to fall back on
            say({"id": number, "error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1], sys.stdin, sys.stdout)
