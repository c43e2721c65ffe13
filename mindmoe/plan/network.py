"""Time of a collective from its bytes, its group and the network. All groups are runs of ranks with a fixed stride.

The model is latency plus volume over bandwidth. It reproduces the all-to-all and all-gather table that MindSpeed
ships for Ascend A2 nodes (see the tests).
"""

from dataclasses import dataclass
from math import log2

from mindmoe.plan.hardware import Hardware


@dataclass(frozen=True, slots=True)
class RankSpan:
    """`size` ranks, `stride` apart."""

    size: int
    stride: int

    def per_node(self, hardware: Hardware) -> int:
        """Members on one node."""
        return max(1, min(self.size, hardware.cards_per_node // self.stride))


def _latency(hardware: Hardware, nodes: float) -> float:
    link = hardware.link
    return 1e-6 * (link.launch_us + (link.hop_us * log2(nodes) if nodes > 1 else 0.0))


def _node_bandwidth(hardware: Hardware, members: int) -> float:
    """What one card sends to `members - 1` others on its node [bytes/s]."""
    links = members - 1 if hardware.link.topology == "mesh" else 1
    return hardware.link.link_gb_s * 1e9 * max(1, links)


def all_gather(hardware: Hardware, group: RankSpan, total: float) -> float:
    """Time [s] to gather `total` bytes (the whole result) on every rank; a reduce-scatter takes the same.

    The exchange between nodes, each card on its own port, runs along with the spreading inside them.
    """
    if group.size == 1:
        return 0.0
    members = group.per_node(hardware)
    nodes = group.size / members
    inside = total * (members - 1) / members / _node_bandwidth(hardware, members)
    between = total * (nodes - 1) / nodes / (members * hardware.link.nic_gb_s * 1e9)
    return _latency(hardware, nodes) + max(inside, between)


def all_to_all(hardware: Hardware, group: RankSpan, sent: float) -> float:
    """Time [s] of an all-to-all in which each rank sends `sent` bytes evenly to all ranks, itself included."""
    if group.size == 1:
        return 0.0
    members = group.per_node(hardware)
    bandwidth = _node_bandwidth(hardware, members) * hardware.link.all_to_all
    inside = sent * (members - 1) / group.size / bandwidth
    between = sent * (group.size - members) / group.size / (hardware.link.nic_gb_s * 1e9)
    return _latency(hardware, group.size / members) + inside + between


def two_hop(hardware: Hardware, group: RankSpan, rows: float, width: float, top_k: int, node_share: float) -> float:
    """Time [s] of a dispatch that sends a token once to each node that wants it, and there once to each rank.

    The two hops run at the same time, on different links.

    Args:
        rows: tokens on this rank.
        width: bytes of a token.
        top_k: experts of a token, drawn evenly.
        node_share: largest share of the nodes a token may go to; below 1 under group-limited routing.
    """
    if group.size == 1:
        return 0.0
    members = group.per_node(hardware)
    nodes = group.size // members
    wanted = min(nodes * (1.0 - (1.0 - 1.0 / nodes) ** top_k), max(1.0, nodes * node_share))
    between = rows * width * wanted * (nodes - 1) / nodes / (hardware.link.nic_gb_s * 1e9)
    bandwidth = _node_bandwidth(hardware, members) * hardware.link.all_to_all
    ranks = group.size * (1.0 - (1.0 - 1.0 / group.size) ** top_k)
    inside = rows * width * ranks * (members - 1) / members / bandwidth
    return (2 if nodes > 1 else 1) * _latency(hardware, nodes) + max(inside, between)


def send(hardware: Hardware, stride: int, size: float) -> float:
    """Time [s] to send `size` bytes to the rank `stride` further."""
    outside = stride >= hardware.cards_per_node
    bandwidth = hardware.link.nic_gb_s if outside else hardware.link.link_gb_s
    return _latency(hardware, 2 if outside else 1) + size / (bandwidth * 1e9)
