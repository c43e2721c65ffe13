"""Node 0 leads: it starts an attempt when enough nodes are ready, ends it when one fails, and starts the next.

Pure but for the clock that it is given: it reads what the nodes say of themselves and answers with orders, so every
course of events can be tested without a process.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mindmoe.launch.check import differences
from mindmoe.launch.config import LaunchConfig
from mindmoe.launch.local import EXIT_FAILED, Failure
from mindmoe.launch.restart import Restarts
from mindmoe.launch.shared import NodeStatus, Orders

_SETTLE = 3.0  # [s] for the last nodes to come before a spare takes their place
_UNFIT = 2  # exit code


@dataclass(slots=True)
class _Seen:
    """When the beat of a node last changed."""

    beat: int
    at: float


@dataclass(slots=True)
class Coordinator:
    """Turns what nodes say into orders.

    Attributes:
        config: how long to wait, and how often to start again.
        needed: nodes of an attempt.
        total: nodes of the launch; those above `needed` are spares.
        cards_per_node: ranks of each.
        restarts: decides on starting again.
        orders: the orders in force.
        said: lines for the user, to be taken away by the caller.
    """

    config: LaunchConfig
    needed: int
    total: int
    cards_per_node: int
    restarts: Restarts
    orders: Orders = field(default_factory=lambda: Orders(session=uuid.uuid4().hex))
    said: list[str] = field(default_factory=list)
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _since: float | None = None
    _enough: float | None = None
    _failure: tuple[int, Failure] | None = None
    _blamed: int = -1
    _excluded: set[int] = field(default_factory=set)
    _not_before: float = 0.0
    _told_unfit: set[int] = field(default_factory=set)

    def step(self, statuses: Mapping[int, NodeStatus], hang: Failure | None, newest_step: int, now: float) -> Orders:
        """The orders after a look at the nodes.

        Args:
            statuses: what every node that has said anything said last.
            hang: the failure of a hang among the ranks of the attempt.
            newest_step: of the checkpoints.
            now: time by a steady clock [s].
        """
        mine = {index: status for index, status in statuses.items() if status.session == self.orders.session}
        for index, status in mine.items():
            if index not in self._seen or self._seen[index].beat != status.beat:
                self._seen[index] = _Seen(status.beat, now)
        self._since = now if self._since is None else self._since
        match self.orders.action:
            case "gather":
                self._gather(mine, now)
            case "run":
                self._run(mine, hang, now)
            case "stop":
                self._stop(mine, newest_step, now)
        return self.orders

    def finish(self, code: int, message: str) -> Orders:
        """The orders to leave at once."""
        self.orders = replace(self.orders, action="finish", code=code, message=message)
        return self.orders

    def _give(self, now: float, **changes: object) -> None:
        self.orders = replace(self.orders, **changes)  # type: ignore[arg-type]
        self._since, self._enough = now, None

    def _alive(self, index: int, now: float) -> bool:
        return index in self._seen and now - self._seen[index].at <= self.config.node_timeout

    def _gather(self, mine: Mapping[int, NodeStatus], now: float) -> None:
        assert self._since is not None
        fit = {}
        for index, status in sorted(mine.items()):
            if not self._alive(index, now):
                continue
            if status.state == "unfit" and index not in self._told_unfit:
                self._told_unfit.add(index)
                self.said.append(f"node {index} ({status.name}) is unfit: {'; '.join(status.problems)}")
            if status.state in ("ready", "stopped", "done"):
                fit[index] = status
        for index, odd in differences({index: status.facts for index, status in fit.items()}).items():
            if index not in self._told_unfit:
                self._told_unfit.add(index)
                self.said.append(f"node {index} ({fit[index].name}) differs from the others: {'; '.join(odd)}")
            del fit[index]
        usable = [index for index in fit if index not in self._excluded]
        if len(usable) < self.needed:  # better a node under suspicion than none
            usable = sorted([*usable, *(index for index in fit if index in self._excluded)])
        if len(usable) >= self.needed:
            self._enough = now if self._enough is None else self._enough
            settled = len(usable) == self.total or now - self._enough >= _SETTLE
            if settled and now >= self._not_before:
                self._start(fit, usable[: self.needed], now)
        elif now - self._since > self.config.cluster_timeout:
            absent = [index for index in range(self.total) if index not in fit]
            self._give(
                now,
                action="finish",
                code=_UNFIT,
                message=f"{len(usable)} of {self.needed} nodes are ready after launch.cluster_timeout="
                f"{self.config.cluster_timeout:.0f} s; not so nodes {absent}",
            )

    def _start(self, fit: Mapping[int, NodeStatus], chosen: list[int], now: float) -> None:
        head = fit[chosen[0]]
        attempt = self.orders.attempt + 1
        self._failure = None
        self._give(now, action="run", attempt=attempt, nodes=tuple(chosen), master=(head.address, head.port))
        names = ", ".join(fit[index].name for index in chosen)
        spare = len(fit) - len(chosen)
        self.said.append(f"attempt {attempt} on {len(chosen)} nodes ({names}){f', {spare} to spare' if spare else ''}")

    def _run(self, mine: Mapping[int, NodeStatus], hang: Failure | None, now: float) -> None:
        attempt = self.orders.attempt
        members = {index: mine[index] for index in self.orders.nodes if index in mine}
        failures = [
            (status.failure.time, index, status.failure)
            for index, status in members.items()
            if status.attempt == attempt and status.state in ("failing", "stopped") and status.failure is not None
        ]
        lost = [index for index in self.orders.nodes if not self._alive(index, now)]
        if failures:
            _, index, failure = min(failures, key=lambda item: item[:2])
            self._failure = (index, failure)
        elif lost:
            self._failure = (lost[0], self._lost(mine, lost))
        elif hang is not None:
            self._failure = (self._node_of(hang.rank), hang)
        elif all(
            index in members and members[index].attempt == attempt and members[index].state == "done"
            for index in self.orders.nodes
        ):
            self._give(now, action="finish", code=0, message="finished")
            return
        if self._failure is not None:
            self._give(now, action="stop")

    def _lost(self, mine: Mapping[int, NodeStatus], lost: list[int]) -> Failure:
        names = ", ".join(f"node {index} ({mine[index].name})" if index in mine else f"node {index}" for index in lost)
        return Failure(
            code=EXIT_FAILED,
            rank=-1,
            message=f"{names} gave no sign of life for launch.node_timeout={self.config.node_timeout:.0f} s",
        )

    def _node_of(self, rank: int) -> int:
        """The node of a rank, -1 for no rank; ranks are counted through the nodes of the attempt."""
        return self.orders.nodes[rank // self.cards_per_node] if rank >= 0 else -1

    def _stop(self, mine: Mapping[int, NodeStatus], newest_step: int, now: float) -> None:
        """Waits until every node of the attempt has ended its ranks or is lost, then decides how to go on."""
        assert self._failure is not None
        attempt = self.orders.attempt
        waiting = [
            index
            for index in self.orders.nodes
            if self._alive(index, now)
            and not (
                index in mine and mine[index].attempt == attempt and mine[index].state in ("stopped", "done", "ready")
            )
        ]
        if waiting:
            return
        lost = [index for index in self.orders.nodes if not self._alive(index, now)]
        node, failure = (lost[0], self._lost(mine, lost)) if lost else self._failure
        where = f"node {node} ({mine[node].name}): " if node in mine and not lost else ""
        self.said.append(f"attempt {attempt} failed: {where}{failure.message}")
        if failure.details:
            self.said.append(failure.details)
        self._blame(node)
        self._told_unfit -= set(lost)
        wait, why = self.restarts.again(failure.code, newest_step)
        if wait is None:
            self._give(now, action="finish", code=failure.code, message=why)
            return
        self.said.append(f"{why}, in {wait:.0f} s")
        self._not_before = now + wait
        self._give(now, action="gather")

    def _blame(self, node: int) -> None:
        """Leaves out a node that failed in two attempts in a row, as long as there are others."""
        if node >= 0 and self._blamed == node and node not in self._excluded:
            self._excluded.add(node)
            self.said.append(f"node {node} failed in two attempts in a row: it is left out while others are ready")
        self._blamed = node
