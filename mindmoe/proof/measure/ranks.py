"""Times collectives as one of several ranks that share this machine: `ranks.py FOLDER`, under msrun.

Rank 0 writes `verbs-N.json`: rows of (verb, ranks, size of the group, bytes passed in, seconds by the clock).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mindmoe.host.env import is_scheduler, place, quiet_mindspore, usable_cores

_SIZES = (1 << 12, 1 << 19, 1 << 22)  # bytes of a tensor
_REPEATS = 8


def main(folder: Path) -> int:
    """Times every verb in the world and, with four ranks, in its halves."""
    here = place()
    quiet_mindspore(max(1, usable_cores() // here.local_world))
    import mindspore as ms

    from mindmoe.parallel.groups import Groups, connect, serve, set_device
    from mindmoe.parallel.mesh import Mesh

    if is_scheduler():
        serve("cpu")
        return 0
    set_device("cpu")
    ms.runtime.launch_blocking()
    connect("cpu")
    pairs = Mesh(dp=here.world // 2, tp=2)
    groups = Groups(pairs, here.rank, "cpu")
    rows = _timed(groups["world"], here.world)
    if here.world > 2:
        rows += _timed(groups["tp"], here.world)
    if here.rank == 0:
        (folder / f"verbs-{here.world}.json").write_text(json.dumps(rows))
    return 0


def _timed(group: Any, world: int) -> list[tuple[str, int, int, int, float]]:
    """Rows of one group."""
    import mindspore as ms
    from mindspore import ops

    from mindmoe.parallel.collectives import primitives

    on, rows = primitives(group), []
    for num_bytes in _SIZES:
        x = ops.ones((group.size, num_bytes // (4 * group.size)), ms.float32)
        verbs: dict[str, Callable[[], Any]] = {
            verb: partial(getattr(on, verb), x) for verb in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        }
        if group.size == 2:
            verbs["message"] = partial(_ping, on, group, x)
        for verb, run in verbs.items():
            seconds = _typical(run) / (2 if verb == "message" else 1)
            rows.append((verb, world, group.size, num_bytes, seconds))
    return rows


def _ping(on: Any, group: Any, x: Any) -> Any:
    """A message there and one back."""
    peer = 1 - group.index
    if group.index == 0:
        on.send(x, peer)
        return on.receive(x.shape, x.dtype, peer)
    back = on.receive(x.shape, x.dtype, peer)
    on.send(x, peer)
    return back


def _typical(run: Callable[[], Any]) -> float:
    """The median of some times [s]; all ranks make as many calls."""
    run().asnumpy()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run().asnumpy()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
