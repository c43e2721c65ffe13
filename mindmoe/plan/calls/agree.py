"""Whether the calls of all ranks meet: every collective its partners, every receive its send, in one order (dry).

The lists run against each other on no clock: a rank goes on until it calls something whose partners are not there yet.
What stands still in the end is a deadlock, whatever the speed of any rank.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mindmoe.host.position import spans
from mindmoe.parallel.ledger import Call

_TOLD = 5  # blocked ranks that a message names one by one


class _Course:
    """How far every rank is. Equal calls have one number, and so have equal groups.

    Args:
        programs: the calls of every rank.
    """

    def __init__(self, programs: Sequence[Sequence[Call]]):
        self.unique: list[Call] = []
        self.group: list[int] = []  # by number of the call
        self.numbers = list(self._numbered(programs))
        self.at = [0] * len(programs)
        self.waiting: dict[int, list[int]] = {}  # group -> ranks that stand at a collective of it
        self.parked: set[int] = set()  # those ranks
        self.mail: dict[tuple[int, int], deque[Call]] = {}
        self.most_mail = self.calls = 0

    def _numbered(self, programs: Sequence[Sequence[Call]]) -> Iterator[list[int]]:
        numbers: dict[Call, int] = {}
        groups: dict[tuple[int, ...], int] = {}
        for program in programs:
            known: dict[int, int] = {}  # by identity: a program repeats few objects
            listed = []
            for call in program:
                number = known.get(id(call))
                if number is None:
                    number = known[id(call)] = numbers.setdefault(call, len(numbers))
                    if number == len(self.unique):
                        self.unique.append(call)
                        self.group.append(groups.setdefault(call.ranks, len(groups)))
                listed.append(number)
            yield listed

    def next(self, rank: int) -> Call | None:
        """What a rank calls next, None at its end."""
        place, program = self.at[rank], self.numbers[rank]
        return self.unique[program[place]] if place < len(program) else None

    def where(self, rank: int) -> str:
        """A rank and its next call."""
        call, place = self.next(rank), self.at[rank]
        if call is None:
            return f"rank {rank}, which has ended after {place} calls"
        return f"rank {rank} at its call {place + 1}, {call}"


@dataclass(frozen=True, slots=True)
class CallCheck:
    """What was found.

    Attributes:
        problems: why the ranks do not agree; empty if they do.
        calls: calls that all ranks made together.
        waiting_messages: the most messages of one rank to another that were sent and not yet received.
    """

    problems: tuple[str, ...]
    calls: int
    waiting_messages: int


def agree(programs: Sequence[Sequence[Call]], rendezvous: bool = False) -> CallCheck:
    """Runs the lists of all ranks against each other.

    Args:
        programs: by rank.
        rendezvous: whether a send waits for its receive; by default messages are kept for the receiver.
    """
    course = _Course(programs)
    ready = deque(range(len(programs)))
    problem = None
    while ready and problem is None:
        problem = _advance(course, ready.popleft(), ready, rendezvous)
    problems = [problem] if problem else list(_standing(course))
    return CallCheck(tuple(problems), course.calls, course.most_mail)


def _advance(course: _Course, rank: int, ready: deque[int], rendezvous: bool) -> str | None:
    """Lets a rank call until it must wait; returns what is wrong."""
    program, at, unique = course.numbers[rank], course.at, course.unique
    if rank in course.parked:
        return None
    while at[rank] < len(program):
        number = program[at[rank]]
        call = unique[number]
        if call.kind == "send":
            box = course.mail.setdefault((rank, call.peer), deque())
            if rendezvous and (box or not _stands_at(course, call.peer, "receive", rank)):
                return None
            box.append(call)
            course.most_mail = max(course.most_mail, len(box))
            ready.append(call.peer)
        elif call.kind == "receive":
            found = course.mail.get((call.peer, rank))
            if not found:
                if rendezvous and _stands_at(course, call.peer, "send", rank):
                    ready.append(call.peer)
                return None
            sent = found.popleft()
            if rendezvous:
                ready.append(call.peer)
            if (sent.axis, sent.shape, sent.dtype) != (call.axis, call.shape, call.dtype):
                return f"{course.where(rank)} gets what rank {call.peer} calls {sent}"
        else:
            arrived = course.waiting.setdefault(course.group[number], [])
            arrived.append(rank)
            if len(arrived) < len(call.ranks):
                course.parked.add(rank)
                return None
            if wrong := _unlike(course, number, arrived):
                return wrong
            del course.waiting[course.group[number]]
            course.parked.difference_update(arrived)
            for other in arrived[:-1]:
                at[other] += 1
            course.calls += len(arrived) - 1
            ready.extend(arrived[:-1])
        at[rank] += 1
        course.calls += 1
    return None


def _stands_at(course: _Course, rank: int, kind: str, peer: int) -> bool:
    """Whether a rank's next call is a message to or from another."""
    call = course.next(rank)
    return call is not None and call.kind == kind and call.peer == peer


def _unlike(course: _Course, number: int, arrived: list[int]) -> str | None:
    """Two ranks of a group that call different things, or one that is no member."""
    if set(arrived) != set(course.unique[number].ranks):
        stranger = next(rank for rank in arrived if rank not in course.unique[number].ranks)
        return f"{course.where(stranger)}, of which it is no member"
    for other in arrived:
        if course.numbers[other][course.at[other]] != number:
            return f"{course.where(arrived[-1])} meets {course.where(other)}"
    return None


def _standing(course: _Course) -> list[str]:
    """Ranks that wait forever, and messages that nobody takes."""
    stuck = [rank for rank in range(len(course.at)) if course.next(rank) is not None]
    if stuck:
        told = "; ".join(_waits_for(course, rank) for rank in islice(stuck, _TOLD))
        return [f"deadlock: ranks {spans(tuple(stuck))} wait forever. {told}"]
    return [
        f"rank {target} never receives {len(box)} of what rank {source} sends it: {box[0]}"
        for (source, target), box in course.mail.items()
        if box
    ]


def _waits_for(course: _Course, rank: int) -> str:
    """What a rank waits for, and where the first of those is that it waits for."""
    call = course.next(rank)
    assert call is not None
    if call.kind in ("send", "receive"):
        missing = call.peer
    else:
        arrived = course.waiting.get(course.group[course.numbers[rank][course.at[rank]]], [])
        missing = next((other for other in call.ranks if other not in arrived), rank)
    return f"{course.where(rank)}, waits for {course.where(missing)}"
