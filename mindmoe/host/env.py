"""The environment variables that decide how a run is placed: read here, and set here for the workers of a launch."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among the processes of a run. One process alone is rank 0 of 1."""

    rank: int
    world: int
    local_world: int


def place() -> Place:
    """What msrun exported for this worker, or the place of a process that was started alone."""
    if os.environ.get("MS_ROLE") != "MS_WORKER":
        return Place(rank=0, world=1, local_world=1)
    world = int(os.environ["MS_WORKER_NUM"])
    rank = int(os.environ.get("RANK_ID", os.environ.get("MS_NODE_ID", "0")))
    return Place(rank=rank, world=world, local_world=int(os.environ.get("MINDMOE_LOCAL_WORLD", world)))


def is_scheduler() -> bool:
    """Whether msrun started this process as the scheduler of the cluster rather than as a rank."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_rank(requested: int, local_world: int) -> int:
    """Threads of one rank: as requested, or an even share of the cores."""
    return requested or max(1, usable_cores() // local_world)


def user_cache() -> Path:
    """Where files that can be made again are kept: `$XDG_CACHE_HOME/mindmoe`, by default `~/.cache/mindmoe`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mindmoe"


def quiet_mindspore(threads: int) -> None:
    """Sets log level and thread counts; must run before MindSpore is imported. What the user set is kept."""
    os.environ.setdefault("GLOG_v", "3")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


LAUNCH_MARK = "MINDMOE_LAUNCH"
"""Variable that marks every process of one launch, so that exactly those can be found and ended."""
LAUNCHER = "MINDMOE_LAUNCHER"
"""Variable that names the launcher to its processes, as `PID:BIRTH`, so that they notice when it has gone."""
LAUNCH_FOLDER = "MINDMOE_RUN_FOLDER"
"""Variable that names the run folder that a launch works in."""


def launch_mark() -> str:
    """The mark of the launch that this process is a rank of; empty in a process that a user has started."""
    return os.environ.get(LAUNCH_MARK, "") if os.environ.get("MS_ROLE") == "MS_WORKER" else ""


def launcher() -> str:
    """The launcher of this rank, as `PID:BIRTH`; empty if it has none."""
    return os.environ.get(LAUNCHER, "")


def worker_environment(threads: int, local_world: int, python_folder: str) -> dict[str, str]:
    """Environment of msrun: workers share the cores, and `python` on PATH is the interpreter that runs us."""
    env = dict(os.environ)
    env["PATH"] = python_folder + os.pathsep + env.get("PATH", "")
    env["MINDMOE_LOCAL_WORLD"] = str(local_world)
    env.setdefault("GLOG_v", "3")
    env.setdefault("OMP_NUM_THREADS", str(threads))
    for name in ("MS_SIMULATION_LEVEL", "RANK_ID", "RANK_SIZE", "MS_ROLE", "MS_WORKER_NUM", "MS_NODE_ID"):
        env.pop(name, None)
    return env


def solver_environment() -> dict[str, str]:
    """Environment of the tuner's side process: one thread, and this package importable by any interpreter."""
    env = dict(os.environ)
    env["OMP_NUM_THREADS"] = "1"  # more make a small simulator slower on a busy host
    package_parent = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_parent), env.get("PYTHONPATH")]))
    return env


def run_environment(threads: int) -> dict[str, str]:
    """Environment of a training process that shares the machine with others."""
    return {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
