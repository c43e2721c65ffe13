"""Every collective on every group of this rank, in all dtypes, held against NumPy.

collectives.py OUT: writes OUT/rank-R.json with the largest difference of each check.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindmoe.host.env import is_scheduler, place, quiet_mindspore
from mindmoe.host.errors import UserError
from mindmoe.parallel import collectives
from mindmoe.parallel.collectives import (
    AllGather,
    AllReduce,
    AllToAll,
    AllToAllV,
    ReduceScatter,
    exchanged_counts,
    host_sum,
    primitives,
    probe,
    shift,
)
from mindmoe.parallel.groups import Group, Groups, connect, serve
from mindmoe.parallel.mesh import Mesh

DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16, "int32": ms.int32}
BIG = 1 << 28  # integers up to here: not exact in fp32, so a careless cast shows


def contribution(rank: int, size: int, dtype: str) -> np.ndarray:
    """What a rank puts in: (size, 2, 3), in fp16 and bf16 small integers, whose sums are exact."""
    rng = np.random.default_rng(rank)
    if dtype == "int32":
        return rng.integers(-BIG, BIG, (size, 2, 3)).astype(np.int32)
    if dtype == "fp32":
        return rng.standard_normal((size, 2, 3)).astype(np.float32)
    return rng.integers(-9, 9, (size, 2, 3)).astype(np.float32)


def expected(verb: str, given: list[np.ndarray], index: int) -> np.ndarray:
    """What a verb makes of everybody's contributions, for the rank in place `index`."""
    if verb == "all_reduce":
        return sum(given)
    if verb == "all_gather":
        return np.stack(given)
    if verb == "reduce_scatter":
        return sum(given)[index]
    if verb == "all_to_all":
        return np.stack([each[index] for each in given])
    return given[index - 1]  # shift


def gradient(verb: str, upstream: list[np.ndarray], index: int) -> np.ndarray:
    """The gradient of the sum over ranks of <upstream, verb(x)>; that of an all-reduced sum passes as it is."""
    if verb == "all_reduce":
        return upstream[index]
    if verb == "all_gather":
        return sum(upstream)[index]
    if verb == "reduce_scatter":
        return np.stack(upstream)
    return np.stack([each[index] for each in upstream])  # all_to_all


def verbs(group: Group) -> dict[str, Callable[[Tensor], Tensor]]:
    """All whose sizes are fixed."""
    on = primitives(group)

    def shifted(x: Tensor) -> Tensor:
        return shift(group, on, x)

    return {
        "all_reduce": AllReduce(group),
        "all_gather": AllGather(group),
        "reduce_scatter": ReduceScatter(group),
        "all_to_all": AllToAll(group),
        "shift": shifted,
    }


def upstream_of(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient that arrives at a rank."""
    return np.random.default_rng(100 + rank).standard_normal(shape).astype(np.float32)


def check_verbs(group: Group, found: dict[str, float]) -> None:
    """Values and gradients of all verbs."""
    for verb, call in verbs(group).items():
        given = {name: [contribution(rank, group.size, name) for rank in group.ranks] for name in DTYPES}
        for name, dtype in DTYPES.items():
            out = call(Tensor(given[name][group.index]).astype(dtype))
            assert out.dtype == dtype, f"{verb} of {name} gives {out.dtype}"
            got = out.astype(ms.float32).asnumpy() if name in ("fp16", "bf16") else out.asnumpy()
            found[f"{group.ranks} {verb} {name}"] = apart(got, expected(verb, given[name], group.index))
        if verb != "shift":
            found[f"{group.ranks} {verb} gradient"] = gradient_apart(group, verb, call)


def gradient_apart(group: Group, verb: str, call: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of a verb's gradient."""
    given = [contribution(rank, group.size, "fp32") for rank in group.ranks]
    shape = expected(verb, given, group.index).shape
    upstream = [upstream_of(rank, shape) for rank in group.ranks]

    def weighted(x: Tensor, w: Tensor) -> Tensor:
        return (call(x) * w).sum()

    got = ms.grad(weighted, 0)(Tensor(given[group.index]), Tensor(upstream[group.index])).asnumpy()
    return apart(got, gradient(verb, upstream, group.index))


def check_rows(group: Group, found: dict[str, float]) -> None:
    """Exchanges of any sizes, some of them empty, and sums on the host."""
    table = np.random.default_rng(7).integers(0, 4, (group.size, group.size)) * 70_000  # messages above 1 MB, and none
    table[0, group.size - 1] = 0
    sent, received = table[group.index].tolist(), table[:, group.index].tolist()
    exchange = AllToAllV(group, sent, received)
    rows = {
        (source, target): np.random.default_rng(source * 10 + target).standard_normal((table[source, target], 2))
        for source in range(group.size)
        for target in range(group.size)
    }
    rows = {key: value.astype(np.float32) for key, value in rows.items()}
    x = Tensor(np.concatenate([rows[group.index, target] for target in range(group.size)]))
    got = exchange(x).asnumpy()
    wanted = np.concatenate([rows[source, group.index] for source in range(group.size)])
    found[f"{group.ranks} all_to_all_v"] = apart(got, wanted)

    def weighted(x: Tensor) -> Tensor:
        return (exchange(x) * float(group.index + 1)).sum()

    wanted = np.concatenate([np.full_like(rows[group.index, target], target + 1) for target in range(group.size)])
    found[f"{group.ranks} all_to_all_v gradient"] = apart(ms.grad(weighted)(x).asnumpy(), wanted)
    found[f"{group.ranks} exchanged_counts"] = apart(
        exchanged_counts(table[group.index][:, None], group)[:, 0], received
    )
    values = [np.arange(5) + rank for rank in group.ranks]
    found[f"{group.ranks} host_sum"] = apart(host_sum(values[group.index], group), sum(values))


def check_large(group: Group, found: dict[str, float]) -> None:
    """What goes through shared memory, in one round of its slots and in several, one call after another."""
    assert primitives(group).shared is not None
    for columns in (16_384, 300_007):
        given = [
            np.random.default_rng(rank).standard_normal((group.size, columns)).astype(np.float32)
            for rank in group.ranks
        ]
        own = Tensor(given[group.index])
        for verb, call in verbs(group).items():
            if verb in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
                for _ in range(5):
                    difference = apart(call(own).asnumpy(), expected(verb, given, group.index))
                    key = f"{group.ranks} {verb} large {columns}"
                    found[key] = max(difference, found.get(key, 0.0))


def apart(got: Any, wanted: Any) -> float:
    """The largest difference; shapes must be the same."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"{got.shape} is not {wanted.shape}"
    return float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))


def probe_with_a_faulty_rank(group: Group, faulty: int) -> str:
    """What `probe` says on this rank while one rank sends something else."""
    true_primitives = collectives.primitives

    class Faulty:
        def all_gather(self, x: Tensor) -> Tensor:
            return true_primitives(group).all_gather(x * 0.0 - 1.0)

    if group.ranks[group.index] == faulty:
        collectives.primitives = lambda _: Faulty()
    try:
        probe([group])
    except UserError as error:
        return str(error)
    finally:
        collectives.primitives = true_primitives
    return ""


def main(out: Path) -> None:
    """Checks the world, the pairs of a mesh, and a group of three of the four ranks."""
    at = place()
    quiet_mindspore(1)
    if is_scheduler():
        serve("cpu")
        return
    ms.set_device("CPU")
    connect("cpu")
    ms.runtime.launch_blocking()  # as mindmoe.train.setup does: no thread spins
    groups = Groups(Mesh(dp=2, tp=2), at.rank, "cpu", [(0, 1, 3)])
    own = [groups["world"], groups["tp"], groups["dp"]]
    if at.rank != 2:
        own.append(groups.of((0, 1, 3), "three"))
    found: dict[str, float] = {}
    probe(own)
    for group in own:
        check_verbs(group, found)
        check_rows(group, found)
        check_large(group, found)
    said = probe_with_a_faulty_rank(groups["world"], 1)
    (out / f"rank-{at.rank}.json").write_text(json.dumps({"apart": found, "probe": said}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
