"""What the nodes of a launch tell each other, through small files in the run folder that they share.

Every node writes `nodes/N.json`; node 0, which leads, also writes `orders.json`. Each file has one writer and is
replaced as a whole. No node reads another's clock: a node lives while the `beat` in its file goes on changing.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mindmoe.launch.local import Failure

Action = Literal["gather", "run", "stop", "finish"]
NodeState = Literal["ready", "unfit", "running", "failing", "stopped", "done"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """What every node is to do.

    Attributes:
        session: changes when node 0 starts anew, which makes older orders void.
        action: `gather` says ready, `run` starts an attempt, `stop` ends it, `finish` leaves.
        attempt: counts the starts of the ranks.
        nodes: the nodes of the attempt, in the order of their ranks.
        master: where the ranks meet.
        code: exit code to finish with.
        message: why.
    """

    session: str
    action: Action = "gather"
    attempt: int = 0
    nodes: tuple[int, ...] = ()
    master: tuple[str, int] = ("", 0)
    code: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeStatus:
    """What a node says of itself.

    Attributes:
        index: which node of the launch.
        session: whose orders it follows.
        beat: grows while the node lives.
        name: of the host.
        address: that the others connect to.
        port: a free one, for the scheduler.
        state: where it is in its attempt; `unfit` says why in `problems`.
        attempt: the attempt that the state belongs to.
        problems: what its own check found.
        facts: versions and figures that must agree between nodes.
        device_addresses: of its devices, where they are known.
        failure: why its ranks ended.
    """

    index: int
    session: str
    beat: int
    name: str
    address: str
    port: int
    state: NodeState
    attempt: int = 0
    problems: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    device_addresses: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The folder of the files."""

    path: Path

    def create(self) -> None:
        """Makes the folder."""
        (self.path / "nodes").mkdir(parents=True, exist_ok=True)

    def write_orders(self, orders: Orders) -> None:
        """Gives orders; node 0 alone does."""
        _replace(self.path / "orders.json", asdict(orders))

    def read_orders(self) -> Orders | None:
        """The orders, None before there are any."""
        content = _read(self.path / "orders.json")
        if content is None:
            return None
        return Orders(**{**content, "nodes": tuple(content["nodes"]), "master": tuple(content["master"])})

    def write_status(self, status: NodeStatus) -> None:
        """Says where a node is."""
        _replace(self.path / "nodes" / f"{status.index}.json", asdict(status))

    def read_status(self, index: int) -> NodeStatus | None:
        """What a node said last, None if it has said nothing."""
        content = _read(self.path / "nodes" / f"{index}.json")
        if content is None:
            return None
        lists = {key: tuple(content[key]) for key in ("problems", "device_addresses")}
        failure = Failure(**content["failure"]) if content["failure"] else None
        return NodeStatus(**{**content, **lists, "failure": failure})


def _replace(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content), encoding="utf-8")
    os.replace(aside, path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a shared file system may show a file before its content
        return None
