"""The nodes of a launch, as `mindmoe launch` writes them for the nodes to read."""

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from mindmoe.host import strict_json
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file
from mindmoe.launch.hosts import Host, is_host

Number = Annotated[int, Field(ge=1, lt=2**20)]
_FILE = "cluster.json"
_LIMIT = 1 << 26  # [bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """How many cards on how many nodes.

    Attributes:
        cards: ranks of the run.
        cards_per_node: ranks of a node.
        num_nodes: nodes of the launch; those above `needed` are spares.
        hosts: their names; empty where a scheduler chooses them.
    """

    cards: Number
    cards_per_node: Number
    num_nodes: Number
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
        replace_file(folder / _FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Cluster":
        """What `write` left.

        Raises:
            UserError: the folder is none of a launch.
        """
        path = folder / _FILE
        try:
            cluster = strict_json.checked(cls, strict_json.read(path, _LIMIT, follow=False), str(path))
            if cluster.hosts and (len(cluster.hosts) != cluster.num_nodes or cluster.num_nodes < cluster.needed):
                raise UserError(f"{path}: {len(cluster.hosts)} hosts are named for {cluster.num_nodes} nodes")
            if bad := [host for host in cluster.hosts if not is_host(host.name) or not is_host(host.address)]:
                raise UserError(f"{path}: {bad[0]} is neither a host name nor an IP address")
            if cluster.cards % cluster.cards_per_node:
                raise UserError(f"{path}: {cluster.cards} cards do not fill nodes of {cluster.cards_per_node}")
        except UserError as error:
            raise UserError(
                f"{folder} is no folder of a launch: {error.message}",
                "give the folder that `mindmoe launch CONFIG --nodes` has printed, on a shared file system",
            ) from None
        return cluster

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
