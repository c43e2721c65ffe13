"""`mindmoe launch` for more than one machine: writes what the nodes run, and says how to start it."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2

from mindmoe.config import RunConfig
from mindmoe.errors import UserError
from mindmoe.launch.cluster import Cluster
from mindmoe.launch.command import hccl_buffer, msrun_command, variables
from mindmoe.launch.hosts import read_hosts
from mindmoe.observe.environment import SOURCE_TREE
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.folder import RunFolder

Scheduler = Literal["hosts", "slurm", "k8s"]
_NOTICE = 300  # [s] for the ranks to finish their step and save before a scheduler takes the nodes away


def prepare(
    config: RunConfig, cards: int, cards_per_node: int, scheduler: Scheduler, hosts_file: Path | None = None
) -> int:
    """Writes the scripts of a launch into `launch/` of the run folder and prints what to do with them.

    Args:
        config: the run, resolved on its cards.
        cards: ranks of the run.
        cards_per_node: ranks of each node.
        scheduler: what starts the nodes.
        hosts_file: names of the nodes, for `hosts`.

    Raises:
        UserError: the cards do not fit the nodes, or a setting that the scheduler needs is missing.
    """
    hosts = read_hosts(hosts_file) if hosts_file is not None else None
    cluster = Cluster.build(cards, cards_per_node, hosts)
    mesh = Mesh.build(config.parallel, cards)
    if scheduler == "k8s" and config.launch.kubernetes is None:
        raise UserError("launch.kubernetes is not set", "set launch.kubernetes.image, .claim and .mount")
    folder = RunFolder.of(config)
    folder.check_continues(config)
    folder.create(config)
    launch_folder = folder.path / "launch"
    launch_folder.mkdir(exist_ok=True)
    cluster.write(launch_folder)
    content = _content(config, cluster, launch_folder)
    script = _write(launch_folder / "node.sh", _render("node.sh", content))
    (launch_folder / "msrun_lines.txt").write_text(_lines(config, cluster), encoding="utf-8")
    print(f"{config.name}: {cards} cards on {cluster.needed} nodes of {cards_per_node}" + _spares(cluster))
    print(f"wrote {script}, and the msrun line of every node into {launch_folder / 'msrun_lines.txt'}")
    if config.train.device == "ascend":
        print(_buffers(config, mesh))
    match scheduler:
        case "hosts":
            start = _write(launch_folder / "start.sh", _render("start.sh", content))
            print(f"start it with: bash {shlex.quote(str(start))}")
        case "slurm":
            job = _write(launch_folder / "job.slurm", _render("job.slurm", content))
            print(f"start it with: sbatch {shlex.quote(str(job))}")
        case "k8s":
            manifest = launch_folder / "volcano.yaml"
            manifest.write_text(_render("volcano.yaml", content), encoding="utf-8")
            print(f"start it with: kubectl create -f {shlex.quote(str(manifest))}")
    return 0


def _content(config: RunConfig, cluster: Cluster, launch_folder: Path) -> dict[str, Any]:
    """What the templates are filled with; every path and word is quoted for the shell."""
    command = msrun_command(
        config,
        cards=cluster.cards,
        cards_per_node=cluster.cards_per_node,
        master=(cluster.hosts[0].address if cluster.hosts else "${MASTER_ADDR:?the address of node 0}", _port(config)),
        node_rank=0,
    )
    slurm, kubernetes = config.launch.slurm, config.launch.kubernetes
    options = {"partition": slurm.partition, "account": slurm.account, "time": slurm.time, "gres": slurm.gres}
    return {
        "name": config.name,
        "dns_name": re.sub(r"[^a-z0-9-]+", "-", config.name.lower()).strip("-")[:50],
        "cards": cluster.cards,
        "cards_per_node": cluster.cards_per_node,
        "needed": cluster.needed,
        "ascend": config.train.device == "ascend",
        "variables": [
            {"name": found.name, "value": shlex.quote(found.value), "reason": found.reason}
            for found in variables(config, cluster.cards, cluster.cards_per_node)
        ],
        "working_folder": shlex.quote(str(Path.cwd())),
        "python_folder": shlex.quote(str(Path(sys.executable).parent)),
        "python_path": _python_path(),
        "launch_folder": shlex.quote(str(launch_folder.resolve())),
        "script": shlex.quote(str((launch_folder / "node.sh").resolve())),
        "logs": shlex.quote(str(RunFolder.of(config).logs.resolve())),
        "msrun": " ".join(_shell_word(word) for word in command),
        "hosts": [shlex.quote(host.name) for host in cluster.hosts],
        "options": [f"--{key}={value}" for key, value in options.items() if value] + list(slurm.options),
        "notice": _NOTICE,
        "restarts": max(1, config.launch.restarts),
        "kubernetes": kubernetes,
        "host_network": "true" if config.train.device == "ascend" else "false",
    }


def _shell_word(word: str) -> str:
    """A word of the msrun line, in which the node and, without hosts, the master are only known on the node."""
    if word.startswith("--node_rank="):
        return '--node_rank="$index"'
    if word.startswith("--master_addr=$"):
        return f'--master_addr="{word.partition("=")[2]}"'
    return shlex.quote(word)


def _port(config: RunConfig) -> int:
    """The port of the bare msrun line; supervised nodes take a free one at each start."""
    return config.launch.port or 8118


def _python_path() -> str:
    """The folder of the package when it is a source tree, which need not be installed; else nothing."""
    return shlex.quote(str(SOURCE_TREE)) if (SOURCE_TREE / "pyproject.toml").exists() else ""


def _lines(config: RunConfig, cluster: Cluster) -> str:
    """The msrun line of every node that takes part, ready to be copied."""
    master = cluster.hosts[0].address if cluster.hosts else "MASTER_ADDR"
    lines = []
    for rank in range(cluster.needed):
        name = cluster.hosts[rank].name if cluster.hosts else f"node {rank}"
        command = msrun_command(
            config,
            cards=cluster.cards,
            cards_per_node=cluster.cards_per_node,
            master=(master, _port(config)),
            node_rank=rank,
        )
        lines.append(f"# {name}: ranks {rank * cluster.cards_per_node} to {(rank + 1) * cluster.cards_per_node - 1}")
        lines.append(shlex.join(command))
    return "\n".join(lines) + "\n"


def _buffers(config: RunConfig, mesh: Mesh) -> str:
    """What HCCL takes of each card's memory for its communicators."""
    axes: tuple[Any, ...] = ("world", "tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")
    groups = {mesh.group(axis, 0) for axis in axes if len(mesh.group(axis, 0)) > 1}
    size = hccl_buffer(config)
    return (
        f"HCCL buffers: {len(groups)} communicators x 2 x {size} MiB = "
        f"{len(groups) * 2 * size / 1024:.2f} GiB of each card's memory"
    )


def _spares(cluster: Cluster) -> str:
    spare = cluster.num_nodes - cluster.needed
    return f", {spare} to spare" if spare else ""


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def _render(name: str, content: Mapping[str, Any]) -> str:
    """A template of this package, filled in; an unknown name in it is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are scripts; what is filled in is quoted for the shell
    )
    return environment.get_template(name).render(content)
