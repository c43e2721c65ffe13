"""The check of a node before it takes part: what it has, what is wrong with it, and how it differs from the others."""

import hashlib
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from mindmoe.config.run import RunConfig
from mindmoe.host.errors import UserError
from mindmoe.host.files import FileError, read_bytes, read_text, shown
from mindmoe.launch.command import HCCL_PORTS
from mindmoe.launch.hosts import is_host
from mindmoe.observe.environment import describe, memory, version
from mindmoe.train.folder import RunFolder
from mindmoe.train.preflight import check_data, machine_problems

MAX_SKEW = 5.0  # [s] between the clock of a node and that of the shared folder
_MEMORY_PER_RANK = 2 * 2**30  # [bytes] of the host that a rank takes for MindSpore alone
_ASCEND = Path("/usr/local/Ascend")
_RESERVED_PORTS = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCheck:
    """What a node found out about itself.

    Attributes:
        facts: what must be equal on all nodes of a run.
        problems: why it cannot take part, each with a remedy.
        notes: what may be wrong with it.
        device_addresses: of its devices, in order, where they are configured.
    """

    facts: dict[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    device_addresses: tuple[str, ...] = ()


def check_node(config: RunConfig, cards: int, cards_per_node: int, address: str) -> NodeCheck:
    """Checks this node for a run whose folder it shares.

    Args:
        config: the resolved run.
        cards: ranks of the run.
        cards_per_node: ranks that it is to take.
        address: that the other nodes are told to reach it at.
    """
    folder = RunFolder.of(config)
    machine = describe()
    facts = {
        "Python": machine["python"],
        "mindmoe": f"{machine['mindmoe']} ({machine['git_commit'] or 'no checkout'})",
        "mindspore": version("mindspore") or "missing",
        "numpy": version("numpy") or "missing",
        "config": hashlib.sha256(read_bytes(folder.config)).hexdigest()[:12],
    }
    problems, notes = [], []
    if facts["mindspore"] == "missing":
        problems.append("mindspore is not installed: install the environment of the other nodes")
    problems += _shared_folder(folder.path) + machine_problems(config, cards_per_node) + _data(config)
    if (free := memory("MemAvailable")) is not None and free < cards_per_node * _MEMORY_PER_RANK:
        problems.append(
            f"{free / 2**30:.1f} GiB of memory are free, {cards_per_node} ranks need "
            f"{cards_per_node * _MEMORY_PER_RANK / 2**30:.0f} GiB to start: end other processes"
        )
    problems += _address(address, config.launch.interface)
    devices: tuple[str, ...] = ()
    if config.train.device == "ascend":
        facts["driver"] = _version_in(_ASCEND / "driver" / "version.info")
        facts["CANN"] = _version_in(_ASCEND / "ascend-toolkit" / "latest" / "version.cfg")
        devices = device_addresses(Path("/etc/hccn.conf"))
        notes += _reserved_ports(_RESERVED_PORTS)
        if shutil.which("npu-smi") is None:
            notes.append("npu-smi is not on the path: the health of the devices was not looked at")
    return NodeCheck(facts=facts, problems=tuple(problems), notes=tuple(notes), device_addresses=devices)


def differences(facts: Mapping[int, Mapping[str, str]]) -> dict[int, list[str]]:
    """What each node has unlike most of them.

    Args:
        facts: by node, as `check_node` gives them.
    """
    odd: dict[int, list[str]] = {}
    for key in sorted({key for found in facts.values() for key in found}):
        values = {node: found.get(key, "missing") for node, found in facts.items()}
        # Among equally frequent values the one of the lowest node counts, which is that of node 0 in a tie of two.
        usual = max(Counter(values[node] for node in sorted(values)).items(), key=lambda item: item[1])[0]
        for node, value in values.items():
            if value != usual:
                odd.setdefault(node, []).append(f"{key} {value}, not {usual}")
    return odd


def device_addresses(path: Path) -> tuple[str, ...]:
    """The addresses of the devices of this node, as the driver's network settings name them: `address_0=...`."""
    try:
        lines = read_text(path).splitlines()
    except FileError:
        return ()
    entries = (re.fullmatch(r"address_([0-9]{1,4})=(\S+)", line.strip()) for line in lines)
    found = {int(entry[1]): entry[2] for entry in entries if entry and is_host(entry[2])}
    return tuple(found[index] for index in sorted(found))


def _shared_folder(folder: Path) -> list[str]:
    """Whether this node can write the run folder, and how far its clock is from that of the folder's server."""
    probe = folder / "launch" / f".probe-{socket.gethostname()}-{time.monotonic_ns()}"
    try:
        before = time.time()
        probe.write_bytes(b"x")
        served = probe.stat().st_mtime
        after = time.time()
        probe.unlink()
    except OSError as error:
        return [f"the run folder {folder} cannot be written: {error.strerror}: mount it on every node"]
    skew = max(before - served, served - after, 0.0)
    if skew > MAX_SKEW:
        return [f"the clock is {skew:.0f} s off that of the shared folder: synchronise the nodes (chrony, NTP)"]
    return []


def _data(config: RunConfig) -> list[str]:
    """Whether this node finds the data, and a run in the folder that may be continued."""
    try:
        check_data(config)
    except UserError as error:
        return [str(error)]
    return []


def _address(address: str, interface: str | None) -> list[str]:
    """Whether the address that others connect to is one of this node."""
    interfaces = psutil.net_if_addrs()
    states = psutil.net_if_stats()
    if interface is not None and interface not in interfaces:
        return [f"launch.interface={interface} is not here; there are {', '.join(sorted(interfaces))}"]
    if interface is not None and not states[interface].isup:
        return [f"launch.interface={interface} is down: bring it up"]
    try:
        resolved = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        return [f"{address} cannot be resolved: {error.strerror}: give its address in the hosts file"]
    own = {entry.address.partition("%")[0] for entries in interfaces.values() for entry in entries}
    loopback = {entry for entry in resolved if entry.startswith("127.")}
    if not resolved & own and not loopback:
        return [f"{address} is no address of this node: correct the hosts file, or start the script of its own line"]
    return []


def _version_in(path: Path) -> str:
    """The version that a file of an Ascend package names."""
    try:
        text = read_bytes(path).decode("utf-8", errors="replace")
    except FileError:
        return "missing"
    match = re.search(r"[Vv]ersion[^=\n]*=\s*\[?([^\]\n]+)", text)
    return shown(match[1].strip()) if match else "unknown"


def _reserved_ports(path: Path) -> list[str]:
    """A note if the system may give HCCL's ports to other programs."""
    wanted = set(range(HCCL_PORTS[0], HCCL_PORTS[1] + 1))
    try:
        for part in filter(None, read_text(path).strip().split(",")):
            low, _, high = part.partition("-")
            wanted -= {port for port in wanted if int(low) <= port <= int(high or low)}
    except ValueError:  # also where the file cannot be read
        return []
    if not wanted:
        return []
    first, last = HCCL_PORTS
    span = f"{first}-{last}"
    return [f"host ports {span} are not reserved for HCCL: sysctl -w net.ipv4.ip_local_reserved_ports={span}"]
