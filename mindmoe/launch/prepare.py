"""`mindmoe launch` for more than one machine: writes what the nodes run, and says how to start it."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2

from mindmoe.config.run import RunConfig
from mindmoe.config.strict_yaml import dump
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file, shown
from mindmoe.launch.cluster import Cluster
from mindmoe.launch.command import hccl_buffer, msrun_command, variables
from mindmoe.launch.hosts import read_hosts
from mindmoe.launch.kubernetes import NOTICE, VOLCANO_NOTICE, volcano_job
from mindmoe.observe.environment import SOURCE_TREE
from mindmoe.parallel.mesh import Mesh
from mindmoe.train.folder import RunFolder
from mindmoe.train.live import Hold
from mindmoe.train.preflight import UNPRINTABLE, path_problems, working_folder

Scheduler = Literal["hosts", "slurm", "k8s"]


def prepare(
    config: RunConfig,
    cards: int,
    cards_per_node: int,
    scheduler: Scheduler,
    hosts_file: Path | None = None,
    takeover: bool = False,
) -> int:
    """Writes the scripts of a launch into `launch/` of the run folder and prints what to do with them.

    Args:
        config: the run, resolved on its cards.
        cards: ranks of the run.
        cards_per_node: ranks of each node.
        scheduler: what starts the nodes.
        hosts_file: names of the nodes, for `hosts`.
        takeover: end whoever runs in the folder, rather than refuse.

    Raises:
        UserError: the cards do not fit the nodes, a setting that the scheduler needs is missing, a path cannot be
            handed to it, or somebody runs in the folder.
    """
    hosts = read_hosts(hosts_file) if hosts_file is not None else None
    cluster = Cluster.build(cards, cards_per_node, hosts)
    mesh = Mesh.build(config.parallel, cards)
    if scheduler == "k8s" and config.launch.kubernetes is None:
        raise UserError("launch.kubernetes is not set", "set launch.kubernetes.image, .claim and .mount")
    if problems := path_problems(config):
        raise UserError("; ".join(problems))
    folder = RunFolder.of(config)
    launch_folder = Path(os.path.abspath(working_folder() / folder.path / "launch"))
    for path in (launch_folder, working_folder(), SOURCE_TREE, Path(sys.executable)):
        if not str(path).isprintable():
            raise UserError(f"{shown(str(path), 300)} holds {UNPRINTABLE}", "rename it")
    folder.check_continues(config)
    with Hold(folder.path, config.launch, "launch", takeover=takeover):
        folder.create(config)
        try:
            launch_folder.mkdir(exist_ok=True)
            if launch_folder.is_symlink():
                raise UserError(f"{launch_folder} is a link, and what a launch writes follows none", "remove it")
            say = _write_all(config, cluster, scheduler, launch_folder)
        except OSError as error:
            raise UserError(f"cannot write into {launch_folder}: {error.strerror}", "remove what lies there") from None
    print(f"{config.name}: {cards} cards on {cluster.needed} nodes of {cards_per_node}" + _spares(cluster))
    lines = launch_folder / "msrun_lines.txt"
    print(f"wrote {launch_folder / 'node.sh'}, and the msrun line of every node into {lines}")
    if config.train.device == "ascend":
        print(_buffers(config, mesh))
    print(f"start it with: {say}")
    return 0


def _write_all(config: RunConfig, cluster: Cluster, scheduler: Scheduler, launch_folder: Path) -> str:
    """Writes the files of a launch; returns the command that starts it."""
    cluster.write(launch_folder)
    content = _content(config, cluster, launch_folder)
    replace_file(launch_folder / "node.sh", _render("node.sh", content), mode=0o777)
    replace_file(launch_folder / "msrun_lines.txt", _lines(config, cluster))
    match scheduler:
        case "hosts":
            start = launch_folder / "start.sh"
            replace_file(start, _render("start.sh", content), mode=0o777)
            return f"bash {shlex.quote(str(start))}"
        case "slurm":
            job = launch_folder / "job.slurm"
            content["output"] = _sbatch_word(f"{launch_folder.parent / 'logs'}/slurm-", "%j.out")
            replace_file(job, _render("job.slurm", content), mode=0o777)
            return f"sbatch {shlex.quote(str(job))}"
        case "k8s":
            manifest = launch_folder / "volcano.yaml"
            replace_file(manifest, VOLCANO_NOTICE + dump(volcano_job(config, cluster, launch_folder / "node.sh")))
            return f"kubectl create -f {shlex.quote(str(manifest))}"


def _content(config: RunConfig, cluster: Cluster, launch_folder: Path) -> dict[str, Any]:
    """What the templates are filled with: every word is quoted once for each parser that will read it."""
    command = msrun_command(
        config,
        cards=cluster.cards,
        cards_per_node=cluster.cards_per_node,
        master=(cluster.hosts[0].address if cluster.hosts else "${MASTER_ADDR:?the address of node 0}", _port(config)),
        node_rank=0,
    )
    slurm = config.launch.slurm
    options = {"partition": slurm.partition, "account": slurm.account, "time": slurm.time, "gres": slurm.gres}
    node, logs = shlex.quote(str(launch_folder / "node.sh")), launch_folder.parent / "logs"
    return {
        "name": config.name,
        "cards": cluster.cards,
        "cards_per_node": cluster.cards_per_node,
        "needed": cluster.needed,
        "ascend": config.train.device == "ascend",
        "variables": [
            {"name": found.name, "value": shlex.quote(found.value), "reason": found.reason}
            for found in variables(config, cluster.cards, cluster.cards_per_node)
        ],
        "working_folder": shlex.quote(str(working_folder())),
        "python_folder": shlex.quote(str(Path(sys.executable).parent)),
        "python_path": _python_path(),
        "launch_folder": shlex.quote(str(launch_folder)),
        "logs": shlex.quote(str(logs)),
        "msrun": " ".join(_shell_word(word) for word in command),
        "hosts": [shlex.quote(host.name) for host in cluster.hosts],
        # ssh joins its words and hands them to a shell on the other side
        "remote_script": shlex.quote(node),
        # srun starts a shell of its own, which knows the number of its node
        "slurm_node": shlex.quote(f'exec bash {node} "$SLURM_NODEID"'),
        "options": [f"--{key}={value}" for key, value in options.items() if value] + list(slurm.options),
        "notice": NOTICE,
    }


def _sbatch_word(path: str, pattern: str) -> str:
    """A path and a pattern of Slurm as a word of an `#SBATCH` line, which sbatch unquotes and then expands itself.

    Raises:
        UserError: a backslash, which switches Slurm's patterns off.
    """
    if "\\" in path:
        raise UserError(f"{path} holds a backslash, which Slurm takes for its own", "set output_dir to another folder")
    return '"' + path.replace("%", "%%").replace('"', '\\"') + pattern + '"'


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


def _render(name: str, content: Mapping[str, Any]) -> str:
    """A template of this package, filled in; an unknown name in it is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are scripts; what is filled in is quoted for those that read them
    )
    return environment.get_template(name).render(content)
