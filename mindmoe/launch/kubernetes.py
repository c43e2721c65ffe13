"""The job of a launch for Volcano on Kubernetes."""

import re
import shlex
from pathlib import Path
from typing import Any

from mindmoe.config.run import RunConfig
from mindmoe.launch.cluster import Cluster
from mindmoe.train.preflight import working_folder

NOTICE = 300  # [s] for the ranks to finish their step and save before a scheduler takes the nodes away
VOLCANO_NOTICE = """\
# Volcano starts all pods or none (minAvailable). Each runs one node of the launch; VC_TASK_INDEX, which the env plugin
# sets, says which, and the svc plugin gives the pods names that they find each other by.
"""


def volcano_job(config: RunConfig, cluster: Cluster, script: Path) -> dict[str, Any]:
    """The job as data.

    Args:
        config: the run, with `launch.kubernetes`.
        cluster: its nodes.
        script: what each of them runs.
    """
    site, ascend = config.launch.kubernetes, config.train.device == "ascend"
    assert site is not None
    node = shlex.quote(str(script)).replace("$", "$$")  # Kubernetes expands $(NAME) in commands before bash sees them
    limits: dict[str, Any] = {"memory": site.memory}
    if ascend:
        limits[site.device] = cluster.cards_per_node
    container = {
        "name": "node",
        "image": site.image,
        "command": ["bash", "-c", f'exec bash {node} "$VC_TASK_INDEX"'],
        "workingDir": str(working_folder()),
        "resources": {"requests": {"cpu": str(site.cpus), "memory": site.memory}, "limits": limits},
        "volumeMounts": [{"name": "shared", "mountPath": site.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": NOTICE,
        "hostNetwork": ascend,
        **({"dnsPolicy": "ClusterFirstWithHostNet"} if ascend else {}),
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": site.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {
        "apiVersion": "batch.volcano.sh/v1alpha1",
        "kind": "Job",
        "metadata": {"name": _dns_name(config.name), "namespace": site.namespace},
        "spec": {
            "schedulerName": "volcano",
            "queue": site.queue,
            "minAvailable": cluster.needed,
            "maxRetry": max(1, config.launch.restarts),
            "plugins": {"env": [], "svc": ["--publish-not-ready-addresses=true"]},
            "policies": [{"event": "PodEvicted", "action": "RestartJob"}],
            "tasks": [
                {
                    "name": "node",
                    "replicas": cluster.needed,
                    "policies": [{"event": "TaskCompleted", "action": "CompleteJob"}],
                    "template": {"spec": pod},
                }
            ],
        },
    }


def _dns_name(name: str) -> str:
    """A name as those of services are: lower-case letters, digits and `-`, a letter first, none but these last."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"run-{plain}")[:50].strip("-")
