"""What a launch on many nodes writes: read as a shell, Slurm and Kubernetes would read it."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from mindmoe.cli.main import main
from mindmoe.config.load import load_config
from mindmoe.launch.command import hccl_buffer, rank_table, variables

ASCEND = ("train.device=ascend", "parallel.pp=4", "parallel.ep=8", "train.global_batch_size=512")
KUBERNETES = ("launch.kubernetes.image=registry.example/mindmoe:1", "launch.kubernetes.claim=shared")


@pytest.fixture
def big(root: Path) -> str:
    return str(root / "configs" / "gpt-oss-120b.yaml")


@pytest.fixture
def prepared(tmp_path: Path, big: str, capsys: pytest.CaptureFixture):
    """Prepares the 512-card preset in a folder of the temporary one; returns the launch folder and what was printed."""

    def prepare(*words: str, folder: str = "a b") -> tuple[Path, str]:
        code = main(
            [
                "launch",
                big,
                "--cards",
                "512",
                *words,
                *ASCEND,
                "launch.cluster_timeout=30min",
                "name=big",
                f"output_dir={json.dumps(str(tmp_path / folder))}",
            ]
        )
        said = capsys.readouterr()
        assert code == 0, said.err
        return tmp_path / folder / "big" / "launch", said.out

    return prepare


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    path = tmp_path / "hosts.txt"
    lines = [f"npu-{index:02d} address=10.1.{index // 250}.{index % 250 + 1}" for index in range(66)]
    path.write_text("# the cluster\n\n" + "\n".join(lines) + "\n")
    return str(path)


def test_every_node_has_its_exact_msrun_line(prepared, hosts):
    folder, said = prepared("--nodes", hosts)
    lines = [line for line in (folder / "msrun_lines.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 64 and "64 nodes of 8, 2 to spare" in said
    for node, line in enumerate(lines):
        words = shlex.split(line)
        assert words[1:3] == ["-m", "mindspore.parallel.cluster.run"]
        for word in (
            "--worker_num=512",
            "--local_worker_num=8",
            "--master_addr=10.1.0.1",
            f"--node_rank={node}",
            "--join=True",
            "--bind_core=True",
            "--cluster_time_out=1800",
        ):
            assert word in words
    assert "HCCL buffers: " in said and "start it with: bash '" in said


def run_script(script: Path, *words: str) -> list[str]:
    """What a script would start, by programs of ours that print their arguments and environment."""
    folder = script.parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text('#!/bin/sh\necho "python $*"; env\n')
    (folder / "python").chmod(0o755)
    text = re.sub(r"export PATH=\S+", f"export PATH={shlex.quote(str(folder))}:$PATH", script.read_text())
    trial = script.with_name("trial.sh")
    trial.write_text(re.sub(r"exec \S*/python", "exec python", text))
    done = subprocess.run(
        ["bash", str(trial), *words], capture_output=True, text=True, env={**os.environ, "RANK_ID": "7"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_node_script_starts_the_node_with_its_environment(prepared, hosts):
    folder, _ = prepared("--nodes", hosts)
    started, *environment = run_script(folder / "node.sh", "63")
    assert started == f"python -m mindmoe node {folder.resolve()} --index 63"
    connect = next(int(line.partition("=")[2]) for line in environment if line.startswith("HCCL_CONNECT_TIMEOUT="))
    execute = next(int(line.partition("=")[2]) for line in environment if line.startswith("HCCL_EXEC_TIMEOUT="))
    assert 120 < connect <= 7200 and connect < execute <= 17340 and execute % 68 == 0
    assert not any(line.startswith(("RANK_ID=", "MS_SIMULATION_LEVEL=")) for line in environment)
    bare, *_ = run_script(folder / "node.sh", "63", "--bare")
    assert "--node_rank=63" in bare and "mindspore.parallel.cluster.run" in bare


def test_every_variable_has_a_reason_in_the_script(prepared, hosts):
    folder, _ = prepared("--nodes", hosts)
    lines = (folder / "node.sh").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("export ") and not line.startswith(("export PATH", "export PYTHONPATH")):
            assert lines[number - 1].startswith("# "), line


@pytest.mark.parametrize("words", [("--slurm",), ("--nodes",)])
def test_the_scripts_are_sound_shell(prepared, hosts, words):
    folder, _ = prepared(*words, *([hosts] if words == ("--nodes",) else []))
    scripts = [*folder.glob("*.sh"), *folder.glob("*.slurm")]
    assert len(scripts) == 2
    for script in scripts:
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", *map(str, scripts)], check=True)


def test_the_slurm_job_asks_for_the_nodes(prepared):
    folder, said = prepared(
        "--slurm",
        "launch.slurm.partition=npu",
        "launch.slurm.time=7-00:00:00",
        "launch.slurm.gres=npu:8",
        "launch.slurm.options=[--exclude=npu-13]",
    )
    text = (folder / "job.slurm").read_text()
    options = re.findall(r"^#SBATCH (--[\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    assert len(options) == text.count("#SBATCH")
    asked = dict(options)
    assert asked["--nodes"] == "64" and asked["--ntasks-per-node"] == "1" and asked["--gres"] == "npu:8"
    assert asked["--partition"] == "npu" and asked["--time"] == "7-00:00:00" and asked["--exclude"] == "npu-13"
    first_command = next(i for i, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    assert all(line.startswith("#") for line in text.splitlines()[:first_command])  # Slurm stops reading there
    assert "sbatch" in said


JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "batch.volcano.sh/v1alpha1"},
        "kind": {"const": "Job"},
        "metadata": {
            "type": "object",
            "required": ["name", "namespace"],
            "properties": {"name": {"pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}},
        },
        "spec": {
            "type": "object",
            "required": ["minAvailable", "schedulerName", "tasks"],
            "additionalProperties": False,
            "properties": {
                "schedulerName": {"const": "volcano"},
                "queue": {"type": "string"},
                "minAvailable": {"type": "integer", "minimum": 1},
                "maxRetry": {"type": "integer", "minimum": 1},
                "plugins": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
                "policies": {"$ref": "#/$defs/policies"},
                "tasks": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "replicas", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer"},
                            "policies": {"$ref": "#/$defs/policies"},
                            "template": {
                                "type": "object",
                                "properties": {"spec": {"$ref": "#/$defs/pod"}},
                                "additionalProperties": False,
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "policies": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["event", "action"],
                "properties": {
                    "event": {"enum": ["*", "PodFailed", "PodEvicted", "TaskCompleted", "TaskFailed", "Unknown"]},
                    "action": {"enum": ["AbortJob", "RestartJob", "RestartTask", "TerminateJob", "CompleteJob"]},
                },
            },
        },
        "quantity": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}]},
        "quantities": {"type": "object", "additionalProperties": {"$ref": "#/$defs/quantity"}},
        "pod": {
            "type": "object",
            "required": ["containers", "restartPolicy"],
            "additionalProperties": False,
            "properties": {
                "restartPolicy": {"enum": ["Never", "OnFailure", "Always"]},
                "terminationGracePeriodSeconds": {"type": "integer"},
                "hostNetwork": {"type": "boolean"},
                "dnsPolicy": {"enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
                "containers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "image"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "image": {"type": "string"},
                            "command": {"type": "array", "items": {"type": "string"}},
                            "workingDir": {"type": "string", "pattern": "^/"},
                            "resources": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    "limits": {"$ref": "#/$defs/quantities"},
                                    "requests": {"$ref": "#/$defs/quantities"},
                                },
                            },
                            "volumeMounts": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["name", "mountPath"],
                                    "additionalProperties": False,
                                    "properties": {"name": {"type": "string"}, "mountPath": {"pattern": "^/"}},
                                },
                            },
                        },
                    },
                },
                "volumes": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "persistentVolumeClaim": {"type": "object", "required": ["claimName"]},
                            "emptyDir": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}
"""What this project writes of a Volcano job, after its and Kubernetes' API references."""


def in_volume(mount: Path) -> tuple[str, ...]:
    """The words for pods with data and a volume at a mount."""
    return *KUBERNETES, f"data.sources={mount}/data", f"launch.kubernetes.mount={mount}"


def test_the_volcano_job_is_valid_and_asks_for_all_nodes_at_once(prepared, tmp_path):
    folder, said = prepared("--k8s", *in_volume(tmp_path))
    job = yaml.safe_load((folder / "volcano.yaml").read_text())
    jsonschema.validate(job, JOB)
    assert job["spec"]["minAvailable"] == job["spec"]["tasks"][0]["replicas"] == 64
    pod = job["spec"]["tasks"][0]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["huawei.com/Ascend910"] == 8
    script = shlex.split(pod["containers"][0]["command"][2])
    assert script[:3] == ["exec", "bash", str(folder.resolve() / "node.sh")] and script[3] == "$VC_TASK_INDEX"
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert "kubectl create" in said


@pytest.mark.parametrize(
    ("image", "claim", "memory"),
    [("true", "null", "1Gi"), ("1e5", "0x10", "256Gi"), ("~", "no", "1Mi"), ("1_000", "1e5", "5Ti")],
)
def test_every_word_of_the_volcano_job_stays_text(prepared, tmp_path, image, claim, memory):
    words = [
        f'launch.kubernetes.{key}="{value}"' for key, value in (("image", image), ("claim", claim), ("memory", memory))
    ]
    if image == "~":  # no image, so none that the config takes
        words[0] = 'launch.kubernetes.image="null"'
    folder, _ = prepared("--k8s", *in_volume(tmp_path), *words)
    pod = yaml.safe_load((folder / "volcano.yaml").read_text())["spec"]["tasks"][0]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == ("null" if image == "~" else image)
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert container["resources"]["limits"]["memory"] == memory


FOLDERS = [
    "o'x",
    'o"x',
    "o x",
    "o;touch PWNED;",
    "$(touch PWNED)",
    "`touch PWNED`",
    "$HOME",
    "a#b",
    "a&b",
    "%j",
    "{{ name }}",
    "$$(X)",
    "-n",
    "~",
    "*",
    "\u00e9",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_path_comes_through_every_parser_as_it_is(prepared, tmp_path, hosts, folder):
    """Programs of ours stand for Slurm's, ssh and python; what the kubelet expands is expanded here."""
    programs, seen = tmp_path / "bin", tmp_path / "seen"
    programs.mkdir()
    for name, text in {
        "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=0 exec "$@"',
        "remote": 'shift; exec bash -c "$*"',  # what ssh does with its words
        "python": f'pwd >> {seen}; echo "$@" >> {seen}',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REMOTE_SHELL": str(programs / "remote"),
        "VC_TASK_INDEX": "0",
    }
    launched = []
    for words in (("--slurm",), ("--nodes", hosts), ("--k8s",)):
        where, _ = prepared(*words, *in_volume(tmp_path), folder=folder)
        node = (where / "node.sh").read_text()
        (where / "node.sh").write_text(re.sub(r"export PATH=\S+", "", node))
        script = where / {"--slurm": "job.slurm", "--nodes": "start.sh", "--k8s": "volcano.yaml"}[words[0]]
        command = ["bash", str(script)]
        if words[0] == "--k8s":
            pod = yaml.safe_load(script.read_text())["spec"]["tasks"][0]["template"]["spec"]
            command = [
                re.sub(r"\$\$|\$\((\w+)\)", lambda found: "$" if found[0] == "$$" else "", word)
                for word in pod["containers"][0]["command"]
            ]
        elif words[0] == "--nodes":
            script.write_text(
                "\n".join(line for line in script.read_text().splitlines() if " > " not in line or "npu-01" in line)
            )
        seen.unlink(missing_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
        launched.append((words[0], seen.read_text() if seen.exists() else done.stderr))
        assert f"-m mindmoe node {where} --index 0" in launched[-1][1], launched
    assert not list(tmp_path.rglob("PWNED")) and not Path("PWNED").exists()


@pytest.mark.parametrize("folder", ['a "b" c', "100%", "a'b"])
def test_slurm_writes_into_the_logs(prepared, folder):
    where, _ = prepared("--slurm", folder=folder)
    word = re.search(r"^#SBATCH --output=(.*)$", (where / "job.slurm").read_text(), re.MULTILINE)
    unquoted = shlex.split(word[1])  # sbatch knows double quotes and backslashes as a shell does
    assert unquoted == [f"{where.parent}/logs/slurm-".replace("%", "%%") + "%j.out"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--slurm", 'output_dir="a\\\\b"'), "holds a backslash"),
        (("--slurm", 'output_dir="a\\nb"'), "cannot be printed"),
        (("--nodes", "hosts", 'output_dir="a\\eb"'), "cannot be printed"),
        (("--k8s", *KUBERNETES, "launch.kubernetes.mount=/elsewhere"), "outside launch.kubernetes.mount=/elsewhere"),
        (
            ("--k8s", *KUBERNETES, "launch.kubernetes.mount=/m", "output_dir=/mm/runs"),
            "output_dir=/mm/runs is /mm/runs, outside",
        ),
    ],
)
def test_paths_that_cannot_be_handed_on_are_refused(tmp_path, monkeypatch, big, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("".join(f"n{index}\n" for index in range(64)))
    assert main(["launch", big, "--cards", "512", *words, *ASCEND]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["node.sh", "msrun_lines.txt", "cluster.json", "start.sh", "job.slurm", "volcano.yaml"]
)
def test_no_file_of_a_launch_is_written_through_a_link(prepared, tmp_path, hosts, name):
    victim, launch = tmp_path / "victim", tmp_path / "a b" / "big" / "launch"
    victim.write_text("precious")
    victim.chmod(0o600)
    launch.mkdir(parents=True)
    (launch / name).symlink_to(victim)
    for words in (("--slurm",), ("--nodes", hosts), ("--k8s",)):
        prepared(*words, *in_volume(tmp_path))
    assert victim.read_text() == "precious" and victim.stat().st_mode & 0o777 == 0o600
    assert not (launch / name).is_symlink()


def test_a_folder_of_a_launch_that_is_a_link_is_refused(tmp_path, big, capsys):
    (tmp_path / "victim").mkdir()
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "launch").symlink_to(tmp_path / "victim")
    assert main(["launch", big, "--cards", "512", "--slurm", *ASCEND, "name=big", f"output_dir={tmp_path}"]) == 2
    assert "is a link" in capsys.readouterr().err and not list((tmp_path / "victim").iterdir())


def test_a_removed_working_folder_is_one_clear_error(tmp_path, monkeypatch, big, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["launch", big, "--cards", "512", "--slurm", *ASCEND, f"output_dir={tmp_path}/out"]) == 2
    assert "the working folder has been removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--k8s",), "launch.kubernetes is not set"),
        (("--slurm", "--cards-per-node", "7"), "must be a multiple of the 7 cards"),
        (("--slurm", "launch.slurm.options=[-N1]"), "launch.slurm.options"),
        (("--nodes", "nowhere.txt"), "nowhere.txt"),
        (("--slurm", "launch.slurm.partition=a b"), "launch.slurm.partition"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, big, capsys, words, expected):
    code = main(["launch", big, "--cards", "512", *words, *ASCEND, f"output_dir={tmp_path}"])
    assert code == 2 and expected in capsys.readouterr().err


def test_too_few_hosts_are_refused(tmp_path, big, capsys):
    (tmp_path / "hosts").write_text("a\nb\n")
    code = main(
        ["launch", big, "--cards", "512", "--nodes", str(tmp_path / "hosts"), *ASCEND, f"output_dir={tmp_path}"]
    )
    assert code == 2 and "need 64 hosts, the hosts file names 2" in capsys.readouterr().err


def test_the_rank_table_counts_ranks_through_the_nodes():
    table = json.loads(rank_table([("10.0.0.1", ["1.1.1.1", "1.1.1.2"]), ("10.0.0.2", ["1.1.2.1", "1.1.2.2"])]))
    assert table["server_count"] == "2" and table["status"] == "completed" and table["version"] == "1.0"
    devices = [device for server in table["server_list"] for device in server["device"]]
    assert [device["rank_id"] for device in devices] == ["0", "1", "2", "3"]
    assert [device["device_id"] for device in devices] == ["0", "1", "0", "1"]


def test_the_hccl_buffer_holds_the_largest_message(big):
    config = load_config(
        big, ["train.micro_batch_size=1", "train.seq_length=4096", "train.global_batch_size=512", "train.device=cpu"]
    )
    assert hccl_buffer(config) == 90  # 4096 x 2880 x 2 bytes x 4 experts = 94,371,840 bytes, exactly 90 MiB
    assert {found.name for found in variables(config, 512, 8)} == {"MINDMOE_LOCAL_WORLD", "GLOG_v"}  # on a CPU
