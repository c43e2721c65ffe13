"""A launch over several nodes, each a network namespace with an address of its own, joined by a switch.

Only the network is apart: the nodes share this machine's files as the nodes of a cluster share the run folder.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest


def ip(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@dataclass
class Network:
    """Namespaces `names`, plugged into a switch in one more."""

    names: list[str]
    switch: str

    def address(self, index: int) -> str:
        return f"10.213.77.{index + 1}"

    def build(self) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for index, name in enumerate(self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{index}", "netns", self.switch)
            ip("-n", name, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", self.switch, "link", "set", f"port{index}", "master", "bridge", "up")

    def cable(self, index: int, state: str) -> None:
        """Plugs the cable of a node in (`up`) or out (`down`)."""
        ip("-n", self.switch, "link", "set", f"port{index}", state)

    def pids(self, index: int) -> list[int]:
        return [int(word) for word in ip("netns", "pids", self.names[index]).stdout.split()]

    def power_off(self, index: int) -> None:
        """Kills whatever runs on a node."""
        while pids := self.pids(index):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def remove(self) -> None:
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def network() -> Iterator[Callable[[int], Network]]:
    """Builds a network of some nodes, or skips where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("ip (iproute2) is not installed")
    built: list[Network] = []

    def build(num_nodes: int) -> Network:
        network = Network([f"mindmoe{os.getpid()}n{index}" for index in range(num_nodes)], f"mindmoe{os.getpid()}sw")
        built.append(network)
        try:
            network.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        return network

    yield build
    for network in built:
        for index in range(len(network.names)):
            with suppress(subprocess.CalledProcessError):
                network.power_off(index)
        network.remove()


def prepare(cli, network: Network, name: str, *words: str) -> str:
    """Writes the scripts of a launch on all nodes of a network, of which two take part; its start script."""
    hosts = cli.folder / "hosts.txt"
    hosts.write_text("".join(f"{host} address={network.address(i)}\n" for i, host in enumerate(network.names)))
    nodes = ("--cards", "2", "--cards-per-node", "1", "--nodes", str(hosts))
    code, output = cli.run("launch", *nodes, f"name={name}", *words)
    assert code == 0, output
    return str(cli.folder / "runs" / name / "launch" / "start.sh")


def start(cli, script: str) -> tuple[subprocess.Popen, Callable[[str, float], str]]:
    """Starts the nodes; the process and a function that waits for a line of node 0."""
    log = cli.folder / "start.out"
    with log.open("w") as out:
        env = {**os.environ, "GLOG_v": "3", "REMOTE_SHELL": "ip netns exec"}
        process = subprocess.Popen(["bash", script], stdout=out, stderr=subprocess.STDOUT, env=env)

    def wait_for(pattern: str, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, log.read_text())):
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.2)
        return found[0]

    return process, wait_for


@pytest.mark.timeout(1800)
def test_nodes_survive_a_cut_network_and_a_lost_node(cli, network, trace):
    """Three nodes, two at a time: the cable of node 1 is pulled, then put back; then node 1 loses its power."""
    nodes = network(3)
    script = prepare(
        cli,
        nodes,
        "cluster",
        "train.steps=14",
        "launch.restarts=2",
        "launch.backoff=1",
        "launch.hang_timeout=15",
        "launch.node_timeout=30",
        "launch.timeout=0",
    )
    process, wait_for = start(cli, script)
    wait_for(r"attempt 1 on 2 nodes \(\w+n0, \w+n1\), 1 to spare", 400)
    cli.wait_for_step("cluster", 4, process)
    nodes.cable(1, "down")
    wait_for(r"attempt 1 failed: ", 400)
    nodes.cable(1, "up")
    wait_for(r"attempt 2 on 2 nodes \(\w+n0, \w+n1\)", 400)
    wait_for_resume(cli, 2, process)
    nodes.power_off(1)
    wait_for(r"attempt 2 failed: node 1 \(\w+n1\) gave no sign of life", 400)
    wait_for(r"attempt 3 on 2 nodes \(\w+n0, \w+n2\)", 400)
    assert process.wait(timeout=400) == 0, (cli.folder / "start.out").read_text()
    assert [step for step, *_ in enumerate(trace("cluster"), 1)] == list(range(1, 15))
    assert not any(nodes.pids(index) for index in range(3))


def wait_for_resume(cli, steps: int, process: subprocess.Popen) -> None:
    """Returns once the run has gone on for some steps after a restart."""
    from mindmoe.observe.metrics import read_metrics

    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        records = read_metrics(cli.metrics("cluster"))
        begun = [i for i, r in enumerate(records) if r["kind"] == "event" and r["event"] == "resume"]
        if begun and sum(r["kind"] == "train" for r in records[begun[-1] :]) >= steps:
            return
        assert process.poll() is None, (cli.folder / "start.out").read_text()
        time.sleep(0.1)
    raise AssertionError("the run was not resumed")
