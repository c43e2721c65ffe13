"""The nodes of a launch, as `mindmoe launch` writes them for the nodes to read."""

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mindmoe.errors import UserError
from mindmoe.launch.hosts import Host

_FILE = "cluster.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """How many cards on how many nodes.

    Attributes:
        cards: ranks of the run.
        cards_per_node: ranks of a node.
        num_nodes: nodes of the launch; those above `needed` are spares.
        hosts: their names; empty where a scheduler chooses them.
    """

    cards: int
    cards_per_node: int
    num_nodes: int
    hosts: tuple[Host, ...] = ()

    @property
    def needed(self) -> int:
        """Nodes that take part at a time."""
        return self.cards // self.cards_per_node

    @classmethod
    def build(cls, cards: int, cards_per_node: int, hosts: list[Host] | None = None) -> "Cluster":
        """The nodes for a number of cards.

        Raises:
            UserError: the cards do not divide, or there are too few hosts.
        """
        if cards % cards_per_node:
            raise UserError(
                f"cards={cards} must be a multiple of the {cards_per_node} cards of a node",
                f"use {max(1, cards // cards_per_node) * cards_per_node} cards, or give --cards-per-node",
            )
        needed = cards // cards_per_node
        if hosts is not None and len(hosts) < needed:
            raise UserError(
                f"{cards} cards on nodes of {cards_per_node} need {needed} hosts, the hosts file names {len(hosts)}",
                "add hosts; those above the need are spares",
            )
        return cls(
            cards=cards,
            cards_per_node=cards_per_node,
            num_nodes=needed if hosts is None else len(hosts),
            hosts=tuple(hosts or ()),
        )

    def write(self, folder: Path) -> None:
        """Leaves it for the nodes."""
        (folder / _FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Cluster":
        """What `write` left.

        Raises:
            UserError: the folder is none of a launch.
        """
        try:
            content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            hosts = tuple(Host(**host) for host in content.pop("hosts"))
            return cls(hosts=hosts, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{folder} is no folder of a launch: {_FILE} cannot be read ({error})",
                "give the folder that `mindmoe launch CONFIG --nodes` has printed, on a shared file system",
            ) from None

    def address_of(self, index: int, interface: str | None) -> str:
        """Where the other nodes reach node `index`, which is this one."""
        if interface is not None:
            for entry in psutil.net_if_addrs().get(interface, []):
                if entry.family == socket.AF_INET:
                    return entry.address
        return self.hosts[index].address if self.hosts else socket.gethostname()

    def check_index(self, index: int) -> None:
        """Refuses a node that is not of this launch.

        Raises:
            UserError: there is no such node.
        """
        if not 0 <= index < self.num_nodes:
            raise UserError(f"there is no node {index} of {self.num_nodes}", f"nodes are 0 to {self.num_nodes - 1}")
