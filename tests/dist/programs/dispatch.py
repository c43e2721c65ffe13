"""Every dispatcher on four expert ranks, under routings that leave experts, ranks and a whole node without tokens.

dispatch.py OUT CONFIG: writes OUT/rank-R.json with the largest difference of each from all experts on one rank,
relative to the largest number of the tensor.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.config.load import load_config
from mindmoe.config.run import resolve
from mindmoe.host.env import is_scheduler, place, quiet_mindspore
from mindmoe.moe.dispatch.build import build_dispatcher
from mindmoe.parallel.groups import serve
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.setup import build_groups, build_kernels, start_device

ROUTINGS = {
    "everywhere": (0, 8),
    "one node": (0, 4),
    "the other node": (4, 8),
    "one expert": (5, 6),
    "unused slots": (0, 9),
}
TOKENS, TOP_K, RANKS = 12, 2, 4


def main(out: Path, config_file: Path) -> None:
    """Compares outputs and gradients of tokens, gates and own weights."""
    at = place()
    quiet_mindspore(1)
    if is_scheduler():
        serve("cpu")
        return
    words = ["parallel.ep=4", "parallel.dispatcher=two_hop", "parallel.node_size=2"]
    config = resolve(load_config(config_file, words), at.world)
    start_device(config, at)
    groups = build_groups(config, Mesh.build(config.parallel, at.world), at.rank)
    kernels = build_kernels(config, at)
    dim, width, experts = config.model.hidden_size, config.model.intermediate_size, config.moe.num_experts
    rng = np.random.default_rng(0)
    shapes = [(experts, dim, 2 * width), (experts, 2 * width), (experts, width, dim), (experts, dim)]
    weights = [0.3 * rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    xs = rng.standard_normal((RANKS, 1, TOKENS, dim)).astype(np.float32)
    gates = rng.random((RANKS, TOKENS, TOP_K)).astype(np.float32)
    local = slice(at.rank * experts // RANKS, (at.rank + 1) * experts // RANKS)
    found = {}
    for routing, (first, last) in ROUTINGS.items():
        ids = rng.integers(first, last, (RANKS, TOKENS, TOP_K)).astype(np.int32)
        everything = (xs.reshape(1, -1, dim), gates.reshape(-1, TOP_K), ids.reshape(-1, TOP_K), *weights)
        wanted = gradients(kernels.expert_ffn, *everything)
        mine = [wanted[0].reshape(xs.shape)[at.rank], wanted[1].reshape(xs.shape)[at.rank]]
        mine += [wanted[2].reshape(gates.shape)[at.rank], *(grad[local] for grad in wanted[3:])]
        for dispatcher in ("all_gather", "all_to_all", "two_hop"):
            parallel = config.parallel.model_copy(update={"dispatcher": dispatcher})
            call = build_dispatcher(kernels, config.moe, groups, parallel)
            own = (xs[at.rank], gates[at.rank], ids[at.rank], *(weight[local] for weight in weights))
            pairs = zip(gradients(call, *own), mine, strict=True)
            apart = [float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs]
            found[f"{dispatcher}, {routing}"] = max(apart)
    (out / f"rank-{at.rank}.json").write_text(json.dumps(found))


def gradients(call, x, gates, ids, *weights) -> list[np.ndarray]:
    """The output, and the gradients of its sum of squares for x, gates and weights."""

    def loss(x: Tensor, gates: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        out = call(x, gates, Tensor(ids), *weights)
        return (out * out).sum(), out

    arguments = [Tensor(array) for array in (x, gates, *weights)]
    (_, out), grads = ms.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)
    return [out.asnumpy(), *(grad.asnumpy() for grad in grads)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
