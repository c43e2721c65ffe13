"""`mindmoe node`: one node of a launch; it follows the orders of node 0, and on node 0 also gives them."""

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from mindmoe.config.load import load_config
from mindmoe.config.run import RunConfig, resolve
from mindmoe.host.env import LAUNCH_FOLDER, threads_per_rank, worker_environment
from mindmoe.host.files import printable, replace_file
from mindmoe.host.lasting import lasting_output
from mindmoe.launch.check import check_node
from mindmoe.launch.cluster import Cluster
from mindmoe.launch.command import exports, msrun_command, rank_table, variables
from mindmoe.launch.coordinator import Coordinator
from mindmoe.launch.hang import HangWatch, hang_failure
from mindmoe.launch.local import EXIT_FAILED, Failure, LocalRanks, free_port, keep_logs
from mindmoe.launch.ranks import Rank, dump_stacks
from mindmoe.launch.restart import Restarts
from mindmoe.launch.shared import NodeStatus, Orders, SharedFolder
from mindmoe.train.folder import RunFolder
from mindmoe.train.guard import stop_signals
from mindmoe.train.live import Hold
from mindmoe.train.preflight import finished_steps

_POLL = 0.5  # [s]
_BEAT = 1.0  # [s]


@lasting_output()
def run_node(launch_folder: Path, index: int) -> int:
    """Runs a node until the launch is over; returns the exit code of the run.

    Args:
        launch_folder: what `mindmoe launch` wrote, on a file system that all nodes share.
        index: which node this is, from 0.

    Raises:
        UserError: the folder is none of a launch, has no such node, or somebody else is that node or runs in it.
    """
    cluster = Cluster.read(launch_folder)
    cluster.check_index(index)
    config = resolve(load_config(launch_folder.parent / "config.yaml"), cluster.cards)
    shared = SharedFolder(launch_folder)
    shared.create()
    if index:
        with Hold(launch_folder / "nodes", config.launch, f"node --index {index}", name=f"live-{index}") as hold:
            return NodeAgent(shared, index, cluster, config, hold).run()
    with Hold(launch_folder.parent, config.launch, "node --index 0") as hold:
        return Leader(NodeAgent(shared, index, cluster, config, hold)).run()


class NodeAgent:
    """Starts, watches and ends the ranks of this node as it is ordered to.

    Args:
        shared: the folder that the nodes share.
        index: of this node.
        cluster: all nodes.
        config: the resolved run.
        hold: of what this node is; on node 0 of the run, whose session marks the processes of all nodes.
    """

    def __init__(self, shared: SharedFolder, index: int, cluster: Cluster, config: RunConfig, hold: Hold):
        self.shared, self.index, self.cluster, self.config, self.hold = shared, index, cluster, config, hold
        self.folder = RunFolder.of(config)
        self.asked = 0  # the signal that asked to stop
        self.ranks: LocalRanks | None = None
        self.status: NodeStatus | None = None
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # of the status, which the heart re-writes
        self._leader_beat: int | None = None
        self._heard = False  # whether the beat of node 0 has changed, so that its orders are no remains
        self._heard_at = time.monotonic()

    def run(self) -> int:
        """Follows the orders to their end; returns the exit code."""
        with self.signals(), self.heart():
            try:
                while (code := self.step()) is None:
                    time.sleep(_POLL)
                return code
            finally:
                self.end_ranks()

    def step(self) -> int | None:
        """Looks at the orders once; returns the exit code when there is no more to do."""
        if self.hold.code and not self.asked:
            self._stop(signal.SIGTERM, "another start takes this over")
        orders = self._living_orders()
        if orders is not None:
            if orders.action == "finish" and self.status is not None and self.status.session == orders.session:
                if orders.code and self.index:  # node 0 has said why
                    self.say(f"node 0 ended the launch: {orders.message}")
                return orders.code
            self._follow(orders)
        silence = time.monotonic() - self._heard_at
        launch = self.config.launch
        if self.index and silence > (launch.node_timeout if self._heard else launch.cluster_timeout):
            self.say(f"node 0 gave no sign of life for {silence:.0f} s: this node leaves")
            return EXIT_FAILED
        return 128 + self.asked if self.asked and self.ranks is None else None

    def say(self, text: str) -> None:
        """Prints a line for the user."""
        print(f"mindmoe node {self.index}: {printable(text)}", flush=True)

    def end_ranks(self) -> None:
        """Ends the processes of this node, if there are any."""
        if self.ranks is not None:
            self.ranks.end()
            self.ranks = None

    def _living_orders(self) -> Orders | None:
        """The orders, once node 0 has been seen to live: those that an earlier launch left are void."""
        if self.index == 0:
            return self.shared.read_orders()
        leader = self.shared.read_status(0)
        if leader is not None and leader.beat != self._leader_beat:
            self._heard = self._leader_beat is not None
            self._leader_beat, self._heard_at = leader.beat, time.monotonic()
        return self.shared.read_orders() if self._heard else None

    def _follow(self, orders: Orders) -> None:
        """Does what the orders say, and says how far it is."""
        if self.status is None or self.status.session != orders.session:
            self.end_ranks()  # node 0 has begun anew: what ran is not part of it
            self._publish(self._introduction(orders.session))
        assert self.status is not None
        status = self.status
        if orders.action == "run" and orders.attempt > status.attempt and self.index in orders.nodes:
            self._start(orders)
            status = replace(status, state="running", attempt=orders.attempt, failure=None)
        elif self.ranks is not None and orders.action == "stop":
            dump_stacks(self.ranks.ranks)
            self.end_ranks()
            status = replace(status, state="stopped")
        elif self.ranks is not None:
            status = self._looked_at(self.ranks, status)
        elif orders.action == "gather":
            status = replace(status, port=free_port(""))
        self._publish(status)

    def _publish(self, status: NodeStatus) -> None:
        """Writes the status with one more beat."""
        with self._lock:
            self.status = replace(status, beat=self.status.beat + 1 if self.status else 0)
            self.shared.write_status(self.status)

    @contextmanager
    def heart(self) -> Iterator[None]:
        """Beats while it is entered, for ending the ranks and writing their stacks takes longer than a beat may."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(_BEAT):
                if self.status is not None:
                    with self._lock:
                        self.status = replace(self.status, beat=self.status.beat + 1)
                        self.shared.write_status(self.status)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _looked_at(self, ranks: LocalRanks, status: NodeStatus) -> NodeStatus:
        """The status after a look at the ranks."""
        state, failure = ranks.state(), status.failure
        if state == "failing" and failure is None:
            found = ranks.failure()
            failure = found if found is not None and found.rank >= 0 else None  # else msrun has yet to say which
        elif state == "ended":
            self.end_ranks()
            failure = failure or ranks.failure()
            return replace(status, state="stopped" if failure else "done", failure=failure)
        return replace(status, state="failing" if failure else "running", failure=failure)

    def _introduction(self, session: str) -> NodeStatus:
        """The first status of this node, with the result of its check."""
        address = self.cluster.address_of(self.index, self.config.launch.interface)
        check = check_node(self.config, self.cluster.cards, self.cluster.cards_per_node, address)
        for note in check.notes:
            self.say(f"note: {note}")
        for problem in check.problems:
            self.say(f"unfit: {problem}")
        return NodeStatus(
            index=self.index,
            session=session,
            beat=0,
            name=self.cluster.hosts[self.index].name if self.cluster.hosts else socket.gethostname(),
            address=address,
            port=free_port(""),
            state="unfit" if check.problems else "ready",
            problems=check.problems,
            facts=check.facts,
            device_addresses=check.device_addresses,
        )

    def _start(self, orders: Orders) -> None:
        """Starts the ranks of this node."""
        cluster, place = self.cluster, orders.nodes.index(self.index)
        table = self.shared.path / "rank_table.json"
        command = msrun_command(
            self.config,
            cards=cluster.cards,
            cards_per_node=cluster.cards_per_node,
            master=orders.master,
            node_rank=place,
            rank_table=table if table.exists() else None,
        )
        threads = threads_per_rank(self.config.launch.threads, cluster.cards_per_node)
        env = worker_environment(threads, cluster.cards_per_node, str(Path(sys.executable).parent))
        env |= exports(variables(self.config, cluster.cards, cluster.cards_per_node))
        env[LAUNCH_FOLDER] = str(self.folder.path.absolute())
        first = place * cluster.cards_per_node
        ranks = [Rank(number, self.folder.logs) for number in range(first, first + cluster.cards_per_node)]
        output = self.folder.logs / f"msrun_node_{self.index}.log"
        self.ranks = LocalRanks(command, ranks, env, output, self.mark(orders.session))
        self.ranks.start()

    def mark(self, session: str) -> str:
        """What the processes of this node carry in a session."""
        return f"{session}:{self.index}"

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Passes the first signal that asks to stop on to the ranks, which save, and leaves at the second."""

        def handle(number: int, _: FrameType | None) -> None:
            if not self.asked:
                self._stop(number, "stopping")
            elif number != signal.SIGHUP:  # a terminal that closes sends it twice
                sys.exit(128 + number)

        before = {number: signal.signal(number, handle) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, why: str) -> None:
        """Asks the ranks of this node to save and stop, whereupon all do."""
        self.asked = number
        if self.ranks is not None:
            self.say(f"{why}: the ranks finish their step and save")
            self.ranks.ask_to_stop()


class Leader:
    """NodeAgent 0: gives the orders, and follows them like every other node.

    Args:
        node: this node.
    """

    def __init__(self, node: NodeAgent):
        self.node = node
        cluster, config = node.cluster, node.config
        self.coordinator = Coordinator(
            config=config.launch,
            needed=cluster.needed,
            total=cluster.num_nodes,
            cards_per_node=cluster.cards_per_node,
            restarts=Restarts(config.launch, best_step=finished_steps(config)),
            orders=Orders(session=node.hold.session),
        )
        self.hangs: HangWatch | None = None

    def run(self) -> int:
        """Leads the launch to its end; returns the exit code."""
        node, coordinator = self.node, self.coordinator
        with node.signals(), node.heart():
            try:
                while True:
                    self.lead()
                    code = node.step()
                    if code is not None:
                        if coordinator.orders.action != "finish":
                            node.shared.write_orders(coordinator.finish(code, "node 0 was asked to stop"))
                        elif coordinator.orders.message:
                            node.say(coordinator.orders.message)
                        return code
                    time.sleep(_POLL)
            finally:
                node.end_ranks()

    def lead(self) -> None:
        """Looks at all nodes and gives the orders that follow."""
        node, coordinator = self.node, self.coordinator
        indices = range(node.cluster.num_nodes)
        statuses = {index: status for index in indices if (status := node.shared.read_status(index)) is not None}
        attempt, now = coordinator.orders.attempt, time.monotonic()
        orders = coordinator.step(statuses, self._hang(now), finished_steps(node.config), now)
        if orders.attempt != attempt:
            self._prepare(orders, statuses)
        for line in coordinator.said:
            node.say(line)
        coordinator.said.clear()
        node.shared.write_orders(orders)

    def _hang(self, now: float) -> Failure | None:
        """The failure of a hang of the running attempt."""
        if self.hangs is None or self.coordinator.orders.action != "run":
            return None
        verdict = self.hangs.check(now)
        return None if verdict is None else hang_failure(verdict, self.hangs.ranks)

    def _prepare(self, orders: Orders, statuses: dict[int, NodeStatus]) -> None:
        """Before an attempt is ordered: puts the logs of the last one aside, and writes the rank table."""
        node, per_node = self.node, self.node.cluster.cards_per_node
        keep_logs(node.folder.logs)
        mine = orders.nodes.index(0) * per_node if 0 in orders.nodes else -per_node
        mark = node.mark(orders.session)
        self.hangs = HangWatch(
            [
                Rank(number, node.folder.logs, mark if mine <= number < mine + per_node else "")
                for number in range(node.cluster.cards)
            ],
            node.config.launch,
        )
        table = node.shared.path / "rank_table.json"
        table.unlink(missing_ok=True)  # that of other nodes
        devices = [(statuses[index].address, statuses[index].device_addresses[:per_node]) for index in orders.nodes]
        if all(len(addresses) == per_node for _, addresses in devices):
            replace_file(table, rank_table(devices))
