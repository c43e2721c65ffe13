"""What the nodes of a launch tell each other, through small files in the run folder that they share.

Every node writes `nodes/N.json`; node 0, which leads, also writes `orders.json`. Each file has one writer and is
replaced as a whole. No node reads another's clock: a node lives while the `beat` in its file goes on changing. What
stands in a file is believed only where every value is of its type; otherwise the file says nothing.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file
from mindmoe.launch.hosts import is_host
from mindmoe.launch.local import Failure

Action = Literal["gather", "run", "stop", "finish"]
NodeState = Literal["ready", "unfit", "running", "failing", "stopped", "done"]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Port = Annotated[int, Field(ge=0, le=65535)]
Form = TypeVar("Form")
_LIMIT = 1 << 22  # [bytes] of a file: a status carries the last lines and stacks of a rank


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
    attempt: Count = 0
    nodes: tuple[Count, ...] = ()
    master: tuple[str, Port] = ("", 0)
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

    index: Count
    session: str
    beat: Count
    name: str
    address: str
    port: Port
    state: NodeState
    attempt: Count = 0
    problems: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    device_addresses: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The folder of the files."""

    path: Path

    def create(self) -> None:
        """Makes the folder.

        Raises:
            UserError: it cannot be made, or something else lies in its place.
        """
        nodes = self.path / "nodes"
        try:
            nodes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {nodes}: {error.strerror}", "remove what lies there") from None
        if nodes.is_symlink():
            raise UserError(f"{nodes} is a link, and what a launch writes follows none", "remove it")

    def write_orders(self, orders: Orders) -> None:
        """Gives orders; node 0 alone does."""
        replace_file(self.path / "orders.json", json.dumps(asdict(orders)))

    def read_orders(self) -> Orders | None:
        """The orders, None before there are any."""
        orders = _read(Orders, self.path / "orders.json")
        return orders if orders is not None and (not orders.master[0] or is_host(orders.master[0])) else None

    def write_status(self, status: NodeStatus) -> None:
        """Says where a node is."""
        replace_file(self.path / "nodes" / f"{status.index}.json", json.dumps(asdict(status)))

    def read_status(self, index: int) -> NodeStatus | None:
        """What a node said last, None if it has said nothing."""
        status = _read(NodeStatus, self.path / "nodes" / f"{index}.json")
        return status if status is not None and status.index == index and is_host(status.address) else None


def _read(form: type[Form], path: Path) -> Form | None:
    try:
        return strict_json.checked(form, strict_json.read(path, _LIMIT, follow=False), str(path))
    except UserError:  # a shared file system may also show a file before its content
        return None
