"""`mindmoe dryrun --compile`: a rank's graph as MindSpore compiles it, with its native collectives (dry).

MindSpore's simulation level 0 compiles without devices, in a process of its own. Its collectives are counted in the
compiled graph and compared with the derived ones.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

from mindmoe.config import RunConfig
from mindmoe.dryrun.program import StepProgram
from mindmoe.dryrun.stubs import environment
from mindmoe.errors import UserError
from mindmoe.load import dump_config
from mindmoe.parallel.mesh import Mesh
from mindmoe.position import spans

_KINDS = {
    "AllReduce": "all_reduce",
    "AllGather": "all_gather",
    "ReduceScatter": "reduce_scatter",
    "AlltoAll": "all_to_all",
    "Broadcast": "broadcast",
}
_CALL = re.compile(rf"= ({'|'.join(_KINDS)})\(")
_GROUP = re.compile(r'group: "([^"]*)"')
_TIMEOUT = 3600  # [s]

Counts = Counter[tuple[str, tuple[int, ...]]]
"""Calls by kind and ranks."""


def compile_check(console: Console, run: RunConfig, mesh: Mesh, rank: int) -> int:
    """Compiles a rank; returns 1 if the graph has other collectives than derived.

    Raises:
        UserError: the run does not compile by its nature, or something is missing here.
    """
    if run.train.mode != "graph" or run.parallel.recompute != "none":
        raise UserError(
            f"the compile check needs a compiled step: train.mode={run.train.mode}, "
            f"parallel.recompute={run.parallel.recompute}",
            "set train.mode=graph and parallel.recompute=none",
        )
    program = StepProgram(run, mesh, rank)
    passes = program.passes(program.pieces[0])
    derived: Counts = Counter((call.kind, call.ranks) for call in (*passes.forward, *passes.backward))
    with tempfile.TemporaryDirectory() as scratch:
        found = _compiled(run, mesh, rank, Path(scratch))
    for kind, ranks in sorted(derived.keys() | found.keys()):
        console.print(
            f"  {kind} over {len(ranks)} ranks {spans(ranks)}: {found[kind, ranks]} in the compiled graph, "
            f"{derived[kind, ranks]} derived",
            markup=False,
        )
    same = derived == found
    verdict = "has the derived collectives" if same else "does NOT have the derived collectives"
    console.print(f"the compiled graph of rank {rank} {verdict}; it was compiled only, nothing ran", markup=False)
    return 0 if same else 1


def _compiled(run: RunConfig, mesh: Mesh, rank: int, folder: Path) -> Counts:
    """Compiles in a process of its own; the collectives of its graph."""
    train = run.train.model_copy(update={"device": "ascend", "kernels": "reference"})
    config = folder / "config.yaml"
    config.write_text(dump_config(run.model_copy(update={"train": train})), encoding="utf-8")
    simulated = {"MS_SIMULATION_LEVEL": "0", "RANK_SIZE": str(mesh.world), "RANK_ID": str(rank)}
    joined = {"OMPI_COMMAND": "none", "PMIX_RANK": "0"}  # what MindSpore takes for a host that connects the ranks
    env = {**os.environ, **environment(folder), **simulated, **joined, "GLOG_v": "3"}
    package = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    graphs = folder / "graphs"
    command = [sys.executable, "-m", "mindmoe.dryrun.compiled", str(config), str(graphs)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        raise UserError(f"MindSpore did not compile rank {rank}:\n{done.stderr[-3000:]}", "see its message")
    listed = sorted(graphs.rglob("*validate*.ir"))
    if not listed:
        raise UserError("MindSpore compiled but left no graph", "see that the folder for temporary files is writable")
    return collectives_in(listed[0].read_text(encoding="utf-8"), mesh.world)


def collectives_in(graph: str, world: int) -> Counts:
    """The collectives of a graph as MindSpore prints it."""
    found: Counts = Counter()
    for line in graph.splitlines():
        call, group = _CALL.search(line), _GROUP.search(line)
        if call and group:
            own = group[1].removeprefix("mindmoe_").split("_") if group[1].startswith("mindmoe_") else range(world)
            found[_KINDS[call[1]], tuple(map(int, own))] += 1
    return found
