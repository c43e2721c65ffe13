"""The orders of node 0 in every course of events, with a clock of the test."""

from dataclasses import replace

import pytest

from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.coordinator import Coordinator
from mindmoe.launch.local import Failure
from mindmoe.launch.restart import Restarts
from mindmoe.launch.shared import NodeStatus, SharedFolder

CONFIG = LaunchConfig(restarts=2, backoff=10.0, node_timeout=60.0, cluster_timeout=600.0)
CRASH = Failure(code=1, rank=3, message="rank 3 failed first: RuntimeError", time=5.0)


class Scene:
    """Nodes that say what they are told to, looked at every second."""

    def __init__(self, total: int, needed: int, config: LaunchConfig = CONFIG):
        self.now, self.step, self.hang = 1000.0, 0, None
        self.leader = Coordinator(
            config=config, needed=needed, total=total, cards_per_node=2, restarts=Restarts(config)
        )
        self.nodes: dict[int, NodeStatus] = {}
        self.dead: set[int] = set()
        for index in range(total):
            self.join(index)

    def join(self, index: int, **changes: object) -> None:
        status = NodeStatus(
            index=index,
            session=self.leader.orders.session,
            beat=0,
            name=f"host-{index}",
            address=f"10.0.0.{index}",
            port=5000 + index,
            state="ready",
            facts={"mindspore": "2.9.0"},
        )
        self.nodes[index] = replace(status, **changes)

    def tell(self, index: int, **changes: object) -> None:
        self.nodes[index] = replace(self.nodes[index], **changes)

    def go(self, seconds: float = 1.0):
        """Time passes; the living nodes obey as real ones do, and beat."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            orders = self.leader.step(self.nodes, self.hang, self.step, self.now)
            for index, status in self.nodes.items():
                if index in self.dead:
                    continue
                if orders.action == "run" and index in orders.nodes and status.attempt < orders.attempt:
                    status = replace(status, state="running", attempt=orders.attempt, failure=None)
                elif orders.action == "stop" and status.state in ("running", "failing"):
                    status = replace(status, state="stopped")
                self.nodes[index] = replace(status, beat=status.beat + 1)
        return orders

    @property
    def said(self) -> str:
        return "\n".join(self.leader.said)


def test_an_attempt_starts_when_all_are_ready_on_the_first_of_them():
    scene = Scene(total=2, needed=2)
    orders = scene.go()
    assert (orders.action, orders.attempt, orders.nodes, orders.master) == ("run", 1, (0, 1), ("10.0.0.0", 5000))


def test_spares_do_not_go_before_nodes_that_are_a_little_late():
    scene = Scene(total=3, needed=2)
    late = scene.nodes.pop(0)
    assert scene.go(2).action == "gather"
    scene.nodes[0] = late
    assert scene.go(2).nodes == (0, 1)


def test_a_spare_takes_the_place_of_a_node_that_does_not_come():
    scene = Scene(total=3, needed=2)
    del scene.nodes[1]
    assert scene.go(6).nodes == (0, 2)


def test_all_done_is_the_end():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.tell(0, state="done")
    assert scene.go().action == "run"
    scene.tell(1, state="done")
    assert (scene.go().action, scene.leader.orders.code) == ("finish", 0)


def test_a_failed_rank_ends_the_attempt_everywhere_and_the_next_one_waits():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.tell(1, state="failing", failure=CRASH)
    assert scene.go().action == "stop"
    assert scene.go().action == "gather"
    assert "attempt 1 failed: node 1 (host-1): rank 3 failed first" in scene.said
    assert scene.go(8).action == "gather"  # backoff
    orders = scene.go(4)
    assert (orders.action, orders.attempt) == ("run", 2)


def test_the_earliest_failure_is_the_cause():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.tell(0, state="failing", failure=Failure(code=1, rank=0, message="connection reset", time=9.0))
    scene.tell(1, state="failing", failure=CRASH)
    scene.go(2)
    assert "RuntimeError" in scene.said and "connection reset" not in scene.said


def test_no_start_before_every_node_has_ended_its_ranks():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.dead.add(0)  # does not answer, but may still run ranks
    scene.tell(1, state="failing", failure=CRASH)
    scene.go()
    assert scene.go(50).action == "stop"
    assert scene.go(20).action == "gather"  # lost


def test_a_lost_node_is_named_though_another_one_complains_first():
    scene = Scene(total=3, needed=2)
    scene.go(4)
    scene.dead.add(1)
    scene.tell(0, state="failing", failure=Failure(code=1, rank=0, message="connection reset", time=9.0))
    scene.go(70)
    assert "attempt 1 failed: node 1 (host-1) gave no sign of life" in scene.said
    assert scene.go(15).nodes == (0, 2)


def test_a_lost_node_that_comes_back_takes_part_again():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.dead.add(1)
    assert scene.go(80).action == "gather"
    scene.dead.clear()
    assert scene.go(15).nodes == (0, 1)


def test_a_node_that_fails_twice_in_a_row_is_left_out_while_there_are_others():
    scene = Scene(total=3, needed=2)
    scene.go(5)
    for _ in range(2):
        scene.tell(1, state="failing", failure=CRASH)
        scene.go(30)
    assert scene.leader.orders.nodes == (0, 2)
    assert "node 1 failed in two attempts in a row" in scene.said


def test_without_others_a_bad_node_is_tried_again_and_the_launch_is_given_up_in_the_end():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    for _ in range(3):
        assert scene.leader.orders.action == "run"
        scene.tell(1, state="failing", failure=CRASH)
        scene.go(40)
    assert (scene.leader.orders.action, scene.leader.orders.code) == ("finish", 1)
    assert "2 restarts" in scene.leader.orders.message


@pytest.mark.parametrize("code", [2, 3, 143])
def test_a_failure_that_would_come_again_is_the_end(code):
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.tell(0, state="stopped", failure=Failure(code=code, rank=0, message="so"))
    scene.go(3)
    assert (scene.leader.orders.action, scene.leader.orders.code) == ("finish", code)


def test_a_hang_blames_the_node_of_its_rank():
    scene = Scene(total=2, needed=2)
    scene.go(2)
    scene.hang = Failure(code=1, rank=2, message="no rank has made progress")
    assert scene.go().action == "stop"
    scene.hang = None
    scene.go()
    assert "attempt 1 failed: node 1 (host-1): no rank has made progress" in scene.said


def test_too_few_nodes_end_the_launch_after_the_timeout():
    scene = Scene(total=3, needed=2)
    for index in (1, 2):
        scene.tell(index, state="unfit", problems=("no memory",))
    assert scene.go(599).action == "gather"
    orders = scene.go(4)
    assert (orders.action, orders.code) == ("finish", 2)
    assert "1 of 2 nodes are ready" in orders.message and "[1, 2]" in orders.message
    assert scene.said.count("node 1 (host-1) is unfit: no memory") == 1


def test_a_node_unlike_the_others_is_left_out_and_named():
    scene = Scene(total=3, needed=2)
    scene.tell(0, facts={"mindspore": "2.10.0"})
    assert scene.go(6).nodes == (1, 2)
    assert "node 0 (host-0) differs from the others: mindspore 2.10.0, not 2.9.0" in scene.said


def test_what_an_earlier_launch_left_counts_for_nothing():
    scene = Scene(total=2, needed=2)
    scene.tell(1, session="before")
    assert scene.go(20).action == "gather"


def test_orders_and_statuses_survive_the_shared_folder(tmp_path):
    scene = Scene(total=2, needed=2)
    folder = SharedFolder(tmp_path)
    folder.create()
    assert folder.read_orders() is None and folder.read_status(0) is None
    orders = scene.go()
    folder.write_orders(orders)
    assert folder.read_orders() == orders
    status = replace(scene.nodes[1], state="failing", failure=CRASH, problems=("a", "b"), device_addresses=("1.2.3.4",))
    folder.write_status(status)
    assert folder.read_status(1) == status
    (tmp_path / "nodes" / "0.json").write_text("{")
    assert folder.read_status(0) is None
