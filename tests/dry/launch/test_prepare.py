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

from mindmoe.cli import main
from mindmoe.launch.command import hccl_buffer, rank_table, variables
from mindmoe.launch.hosts import read_hosts
from mindmoe.load import load_config

ASCEND = ("train.device=ascend", "parallel.pp=4", "parallel.ep=8", "train.global_batch_size=512")
KUBERNETES = (
    "launch.kubernetes.image=registry.example/mindmoe:1",
    "launch.kubernetes.claim=shared",
    "launch.kubernetes.mount=/shared",
)


@pytest.fixture
def big(root: Path) -> str:
    return str(root / "configs" / "gpt-oss-120b.yaml")


@pytest.fixture
def prepared(tmp_path: Path, big: str, capsys: pytest.CaptureFixture):
    """Prepares the 512-card preset and returns the launch folder and what was printed."""

    def prepare(*words: str) -> tuple[Path, str]:
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
                f"output_dir={tmp_path}/a b",
            ]
        )
        assert code == 0
        return tmp_path / "a b" / "big" / "launch", capsys.readouterr().out

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


def test_the_volcano_job_is_valid_and_asks_for_all_nodes_at_once(prepared):
    folder, said = prepared("--k8s", *KUBERNETES)
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no host"),
        ("a\na\n", "stands in line 1 already"),
        ("a address=10.0.0.1\nb address=10.0.0.1\n", "stands in line 1 already"),
        ("a slots=8\n", "'slots=8' is no setting"),
        ("-oProxyCommand=x\n", "neither a host name nor an IP address"),
        ("a address=x;y\n", "neither a host name nor an IP address"),
        ("a b\n", "'b' is no setting"),
    ],
)
def test_bad_hosts_files_are_refused(tmp_path, text, expected):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_hosts(path)


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
