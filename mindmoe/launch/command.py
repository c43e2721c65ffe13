"""The msrun line of a node, the environment of its ranks, and the reasons for both."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindmoe.config.run import RunConfig
from mindmoe.train.folder import RunFolder

WORKER = Path(__file__).with_name("worker.py")
HCCL_PORTS = (60000, 60015)
_BYTES_BF16 = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """A variable of the environment of the ranks and why it has its value."""

    name: str
    value: str
    reason: str


def msrun_command(
    config: RunConfig,
    *,
    cards: int,
    cards_per_node: int,
    master: tuple[str, int],
    node_rank: int,
    rank_table: Path | None = None,
) -> list[str]:
    """The command that starts the ranks of one node, and on the master the scheduler that they meet at.

    Args:
        config: the resolved run.
        cards: ranks of the whole run.
        cards_per_node: ranks of this node.
        master: address and port of the scheduler.
        node_rank: place of the node in the order of the ranks.
        rank_table: file with the addresses of the devices, for sites that need one.
    """
    folder = RunFolder.of(config)
    binds = config.train.device == "ascend"  # on a CPU the ranks share the cores by their thread counts
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        f"--worker_num={cards}",
        f"--local_worker_num={cards_per_node}",
        f"--master_addr={master[0]}",
        f"--master_port={master[1]}",
        *([f"--node_rank={node_rank}"] if cards_per_node < cards else []),
        f"--log_dir={folder.logs}",
        "--join=True",
        f"--cluster_time_out={int(config.launch.cluster_timeout)}",
        "--tail_worker_log=-1",
        *(["--bind_core=True"] if binds else []),
        *([f"--rank_table_file={rank_table}"] if rank_table else []),
        str(WORKER),
        str(folder.logs),
        str(folder.config),
        config.train.device,
    ]


def variables(config: RunConfig, cards: int, cards_per_node: int) -> list[Variable]:
    """The environment of the ranks, beyond what a shell has."""
    found = [
        Variable(name="MINDMOE_LOCAL_WORLD", value=str(cards_per_node), reason="ranks that share the cores of a node"),
        Variable(name="GLOG_v", value="3", reason="MindSpore logs errors only; 1 shows what it does"),
    ]
    return found + (_ascend_variables(config, cards) if config.train.device == "ascend" else [])


def _ascend_variables(config: RunConfig, cards: int) -> list[Variable]:
    """What CANN and HCCL are told; ranges and defaults are those of their documentation."""
    launch, train, model = config.launch, config.train, config.model
    connect = min(7200, max(600, 3 * cards))
    execute = min(17340 // 68, math.ceil(max(2 * connect, 2 * launch.hang_timeout) / 68)) * 68
    found = [
        Variable(
            name="HCCL_CONNECT_TIMEOUT",
            value=str(connect),
            reason=f"[s] to build the links; the default of 120 is short where {cards} ranks start at unequal speed",
        ),
        Variable(
            name="HCCL_EXEC_TIMEOUT",
            value=str(execute),
            reason="[s] a collective waits for a late rank: more than the links take to build, and more than "
            "launch.hang_timeout, so that the launcher names the late rank before HCCL ends all of them",
        ),
        Variable(
            name="HCCL_BUFFSIZE",
            value=str(hccl_buffer(config)),
            reason="[MiB] of each buffer, two for every communicator: a micro-batch of "
            f"{train.micro_batch_size} x {train.seq_length} tokens x {model.hidden_size} in bf16, "
            "times the experts of a token",
        ),
        Variable(
            name="HCCL_IF_BASE_PORT",
            value=str(HCCL_PORTS[0]),
            reason=f"host ports {HCCL_PORTS[0]} to {HCCL_PORTS[1]}: reserve them in net.ipv4.ip_local_reserved_ports",
        ),
        Variable(
            name="ASCEND_PROCESS_LOG_PATH",
            value=str(RunFolder.of(config).logs / "ascend"),
            reason="logs of the driver and of HCCL beside those of the ranks, not in the home folder",
        ),
        Variable(name="ASCEND_GLOBAL_LOG_LEVEL", value="3", reason="CANN logs errors only"),
    ]
    if launch.interface:
        found.append(
            Variable(name="HCCL_SOCKET_IFNAME", value=launch.interface, reason="launch.interface: where HCCL meets")
        )
    return found


def hccl_buffer(config: RunConfig) -> int:
    """The largest message of a layer [MiB]: the tokens of a micro-batch, as often as each goes to an expert."""
    copies = config.moe.router.mean_slots(config.moe) if config.moe else 1
    size = config.train.micro_batch_size * config.train.seq_length * config.model.hidden_size * _BYTES_BF16 * copies
    return max(1, math.ceil(size / 2**20))


def rank_table(servers: Sequence[tuple[str, Sequence[str]]]) -> str:
    """HCCL's rank table, version 1.0, as JSON.

    Args:
        servers: by node, its address and the addresses of its devices in order.
    """
    rank = 0
    listed = []
    for address, devices in servers:
        entries = []
        for device, device_address in enumerate(devices):
            entries.append({"device_id": str(device), "device_ip": device_address, "rank_id": str(rank)})
            rank += 1
        listed.append({"server_id": address, "device": entries, "host_nic_ip": "reserve"})
    table = {"version": "1.0", "server_count": str(len(servers)), "server_list": listed, "status": "completed"}
    return json.dumps(table, indent=2) + "\n"


def exports(found: Sequence[Variable]) -> Mapping[str, str]:
    """The variables as an environment."""
    return {variable.name: variable.value for variable in found}
